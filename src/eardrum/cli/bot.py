"""The command `bot telegram`: runs a Telegram bot, which is a client of a running server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eardrum import config, logging_setup
from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.errors import ConfigError, InvalidRequestError
from eardrum.languages import parse_language

if TYPE_CHECKING:
    from eardrum.bot.telegram_bot import BotOptions

TOKEN = re.compile(r"\d+:[\w-]{20,}")

DEFAULT_INSTRUCTIONS = "You are a helpful assistant in a messenger. Answer briefly, in the language of the question."

AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        envvar=config.TELEGRAM_ALLOW_VARIABLE,
        metavar="ID",
        help="Id of a user or a group that may use the bot; repeatable, or separated by commas. Required.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help=f"File with the bot's token. Without it: the variable {config.TELEGRAM_TOKEN_VARIABLE}."),
]
ModeOption = Annotated[
    Literal["transcribe", "chat", "both"] | None,
    typer.Option(
        metavar="MODE",
        show_default="both with --chat-model, else transcribe",
        help="Recordings become text (transcribe), are answered by the language model (chat), or both.",
    ),
]
SpeechModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="Model that turns recordings into text.")]
ChatModelOption = Annotated[str, typer.Option(metavar="MODEL", help="Language model that answers.")]
VisionModelOption = Annotated[
    str, typer.Option(metavar="MODEL", show_default="--chat-model", help="Model that answers questions about pictures.")
]
SpeakOption = Annotated[
    Literal["never", "voice", "always"],
    typer.Option(metavar="WHEN", help="When answers are spoken, too: never, in answer to a recording (voice), or always."),
]
VoiceModelOption = Annotated[str, typer.Option(metavar="MODEL", help="Model that speaks.")]
VoiceOption = Annotated[str, typer.Option(metavar="VOICE", help="Voice that speaks.")]
SpokenLanguageOption = Annotated[
    str, typer.Option("--language", metavar="CODE", help="Language of recordings, such as en or de. Without it: detected.")
]
InstructionsOption = Annotated[str, typer.Option(metavar="TEXT", help="Tells the language model how to answer.")]
TelegramApiOption = Annotated[
    str,
    typer.Option(
        envvar=config.TELEGRAM_API_VARIABLE,
        metavar="URL",
        help="Bot API server. One of your own removes Telegram's limit of 20 MB for a recording.",
    ),
]
LogLevelOption = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(metavar="LEVEL", help="Least severe level that is logged.")
]


def run_telegram_bot(
    allow: AllowOption = None,
    token_file: TokenFileOption = None,
    mode: ModeOption = None,
    speech_model: SpeechModelOption = "whisper-1",
    chat_model: ChatModelOption = "",
    vision_model: VisionModelOption = "",
    speak: SpeakOption = "never",
    voice_model: VoiceModelOption = "tts-1",
    voice: VoiceOption = "alloy",
    spoken_language: SpokenLanguageOption = "",
    instructions: InstructionsOption = DEFAULT_INSTRUCTIONS,
    telegram_api: TelegramApiOption = "https://api.telegram.org",
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
    log_level: LogLevelOption = "info",
) -> None:
    """Run a Telegram bot that transcribes recordings, answers, and speaks. Ctrl-C stops it.

    It is a client of the server in --server, which may be any with OpenAI's API. Each chat can choose other models, another mode,
    voice and language for itself.
    """
    if not find_spec("telegram"):
        raise ConfigError("The bot needs python-telegram-bot: install it with `pip install 'eardrum[telegram]'`.")
    if not re.match("https?://", telegram_api):
        raise ConfigError(f"--telegram-api takes an address that begins with http:// or https://, and {telegram_api!r} does not.")
    token, allowed, language = read_token(token_file), parse_ids(allow or ()), _parse_spoken_language(spoken_language)
    from eardrum.bot.chats import ChatMode, ChatSettings, SpokenAnswers
    from eardrum.bot.telegram_bot import BotOptions
    from eardrum.client import get_default_address

    defaults = ChatSettings(
        mode=ChatMode(mode or ("both" if chat_model else "transcribe")),
        speak=SpokenAnswers(speak),
        speech_model=speech_model,
        chat_model=chat_model,
        vision_model=vision_model,
        voice_model=voice_model,
        voice=voice,
        language=language,
    )
    logging_setup.configure_logging(log_level, "text")
    address = server or get_default_address(os.environ)
    asyncio.run(_run_until_signal(BotOptions(token, allowed, address, key, certificate, telegram_api, defaults, instructions)))


def read_token(file: Path | None) -> str:
    """Read the bot's token from a file, or from the environment. It is no option: others can read a process's command line.

    Raises:
        ConfigError: there is none, or it is none of Telegram's.
    """
    try:
        token = (file.read_text(encoding="utf-8") if file else os.environ.get(config.TELEGRAM_TOKEN_VARIABLE, "")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file} cannot be read: {getattr(error, 'strerror', '') or error}.") from None
    if not token:
        raise ConfigError(
            f"The bot needs a token: get one from @BotFather in Telegram, and set {config.TELEGRAM_TOKEN_VARIABLE}, or use "
            "--token-file."
        )
    if not TOKEN.fullmatch(token):
        raise ConfigError("This is no token of a Telegram bot, which is a number, a colon and 35 letters and digits.")
    return token


def parse_ids(given: Sequence[str]) -> frozenset[int]:
    """Parse the ids of users and groups.

    Raises:
        ConfigError: there are none, or one is no id.
    """
    words = [word for text in given for word in re.split(r"[\s,]+", text) if word]
    if not words:
        raise ConfigError(
            "The bot answers only users and groups that you allow: use --allow ID with your user id. To learn it, start the bot "
            "with --allow 0 and write to it."
        )
    for word in words:
        if not re.fullmatch(r"-?\d{1,19}", word):
            raise ConfigError(
                f"--allow takes ids, and {word!r} is none: names can change. To learn an id, start the bot with --allow 0 and "
                "write to it."
            )
    return frozenset(map(int, words))


def _parse_spoken_language(spelled: str) -> str:
    try:
        return parse_language(spelled) or ""
    except InvalidRequestError as error:
        raise ConfigError(f"--language: {error.message}") from None


async def _run_until_signal(options: BotOptions) -> None:
    from eardrum.bot.telegram_bot import run_bot

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):  # on Windows Ctrl-C ends it at once
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
    await run_bot(options, stop)


COMMANDS: dict[str, Callable[..., None]] = {"telegram": run_telegram_bot}
