"""The command `say` writes its file completely or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from eardrum.cli import main
from eardrum.cli.say import write_audio
from eardrum.errors import ConfigError, EardrumError
from tests.upstreams import UpstreamCall, fake_upstream


async def speak(*, fails: bool = False) -> AsyncGenerator[bytes, None]:
    yield b"one"
    if fails:
        raise EardrumError("The model failed.")
    yield b"two"


async def test_a_file_is_replaced_and_a_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "said.mp3", tmp_path / "link.mp3"
    target.write_bytes(b"before")
    link.symlink_to(target)
    await write_audio(speak(), link)
    assert target.read_bytes() == b"onetwo"
    assert link.is_symlink()


async def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "said.mp3"
    target.write_bytes(b"before")
    with pytest.raises(EardrumError):
        await write_audio(speak(fails=True), target)
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]  # noqa: ASYNC240 -- a test


async def test_a_pipe_gets_the_audio_and_stays(tmp_path: Path) -> None:
    """As root a device such as /dev/null would be replaced by a file."""
    pipe = tmp_path / "pipe.mp3"
    os.mkfifo(pipe)
    reading = asyncio.get_running_loop().run_in_executor(None, pipe.read_bytes)
    async with asyncio.timeout(60):
        await write_audio(speak(), pipe)
        assert await reading == b"onetwo"
    assert pipe.is_fifo()


def test_a_text_of_an_editor_on_windows(tmp_path: Path) -> None:
    async def give(_: UpstreamCall, __: web.Request) -> web.Response:
        return web.Response(body=b"sound")

    with fake_upstream(give) as server:
        command = ["say", "-o", str(tmp_path / "said.mp3"), "--server", server.url]
        assert CliRunner().invoke(main.app, command, input=b"\xef\xbb\xbf# Title\r\n").exit_code == 0
    assert server.calls[0].json["input"] == "# Title\r\n"


@pytest.mark.parametrize("name", ["missing/said.mp3", "folder.mp3"])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.logging_setup.configure_logging", lambda *_: None)
    (tmp_path / "folder.mp3").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written: (No such file|Is a directory)"):
        main.app(["say", "Hello.", "-o", str(tmp_path / name)], standalone_mode=False)


@pytest.mark.parametrize(("words", "piped"), [([], b""), (["-"], b" \n"), ([""], b""), ([" "], b"")])
def test_a_missing_text_is_refused_in_the_commands_words(tmp_path: Path, words: list[str], piped: bytes) -> None:
    done = CliRunner().invoke(
        main.app, ["say", *words, "-o", str(tmp_path / "a.mp3"), "--server", "http://127.0.0.1:9"], input=piped
    )
    assert isinstance(done.exception, ConfigError)
    assert done.exception.message.startswith("There is no text: give it as an argument")
