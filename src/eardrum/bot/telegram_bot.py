"""Runs the bot: fetches updates, refuses users who are not allowed, and turns messages into jobs of their chat."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct, field
from telegram import Bot, BotCommand, Message, MessageEntity, Update
from telegram.error import ChatMigrated, Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError
from telegram.ext import Application, ApplicationBuilder, TypeHandler, filters
from telegram.request import HTTPXRequest

from eardrum import redaction, tls
from eardrum.bot.answering import IncomingMessage, MessageAnswerer
from eardrum.bot.attachments import AttachmentLoader, find_picture, find_recording
from eardrum.bot.chats import MAX_WAITING_JOBS, ChatJob, ChatRegistry, ChatSettings, ChatState
from eardrum.bot.commands import COMMANDS, ChatCommands
from eardrum.bot.server_api import ServerApi
from eardrum.bot.telegram_output import EditIntervals, GrowingMessage, ReplyWriter
from eardrum.concurrency import run_until_first
from eardrum.errors import ConfigError

log = logging.getLogger(__name__)

PUBLIC_API = "https://api.telegram.org"

POLL_TIMEOUT_S = 30

REQUEST_TIMEOUT_S = 30.0
"""Seconds for Telegram to confirm a message. One that is sent again too early comes twice."""

MAX_AGE = timedelta(minutes=10)
"""Messages that are older when they arrive were sent while the bot was away; their senders no longer wait for an answer."""

NOTICE_DELAY_S = 1.0
"""Seconds in which messages that are not taken are counted before one notice is sent about all of them."""

MAX_STRANGERS = 1000
"""Strangers that got their one answer and are remembered."""

START_RETRY_S = 10.0

SHUTDOWN_S = 8.0
"""Seconds for the last messages to those whose jobs are cancelled."""

COMMAND = re.compile(r"/(\w+)(?:@(\w+))?(?:\s+(.*))?", re.DOTALL)

TOO_OLD = "Not answered: {count} from the time when the bot was away. Send those again that still matter."
QUEUE_FULL = f"Not taken: {{count}}, because {MAX_WAITING_JOBS} are waiting already. Send the others again later."
RESTARTED = "Cancelled: the bot was stopped. Send it again later."
TRANSCRIBE_WHAT = "Reply with /transcribe to the recording that you mean."
ONLY_RECORDINGS = "I only write down recordings here. /mode both makes me answer, too."
NOT_UNDERSTOOD = "I understand recordings, text and pictures."


class BotOptions(Struct, frozen=True):
    """The options of the command line."""

    token: str
    allowed: frozenset[int]
    """Ids of users, and of groups (negative)."""
    server: str
    key: str = ""
    certificate: Path | None = None
    telegram_api: str = PUBLIC_API
    """Address of the Bot API server."""
    defaults: ChatSettings = field(default_factory=ChatSettings)
    instructions: str = ""
    """Tells the language model how to answer."""
    edit_intervals: EditIntervals = field(default_factory=EditIntervals)

    @property
    def has_own_api_server(self) -> bool:
        """Whether the Bot API server is one's own, without Telegram's limit of 20 MB."""
        return self.telegram_api.rstrip("/") != PUBLIC_API


async def run_bot(options: BotOptions, stop: asyncio.Event) -> None:
    """Run the bot until `stop` is set.

    Raises:
        ConfigError: Telegram refuses the token.
    """
    os.environ.setdefault("PTB_TIMEDELTA", "1")  # the library's new type for times; the old one comes with warnings
    redaction.add_secrets([options.token, options.token.partition(":")[2]])
    for chatty in ("httpx", "httpcore", "telegram.ext.Application"):  # the first two log addresses, and so the token
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("telegram.ext.Updater").setLevel(logging.CRITICAL)  # `PollErrorLog` says the same without a traceback
    application = _build_application(options)
    async with ServerApi(options.server, options.key, options.certificate) as server, _start(application, stop) as started:
        if not started or not application.updater:
            return
        loader = AttachmentLoader(application.bot, has_own_server=options.has_own_api_server)
        desk = MessageDesk(options, application.bot, ChatCommands(server), MessageAnswerer(server, loader))
        application.add_handler(TypeHandler(Update, lambda update, _: desk.receive(update)))
        try:
            await application.start()
            polling = application.updater.start_polling(
                timeout=POLL_TIMEOUT_S,
                bootstrap_retries=-1,
                allowed_updates=[Update.MESSAGE, Update.CHANNEL_POST],
                error_callback=PollErrorLog().report,
            )
            await run_until_first(polling, stop.wait())
            log.info("The bot @%s listens to Telegram, for the server %s.", application.bot.username, options.server)
            await stop.wait()
        finally:
            if application.updater.running:
                await application.updater.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_S):
                    await desk.close()
                    await application.stop()
            await loader.close()


def _build_application(options: BotOptions) -> Application:  # type: ignore[type-arg]
    address = options.telegram_api.rstrip("/")
    trust = {"verify": tls.get_client_context()}  # the system's authorities, as everywhere here
    return (
        ApplicationBuilder()
        .token(options.token)
        .base_url(f"{address}/bot")
        .base_file_url(f"{address}/file/bot")
        .request(HTTPXRequest(read_timeout=REQUEST_TIMEOUT_S, httpx_kwargs=trust))
        .get_updates_request(HTTPXRequest(connection_pool_size=1, httpx_kwargs=trust))
        .concurrent_updates(True)
        .job_queue(None)
        .build()
    )


@asynccontextmanager
async def _start(application: Application, stop: asyncio.Event) -> AsyncIterator[bool]:  # type: ignore[type-arg]
    """Greet Telegram, as often as it takes to reach it. Yields False if `stop` was set before.

    Raises:
        ConfigError: Telegram refuses the token.
    """
    try:
        while not stop.is_set():
            try:
                await application.initialize()
                await application.bot.set_my_commands([BotCommand(name, about) for name, about in COMMANDS.items()])
                break
            except InvalidToken:
                raise ConfigError("Telegram does not know this token: copy it once more from @BotFather.") from None
            except (NetworkError, RetryAfter) as error:
                log.warning("Telegram cannot be reached: %s. The next attempt is in %.0f s.", error, START_RETRY_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), START_RETRY_S)
        yield not stop.is_set()
    finally:
        await application.shutdown()
        await application.bot.shutdown()  # which the other leaves out if it has not begun


class PollErrorLog:
    """Logs errors of fetching updates, one line for each kind in a row: the library tries again by itself."""

    def __init__(self) -> None:
        self._last = ""

    def report(self, error: TelegramError) -> None:
        """Log an error."""
        said = f"{type(error).__name__}: {error}"
        if said == self._last:
            return
        self._last = said
        if isinstance(error, Conflict):
            log.error(
                "Telegram gives the messages to another program that runs with the same token (409): stop that one. "
                "The bot keeps trying."
            )
        else:
            log.warning("Messages cannot be fetched from Telegram: %s. The bot keeps trying.", error)


class MessageDesk:
    """Receives messages: refuses strangers, carries out commands, and queues the rest."""

    def __init__(self, options: BotOptions, bot: Bot, commands: ChatCommands, answerer: MessageAnswerer):
        self._options = options
        self._bot = bot
        self._commands = commands
        self._answerer = answerer
        self._chats = ChatRegistry(options.defaults, options.instructions)
        self._notices = NoticeCounter()
        self._strangers: dict[int, None] = {}

    async def receive(self, update: Update) -> None:
        """Receive an update. The job of a message is queued before anything is awaited, so that the order stays."""
        message = update.effective_message
        if message is None or filters.StatusUpdate.ALL.check_update(update):  # such as a pinned message
            return
        try:
            await self._receive_message(message)
        except Forbidden:
            log.info("The chat %s has blocked the bot, or removed it.", message.chat.id)
        except ChatMigrated as error:
            log.warning("The group %s has the new id %s: put that one into --allow.", message.chat.id, error.new_chat_id)
        except TelegramError as error:
            log.warning("A reply could not be sent: %s", error)

    async def close(self) -> None:
        """Cancel all jobs, and tell those who wait for them."""
        await self._chats.cancel_all(RESTARTED)
        await self._notices.close()

    async def _receive_message(self, message: Message) -> None:
        if not self._is_for_bot(message):
            return
        writer = ReplyWriter(message, self._options.edit_intervals)
        if not self._is_allowed(message):
            await self._refuse_stranger(message, writer)
            return
        if datetime.now(UTC) - message.date > MAX_AGE:
            self._notices.count(writer, message.chat.id, TOO_OLD)
            return
        chat = self._chats.find_chat(message.chat.id)
        name, words = self._parse_command(message)
        if name in self._commands.names:
            await writer.send_text(await self._commands.run(name, chat, words))
        else:
            await self._queue_message(message, writer, chat, name)

    async def _queue_message(self, message: Message, writer: ReplyWriter, chat: ChatState, command: str) -> None:
        incoming = self._read_message(message, writer, command)
        if isinstance(incoming, str) or (refusal := _find_refusal(incoming, chat)):
            await writer.send_text(incoming if isinstance(incoming, str) else refusal)
            return
        job = ChatJob(lambda: self._answer(incoming, chat), lambda reason: _cancel(incoming, reason))
        before = chat.jobs.submit(job)
        if before is None:
            self._notices.count(writer, message.chat.id, QUEUE_FULL)
        elif before:
            await incoming.status.show(f"Queued, {before} before it.")

    def _read_message(self, message: Message, writer: ReplyWriter, command: str) -> IncomingMessage | str:
        """Return the message to answer, or a reply that says why there is nothing to answer."""
        status = GrowingMessage(writer)
        quoted = message.reply_to_message
        recording = find_recording(message)
        if command == "transcribe":
            recording = recording or (find_recording(quoted) if quoted else None)
            return IncomingMessage(writer, status, recording, only_transcribe=True) if recording else TRANSCRIBE_WHAT
        if command:
            return f"I know no command /{command}. /help lists those that I know."
        text = self._remove_mention(message.text or message.caption or "")
        picture = None if recording else find_picture(message)
        if message.chat.type != "private" and quoted and not self._is_own(quoted) and not recording and not picture:
            recording, picture = find_recording(quoted), find_picture(quoted)
            text = text or quoted.text or ""
        if not (recording or picture or text):
            return NOT_UNDERSTOOD
        return IncomingMessage(writer, status, recording, picture, text)

    async def _answer(self, message: IncomingMessage, chat: ChatState) -> None:
        try:
            await self._answerer.answer(message, chat)
        except TelegramError as error:
            log.warning("An answer could not be sent: %s", error)

    def _is_for_bot(self, message: Message) -> bool:
        """Whether a message is for the bot: in private chats all are, in groups those that address it."""
        if message.chat.type == "private":
            return True
        if self._is_own(message):
            return False
        if message.reply_to_message and self._is_own(message.reply_to_message):
            return True
        if found := COMMAND.match(message.text or message.caption or ""):
            return found[2].lower() == self._bot.username.lower() if found[2] else found[1].lower() in COMMANDS
        kinds: list[str | None] = [MessageEntity.MENTION]
        mentions = (message.parse_entities(kinds) if message.text else message.parse_caption_entities(kinds)).values()
        return f"@{self._bot.username}".lower() in (mention.lower() for mention in mentions)

    def _is_own(self, message: Message) -> bool:
        return message.from_user is not None and message.from_user.id == self._bot.id

    def _is_allowed(self, message: Message) -> bool:
        ids = {message.chat.id, *([message.from_user.id] if message.from_user else ())}
        return not ids.isdisjoint(self._options.allowed)

    async def _refuse_stranger(self, message: Message, writer: ReplyWriter) -> None:
        """Tell a stranger, once, the id that the owner would have to allow."""
        id = message.chat.id
        if id in self._strangers:
            return
        self._strangers[id] = None
        if len(self._strangers) > MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        log.info("A message from the chat %s, which --allow does not name, was refused.", id)
        who = "you" if message.chat.type == "private" else "this group"
        await writer.send_text(f"This bot is private. Its owner can allow {who} with the id {id}.")

    def _parse_command(self, message: Message) -> tuple[str, list[str]]:
        found = COMMAND.match(message.text or message.caption or "")
        if not found or (found[2] and found[2].lower() != self._bot.username.lower()):
            return "", []
        return found[1].lower(), (found[3] or "").split()

    def _remove_mention(self, text: str) -> str:
        return re.sub(rf"@{re.escape(self._bot.username)}\b[,:]?", "", text, flags=re.IGNORECASE).strip()


def _find_refusal(message: IncomingMessage, chat: ChatState) -> str:
    return "" if message.recording or chat.settings.answers else ONLY_RECORDINGS


async def _cancel(message: IncomingMessage, reason: str) -> None:
    with suppress(TelegramError):
        await message.status.fail(reason)


class NoticeCounter:
    """Counts messages that are not taken, and sends one notice about those of a moment."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str], int] = defaultdict(int)
        self._tasks: set[asyncio.Task[None]] = set()

    def count(self, writer: ReplyWriter, chat: int, notice: str) -> None:
        """Count a message of a chat. `notice` has a place for "one message" or "5 messages"."""
        self._counts[chat, notice] += 1
        if self._counts[chat, notice] == 1:
            task = asyncio.create_task(self._send_later(writer, chat, notice))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Send no more notices."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _send_later(self, writer: ReplyWriter, chat: int, notice: str) -> None:
        await asyncio.sleep(NOTICE_DELAY_S)
        count = self._counts.pop((chat, notice))
        with suppress(TelegramError):
            await writer.send_text(notice.format(count="one message" if count == 1 else f"{count} messages"))
