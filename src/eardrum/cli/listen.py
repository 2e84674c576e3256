"""The command `listen`: shows live text of a microphone or of piped audio."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eardrum.cli.chunk_reader import ChunkReader
from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.cli.terminal import JsonDisplay, LineDisplay, LiveDisplay, TerminalDisplay, print_error, print_warning
from eardrum.concurrency import run_in_background
from eardrum.errors import ConfigError, EardrumError
from eardrum.garbage_collection import pause_garbage_collection

if TYPE_CHECKING:
    import aiohttp

    from eardrum.client import EardrumClient

NORMAL_CLOSE = 1000
"""WebSocket close code after a complete session."""


def listen(
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model or alias. Without it: the default model.")] = "",
    language: Annotated[str, typer.Option(metavar="CODE", help="Spoken language, such as en or de. Without it: detected.")] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Translate into English.")] = False,
    rate: Annotated[
        int | None,
        typer.Option(metavar="HZ", help="Read raw 16-bit mono samples (s16le) at this rate. Without it: any audio format."),
    ] = None,
    audio_track: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Audio track of the piped file, counted from 1. Without it: the default track."),
    ] = None,
    microphone: Annotated[bool, typer.Option("--microphone", help="Use the microphone even if stdin is a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message of the server as a line of JSON.")] = False,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Show live text of the microphone, or of audio on stdin. Ctrl-C stops."""
    with pause_garbage_collection():
        from eardrum.client import EardrumClient

    wanted = {"model": model, "language": language, "task": "translate" if translate else ""}
    screen: LiveDisplay = JsonDisplay() if as_json else LineDisplay()
    if sys.stdout.isatty() and not as_json:
        screen = TerminalDisplay(lambda: shutil.get_terminal_size().columns)
    microphone = microphone or sys.stdin.isatty()
    hint = "Listening. Ctrl-C stops." if microphone else ""
    if audio_track and (rate or microphone):
        raise ConfigError("--audio-track is for piped files: the microphone and raw samples have one track. Leave it out.")
    wanted["audio_track"] = str(audio_track or "")
    with _open_source(rate, microphone=microphone) as (fd, format):
        config = {name: value for name, value in (wanted | format).items() if value}
        asyncio.run(_run_session(partial(EardrumClient, server, key, certificate), fd, config, screen, hint))


@contextmanager
def _open_source(rate: int | None, *, microphone: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Open the microphone or stdin; yields the file descriptor and the audio format.

    Raises:
        ConfigError: there is no microphone, or a library for it is missing.
    """
    if not microphone:
        yield sys.stdin.fileno(), {"encoding": "s16le", "sample_rate": str(rate)} if rate else {"encoding": "container"}
        return
    if rate:
        raise ConfigError("--rate is for piped audio: the microphone's rate is read from the device. Leave it out.")
    command = [sys.executable, "-m", "eardrum.cli.microphone"]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 -- in its own session: Ctrl-C must reach this process only
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True, bufsize=0
    ) as program:
        assert program.stdout
        try:
            if line := program.stdout.readline():
                yield program.stdout.fileno(), {"encoding": "s16le", "sample_rate": line.decode().strip()}
            if not line or program.poll():
                raise ConfigError(_read_last_error(program))
        finally:
            program.terminate()


def _read_last_error(program: subprocess.Popen[bytes]) -> str:
    assert program.stderr
    lines = [line for line in program.stderr.read().decode(errors="replace").split("\n") if line.strip()]
    return lines[-1] if lines else "The microphone stopped without an error message: check that it is still connected."


async def _run_session(
    client: Callable[[], EardrumClient], fd: int, config: Mapping[str, str], screen: LiveDisplay, hint: str
) -> None:
    """Send the audio of `fd` and show the server's messages until both end.

    Raises:
        EardrumError: the audio cannot be read, or the server cannot be reached, refuses, or fails.
    """
    async with client() as server, server.open_live_session() as socket:
        await socket.send_json({"type": "config", **config})
        pieces = ChunkReader(fd)
        try:
            with _handle_interrupt(pieces.stop):
                async with run_in_background(_send_audio(pieces, socket)):
                    await _show_messages(socket, screen, hint)
        except EardrumError:
            if not pieces.error:
                raise
        if pieces.error:  # of which an error of the server is a consequence
            raise EardrumError(f"The audio cannot be read: {pieces.error.strerror or pieces.error}.")


async def _send_audio(pieces: ChunkReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    with suppress(ConnectionError):  # the server's last message gives the reason
        async for piece in pieces:
            await socket.send_bytes(piece)
        await socket.send_json({"type": "finish"})


async def _show_messages(socket: aiohttp.ClientWebSocketResponse, screen: LiveDisplay, hint: str) -> None:
    """Show the server's messages until it closes the connection.

    Raises:
        EardrumError: the server reported an error last, or closed too early.
    """
    _write_text(screen.render_hint("Waiting for the server ..."))
    failure = ""
    async for message in socket:
        if failure:  # a message follows, so the error did not end the session
            print_error(failure)
        fields = json.loads(message.data)
        _write_text(screen.render_message(fields))
        if fields["type"] == "ready":
            _write_text(screen.render_hint(hint))
        failure = fields["error"]["message"] if fields["type"] == "error" else ""
        for warning in fields.get("warnings", ()):
            print_warning(warning)
    if failure or socket.close_code != NORMAL_CLOSE:
        raise EardrumError(
            failure or f"The server closed the connection early (code {socket.close_code}): see its log (`eardrum logs`)."
        )


def _write_text(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _handle_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Make the first Ctrl-C end the audio, so that the last words still arrive. The second one ends the command."""
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    with suppress(NotImplementedError):  # on Windows the first Ctrl-C ends the command
        loop.add_signal_handler(signal.SIGINT, stop_once)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)


COMMANDS: dict[str, Callable[..., None]] = {"listen": listen}
