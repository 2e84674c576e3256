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

from eardrum.cli import gc_paused
from eardrum.cli.chunk_reader import ChunkReader
from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.cli.terminal import JsonDisplay, LineDisplay, LiveDisplay, TerminalDisplay
from eardrum.concurrency import run_in_background
from eardrum.errors import ConfigError, EardrumError

if TYPE_CHECKING:
    import aiohttp

    from eardrum.client import EardrumClient

NORMAL_CLOSE = 1000
"""The code with which a server closes that has nothing more to say."""


def listen(
    model: Annotated[str, typer.Option(help="Model or alias; the default model if left out.")] = "",
    language: Annotated[str, typer.Option(help="Language spoken, as a code; detected if left out.")] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Translate into English.")] = False,
    rate: Annotated[
        int | None, typer.Option(help="What is piped in is headerless s16le mono of so many Hz; else any format with a header.")
    ] = None,
    audio_track: Annotated[
        int | None,
        typer.Option(min=1, help="Which audio track of what is piped in, counted from 1; the default one if left out."),
    ] = None,
    microphone: Annotated[bool, typer.Option("--microphone", help="Listen to the microphone even if stdin is a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every message of the server as a line of JSON.")] = False,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Show what is said while it is said: by the microphone, or by the audio on stdin. Ctrl-C ends it."""
    with gc_paused():
        from eardrum.client import EardrumClient

    wanted = {"model": model, "language": language, "task": "translate" if translate else ""}
    screen: LiveDisplay = JsonDisplay() if as_json else LineDisplay()
    if sys.stdout.isatty() and not as_json:
        screen = TerminalDisplay(lambda: shutil.get_terminal_size().columns)
    microphone = microphone or sys.stdin.isatty()
    hint = "Listening; Ctrl-C ends it." if microphone else ""
    if audio_track and (rate or microphone):
        raise ConfigError("--audio-track is for files that are piped in: a microphone has one, and so has headerless audio.")
    wanted["audio_track"] = str(audio_track or "")
    with _open_source(rate, microphone=microphone) as (fd, format):
        config = {name: value for name, value in (wanted | format).items() if value}
        asyncio.run(_run_session(partial(EardrumClient, server, key, certificate), fd, config, screen, hint))


@contextmanager
def _open_source(rate: int | None, *, microphone: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Where the audio comes from, and what it is.

    Raises:
        ConfigError: there is no microphone, or what it needs is missing.
    """
    if not microphone:
        yield sys.stdin.fileno(), {"encoding": "s16le", "sample_rate": str(rate)} if rate else {"encoding": "container"}
        return
    if rate:
        raise ConfigError("--rate is for audio that is piped in: the microphone says itself what its rate is.")
    command = [sys.executable, "-m", "eardrum.cli.microphone"]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 -- in a session of its own, because Ctrl-C is for us
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
    said = [line for line in program.stderr.read().decode(errors="replace").split("\n") if line.strip()]
    return said[-1] if said else "The microphone broke off."


async def _run_session(
    client: Callable[[], EardrumClient], fd: int, config: Mapping[str, str], screen: LiveDisplay, hint: str
) -> None:
    """Send what comes from `fd`, and show what the server says, until both are over.

    Raises:
        EardrumError: the server cannot be reached, refuses, or fails.
    """
    async with client() as server, server.open_live_session() as socket:
        await socket.send_json({"type": "config", **config})
        pieces = ChunkReader(fd)
        with _handle_interrupt(pieces.stop):
            async with run_in_background(_send_audio(pieces, socket)):
                await _show_messages(socket, screen, hint)


async def _send_audio(pieces: ChunkReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    with suppress(ConnectionError):  # the server says why it hung up
        async for piece in pieces:
            await socket.send_bytes(piece)
        await socket.send_json({"type": "finish"})


async def _show_messages(socket: aiohttp.ClientWebSocketResponse, screen: LiveDisplay, hint: str) -> None:
    """Show what the server says until it closes.

    Raises:
        EardrumError: it did so before the end.
    """
    _write_text(screen.render_hint("Waiting for the server ..."))
    failure = ""
    async for message in socket:
        if failure:  # what came after it shows that it was not the end
            print(f"eardrum: {failure}", file=sys.stderr)
        said = json.loads(message.data)
        _write_text(screen.render_message(said))
        if said["type"] == "ready":
            _write_text(screen.render_hint(hint))
        failure = said["error"]["message"] if said["type"] == "error" else ""
        for warning in said.get("warnings", ()):
            print(f"eardrum: {warning}", file=sys.stderr)
    if failure or socket.close_code != NORMAL_CLOSE:
        raise EardrumError(failure or f"The server broke off (code {socket.close_code}): its log says why.")


def _write_text(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _handle_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C ends the audio, so that the last words still come; the second one ends everything."""
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    with suppress(NotImplementedError):  # of Windows' event loop: there the first one ends everything
        loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            loop.remove_signal_handler(signal.SIGINT)


COMMANDS: dict[str, Callable[..., None]] = {"listen": listen}
