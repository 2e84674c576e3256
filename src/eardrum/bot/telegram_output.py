"""Sends the bot's messages within Telegram's limits: messages that grow while text arrives, documents and voice."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from time import monotonic
from typing import Any, TypeVar

from msgspec import Struct
from telegram import Message
from telegram.constants import ChatAction, ParseMode
from telegram.error import BadRequest, NetworkError, RetryAfter, TelegramError

from eardrum.bot import message_text
from eardrum.bot.message_text import MAX_MESSAGE_LENGTH, MAX_PIECES
from eardrum.concurrency import run_in_background

log = logging.getLogger(__name__)

T = TypeVar("T")

PREVIEW_LENGTH = 1000
"""Characters of a long text that stand in the message above its document."""

MAX_ATTEMPTS = 5
MAX_PATIENCE_S = 600.0
"""Longest wait for Telegram; after an hour, no sender waits for an answer."""

ACTION_INTERVAL_S = 4.5
"""Seconds between two signs such as "typing", which Telegram shows for 5 s."""

OPUS_RATE = 48_000
"""Ogg counts samples of Opus at this rate, for any input rate."""


class EditIntervals(Struct, frozen=True):
    """Seconds between two edits of a message: Telegram allows a message a second in a chat, and 20 a minute in a group."""

    private: float = 1.1
    group: float = 3.5


async def call_telegram(send: Callable[[], Awaitable[T]]) -> T:
    """Call a method of the Bot API. After 429 it is called again when Telegram allows it, after an error of the network soon.

    A message whose confirmation was lost may come twice: better than not at all.

    Raises:
        TelegramError: Telegram refuses, or does not answer.
    """
    for attempt in range(MAX_ATTEMPTS):
        try:
            return await send()
        except RetryAfter as error:
            wait = _get_wait(error)
            if wait > MAX_PATIENCE_S or attempt == MAX_ATTEMPTS - 1:
                raise
        except BadRequest:
            raise
        except NetworkError:
            if attempt == MAX_ATTEMPTS - 1:
                raise
            wait = float(attempt + 1)
        await asyncio.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _get_wait(error: RetryAfter) -> float:
    wait: int | timedelta = error.retry_after
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


class ReplyWriter:
    """Writes the replies to one message: quoting it, in its topic, and even if it is deleted meanwhile."""

    def __init__(self, message: Message, intervals: EditIntervals):
        self._message = message
        self.interval = intervals.private if message.chat.type == "private" else intervals.group
        """Seconds between two edits."""

    async def send_text(self, text: str, *, html: bool = False) -> Message:
        """Send a text as one message; plain text that is too long is cut. HTML that Telegram cannot parse is sent as `text`.

        Raises:
            TelegramError: it cannot be sent.
        """
        text = text if html else message_text.cut_text(text, MAX_MESSAGE_LENGTH)
        return await _send_formatted(
            lambda shown, mode: self._message.reply_text(shown, parse_mode=mode, **_QUOTING), text, html=html
        )

    async def send_document(self, content: bytes, name: str, caption: str = "") -> None:
        """Send a document.

        Raises:
            TelegramError: it cannot be sent.
        """
        await call_telegram(lambda: self._message.reply_document(content, caption=caption, filename=name, **_QUOTING))

    async def send_voice(self, speech: bytes) -> None:
        """Send Ogg/Opus as a voice message.

        Raises:
            BadRequest, Forbidden: the chat takes no voice messages.
            TelegramError: it cannot be sent.
        """
        seconds = max(1, round(measure_ogg_opus(speech)))
        await call_telegram(lambda: self._message.reply_voice(speech, duration=seconds, filename="answer.ogg", **_QUOTING))

    async def send_audio(self, speech: bytes) -> None:
        """Send an MP3 as music.

        Raises:
            TelegramError: it cannot be sent.
        """
        await call_telegram(lambda: self._message.reply_audio(speech, title="Answer", filename="answer.mp3", **_QUOTING))

    @asynccontextmanager
    async def show_action(self, action: ChatAction) -> AsyncIterator[None]:
        """Show an action of the bot, such as "typing", for the duration of the block."""
        async with run_in_background(self._repeat_action(action)):
            yield

    async def _repeat_action(self, action: ChatAction) -> None:
        while True:
            with suppress(TelegramError):  # a sign that fails to show is no loss
                await self._message.reply_chat_action(action)
            await asyncio.sleep(ACTION_INTERVAL_S)


_QUOTING: dict[str, Any] = {"do_quote": True, "allow_sending_without_reply": True}


async def _send_formatted(send: Callable[[str, str | None], Awaitable[T]], text: str, *, html: bool) -> T:
    if html:
        try:
            rendered = message_text.render_html(text)
            return await call_telegram(lambda: send(rendered, ParseMode.HTML))
        except BadRequest as error:
            if not _is_about_markup(error):
                raise
            log.debug("Telegram cannot parse an answer: %s. It is sent as plain text.", error)
    return await call_telegram(lambda: send(text, None))


def _is_about_markup(error: BadRequest) -> bool:
    said = error.message.lower()
    return "can't parse entities" in said or "message text is empty" in said or "too long" in said


class GrowingMessage:
    """A message that shows a text while it grows, in edits as far apart as Telegram allows."""

    def __init__(self, writer: ReplyWriter):
        self._writer = writer
        self._sent: Message | None = None
        self._text = ""
        """The text without notes on the progress."""
        self._is_finished = False
        self._shown = ""
        self._wanted = ""
        self._next_edit = 0.0
        self._editor: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def show(self, text: str) -> None:
        """Show a note on the progress, such as "Listening …"; it is sent at once if there is no message yet.

        Raises:
            TelegramError: it cannot be sent.
        """
        async with self._lock:
            if self._sent is None:
                self._sent = await self._writer.send_text(text)
                self._shown, self._next_edit = text, monotonic() + self._writer.interval
                return
        self._edit_soon(text)

    def grow(self, text: str) -> None:
        """Show a text, or its end if it is too long, with the next edit. A text that comes before that takes its place."""
        self._text = message_text.cut_text(text, MAX_MESSAGE_LENGTH, from_end=True)
        self._edit_soon(self._text)

    def _edit_soon(self, text: str) -> None:
        self._wanted = text
        if self._editor is None or self._editor.done():
            self._editor = asyncio.create_task(self._edit_while_growing())

    async def finish(self, text: str, *, html: bool = False) -> None:
        """Show the final text. A text that is too long for one message is split into several, and a very long one is a document.

        Raises:
            TelegramError: it cannot be sent.
        """
        await self._stop_editing()
        pieces = message_text.split_text(text)
        is_document = len(pieces) > MAX_PIECES
        first, *more = [message_text.cut_text(text, PREVIEW_LENGTH)] if is_document else pieces
        await self._show_last(first, html=html)
        self._is_finished = True
        for piece in more:
            await self._writer.send_text(piece, html=html)
        if is_document:
            await self._writer.send_document(text.encode(), "answer.md")

    async def fail(self, reason: str) -> None:
        """Show the reason why there is no more text, below the text that there is; below a finished text as another message.

        Raises:
            TelegramError: it cannot be sent.
        """
        if self._is_finished:
            await self._writer.send_text(reason)
            return
        await self._stop_editing()
        reason = message_text.cut_text(reason, MAX_MESSAGE_LENGTH)
        kept = message_text.cut_text(self._text, MAX_MESSAGE_LENGTH - message_text.count_units(reason) - 2, from_end=True)
        await self._show_last(f"{kept}\n\n{reason}" if kept else reason, html=False)

    async def _show_last(self, text: str, *, html: bool) -> None:
        if self._sent is None:
            self._sent = await self._writer.send_text(text, html=html)
            return
        sent = self._sent
        await asyncio.sleep(self._next_edit - monotonic())
        try:
            await _send_formatted(lambda shown, mode: sent.edit_text(shown, parse_mode=mode), text, html=html)
        except BadRequest as error:
            if "not modified" not in error.message.lower():
                self._sent = await self._writer.send_text(text, html=html)  # a user has deleted it

    async def _edit_while_growing(self) -> None:
        while self._wanted != self._shown:
            await asyncio.sleep(self._next_edit - monotonic())
            async with self._lock:
                text, wait = self._wanted, self._writer.interval
                try:
                    if self._sent is None:
                        self._sent = await self._writer.send_text(text)
                    else:
                        await self._sent.edit_text(text)
                    self._shown = text
                except RetryAfter as error:
                    wait = _get_wait(error)
                except TelegramError:
                    self._shown = text  # the next text may do better, and the last one has to
                self._next_edit = monotonic() + wait

    async def _stop_editing(self) -> None:
        async with self._lock:  # an edit on its way could arrive after the last one
            if self._editor:
                self._editor.cancel()
        if self._editor:
            await asyncio.wait([self._editor])
            self._editor = None


def measure_ogg_opus(data: bytes) -> float:
    """Return the length of Ogg/Opus in seconds, by the position in its last page; 0 if it is something else."""
    at = data.rfind(b"OggS")
    if at < 0 or len(data) < at + 14:
        return 0.0
    samples: int = struct.unpack_from("<q", data, at + 6)[0]
    return max(0, samples) / OPUS_RATE
