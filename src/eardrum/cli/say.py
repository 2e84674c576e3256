"""The command `say`: turns text into a file with speech, with or without a server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from eardrum import config, logging_setup
from eardrum.cli.options import AssignmentsOption, CertificateOption, ConfigFileOption, KeyOption
from eardrum.cli.recordings import STDIN
from eardrum.cli.terminal import INTERRUPTED, guard_stdout, print_status
from eardrum.errors import ConfigError, InvalidRequestError
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.speech import MAX_SPEED, MIN_SPEED, SpeechFormat

if TYPE_CHECKING:
    from eardrum.cli.speech import SpeechClient

SpeechClientContext = AbstractAsyncContextManager["SpeechClient"]

SUFFIXES = {
    ".mp3": SpeechFormat.MP3,
    ".ogg": SpeechFormat.OPUS,
    ".opus": SpeechFormat.OPUS,
    ".oga": SpeechFormat.OPUS,
    ".aac": SpeechFormat.AAC,
    ".flac": SpeechFormat.FLAC,
    ".wav": SpeechFormat.WAV,
    ".pcm": SpeechFormat.PCM,
    ".raw": SpeechFormat.PCM,
}
"""Endings of files, and their formats."""


def say(
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Text to speak; `-` or nothing: stdin.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write. Its ending names the format.")
    ] = None,
    voice: Annotated[str, typer.Option("--voice", "-v", metavar="VOICE", help="Voice. Without it: the model's first one.")] = "",
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Model. Without it: the default one, or one that has the voice.")
    ] = "",
    speed: Annotated[
        float, typer.Option(metavar="FACTOR", min=MIN_SPEED, max=MAX_SPEED, help="1 is the voice's own pace.")
    ] = 1.0,
    format: Annotated[
        SpeechFormat | None, typer.Option(help="Format of the audio. Without it: by the file's ending, else WAV.")
    ] = None,
    list_voices: Annotated[bool, typer.Option("--list-voices", help="List the voices, and speak nothing.")] = False,
    server: Annotated[
        str,
        typer.Option(
            envvar=config.CLIENT_SERVER_VARIABLE,
            metavar="URL",
            help="Use this server, such as http://127.0.0.1:8100. Without it: speak here.",
        ),
    ] = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
    config_file: ConfigFileOption = None,
    assignments: AssignmentsOption = None,
) -> None:
    """Turn text into speech, with or without a server.

    Without `--output` the audio is written to stdout, which must be a pipe or a file.
    """
    with pause_garbage_collection():
        from eardrum.cli import speech

    if server:
        client = speech.open_remote_client(server, key, certificate)
    else:
        settings = config.load_settings(config_file, assignments or ())
        logging_setup.configure_logging("error", settings.log.format)
        client = speech.open_local_client(settings)
    try:
        if list_voices:
            asyncio.run(_print_voices(client))
            return
        chosen = _choose_format(format, output)
        body = {"input": _read_text(text or []), "voice": voice, "model": model, "speed": speed, "response_format": chosen}
        asyncio.run(_write_speech(client, body, output))
    except KeyboardInterrupt:
        print_status("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None


def _choose_format(format: SpeechFormat | None, output: Path | None) -> SpeechFormat:
    if not output:
        if sys.stdout.isatty():
            raise ConfigError("Audio cannot be shown in a terminal: name a file with -o, as in `-o hello.mp3`.")
        return format or SpeechFormat.WAV
    found = format or SUFFIXES.get(output.suffix.lower())
    if not found:
        endings = ", ".join(SUFFIXES)
        raise ConfigError(f"{output}: the ending names no format. Use one of {endings}, or --format.")
    return found


def _read_text(words: list[str]) -> str:
    text = " ".join(words)
    if not words or words == [STDIN]:
        text = "" if sys.stdin.isatty() else _read_stdin()
    if not text.strip():
        raise ConfigError('There is no text: give it as an argument, as in `eardrum say "Hello." -o hello.mp3`, or pipe it in.')
    return text


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")  # editors on Windows write a mark at the beginning
    except UnicodeDecodeError:
        raise InvalidRequestError("The text on stdin is not UTF-8.") from None


async def _print_voices(client: SpeechClientContext) -> None:
    async with client as open_client:
        for voice in await open_client.list_voices():
            print(f"{voice['id']:<16} {voice.get('language', ''):<8} {voice['model']}")


async def _write_speech(client: SpeechClientContext, body: dict[str, Any], output: Path | None) -> None:
    async with client as open_client, aclosing(open_client.speak(body)) as audio:
        if not output:
            with guard_stdout("the audio"):
                await _copy(audio, sys.stdout.buffer)
            return
        try:
            await write_audio(audio, output)
        except OSError as error:
            raise ConfigError(f"{output} cannot be written: {error.strerror}.") from None


async def write_audio(audio: AsyncGenerator[bytes, None], output: Path) -> None:
    """Write a file, which appears once it is complete. A device or a pipe gets the audio as it comes.

    Raises:
        OSError: it cannot be written; the incomplete part is deleted.
    """
    with _open_output(output) as file:
        await _copy(audio, file)


@contextmanager
def _open_output(output: Path) -> Iterator[BinaryIO]:
    target = Path(os.path.realpath(output))  # a link stays, its target is written
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".eardrum-{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


async def _copy(audio: AsyncGenerator[bytes, None], file: BinaryIO) -> None:
    async for piece in audio:
        file.write(piece)
        file.flush()


COMMANDS = {"say": say}
