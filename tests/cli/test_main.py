"""Where client commands look for their server, and how commands explain themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer.main
from aiohttp import web
from typer.testing import CliRunner

from eardrum import config
from eardrum.cli import main
from eardrum.client import EardrumClient, get_default_address
from eardrum.errors import ConfigError, EardrumError
from tests.commands import run_eardrum
from tests.upstreams import UpstreamCall, fake_upstream

pytestmark = pytest.mark.slow


CLIENT = {"EARDRUM_SERVER": "gpu-box:9", "EARDRUM_KEY": "sesame", "EARDRUM_CERTIFICATE": "box.pem"}


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "http://127.0.0.1:8100"),
        ({"EARDRUM_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"EARDRUM_PORT": "9000", "EARDRUM_HOST": "0.0.0.0"}, "http://127.0.0.1:9000"),
        ({"EARDRUM_HOST": "192.168.1.5"}, "http://192.168.1.5:8100"),
        ({"EARDRUM_HOST": "::1", "EARDRUM_PORT": "1"}, "http://[::1]:1"),
        ({"EARDRUM_TLS_CERTIFICATE": "box.pem"}, "https://127.0.0.1:8100"),
        ({"EARDRUM_PORT": "", "EARDRUM_HOST": ""}, "http://127.0.0.1:8100"),
    ],
)
def test_the_server_is_where_one_with_this_environment_would_listen(environment: Mapping[str, str], address: str) -> None:
    assert get_default_address(environment) == address


@pytest.mark.parametrize("port", ["0", "x", "-1", "65536"])
def test_a_port_that_is_none_is_named(port: str) -> None:
    with pytest.raises(ConfigError, match=f"EARDRUM_PORT is '{port}'"):
        get_default_address({"EARDRUM_PORT": port})


@pytest.mark.parametrize("command", [["ps"], ["load", "m"], ["stop", "m"], ["stop", "--all"], ["logs"], ["logs", "-f"]])
def test_client_commands_take_address_and_key_from_the_environment(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, Path | None]] = []

    def seen(_: EardrumClient, address: str, key: str = "", certificate: Path | None = None) -> None:
        asked.append((address, key, certificate))
        raise ConfigError("enough")

    monkeypatch.setattr(EardrumClient, "__init__", seen)
    CliRunner().invoke(main.app, command, env=CLIENT, input="")
    CliRunner().invoke(main.app, [*command, "--server", "here:1", "--key", "k"], env=CLIENT, input="")
    assert asked == [("gpu-box:9", "sesame", Path("box.pem")), ("here:1", "k", Path("box.pem"))]


def test_listen_and_transcribe_do_so_too() -> None:
    for command in (["listen"], ["transcribe", __file__]):
        done = run_eardrum(*command, input="", env=os.environ | {"EARDRUM_SERVER": "127.0.0.1:9"})
        assert "No answer from http://127.0.0.1:9" in done.stderr


def test_what_is_for_clients_is_no_setting_of_a_server() -> None:
    assert config.load_settings(environment=CLIENT) == config.load_settings(environment={})


def list_commands() -> list[str]:
    return sorted(typer.main.get_command(main.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list_commands())
def test_every_command_explains_itself(name: str) -> None:
    for arguments in ([name, "-h"], [name, "--help"], ["help", name]):
        shown = CliRunner().invoke(main.app, arguments, prog_name="eardrum")
        assert shown.exit_code == 0
        assert f"Usage: eardrum {name}" in shown.output
    assert name in CliRunner().invoke(main.app, ["help"]).output


def test_help_for_what_is_no_command() -> None:
    shown = CliRunner().invoke(main.app, ["help", "nothing"])
    assert shown.exit_code == 2
    assert "No such command 'nothing'" in shown.output


def test_defaults_are_shown() -> None:
    shown = CliRunner().invoke(main.app, ["help", "serve"], env={"COLUMNS": "300"}).output
    for default in ("127.0.0.1", "8100", "10300", "on, unless api_keys are set"):
        assert f"[default: ({default})]" in shown


@pytest.mark.parametrize("name", list_commands())
def test_help_shows_no_python_types(name: str) -> None:
    shown = CliRunner().invoke(main.app, ["help", name], env={"COLUMNS": "300"}).output
    assert [line for line in shown.splitlines() if re.search(r"<(str|int|float|bool|path|list\[\w+\])\b", line)] == []


def test_options_may_be_written_with_underscores() -> None:
    refused = CliRunner().invoke(
        main.app, ["transcribe", "a.wav", "--max_line_width", "0", "--highlight_words", "--audio_track", "0"]
    )
    assert "Invalid value for '--audio-track'" in refused.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    def said(**variables: str) -> str:
        command = [sys.executable, "-m", "eardrum"]
        env = {**os.environ, **variables}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=True).stdout

    assert "_EARDRUM_COMPLETE=complete_" + shell in said(_EARDRUM_COMPLETE=f"source_{shell}")
    words = {"COMP_WORDS": "eardrum tr", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "eardrum tr"}
    fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "transcribe" in said(_EARDRUM_COMPLETE=f"complete_{shell}", **words, **fish)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["ps"], "<html>a router</html>"),
        (["ps"], '{"models": [{"name": "llama3", "model": "llama3", "size": 1}]}'),
        (["jobs", "list"], "[]"),
        (["jobs", "show", "j"], "{}"),
        (["load", "m"], '{"status": "ok"}'),
        (["keys"], "null"),
    ],
)
def test_another_program_at_the_address_is_an_error(command: list[str], answer: str) -> None:
    async def give(_: UpstreamCall, __: web.Request) -> web.Response:
        return web.Response(text=answer)

    with fake_upstream(give) as stranger:
        done = CliRunner().invoke(main.app, [*command, "--server", stranger.url])
    assert isinstance(done.exception, EardrumError), done.exception
    assert done.exception.message == f"Another program than Eardrum answers at {stranger.url}: check the address."


@pytest.mark.parametrize(("command", "content"), [(["jobs", "export", "j"], "the result"), (["say", "Hello."], "the audio")])
def test_output_that_cannot_be_written_is_an_error(command: list[str], content: str) -> None:
    async def give(call: UpstreamCall, _: web.Request) -> web.Response:
        is_job = call.path.startswith("/api/jobs/j?")
        return web.Response(text='{"id": "j", "kind": "recording"}' if is_job else "0123456789" * 2000)

    with fake_upstream(give) as server, Path("/dev/full").open("wb") as full:
        done = run_eardrum(*command, "--server", server.url, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == f"eardrum: Cannot write {content} to stdout: No space left on device.\n"


def test_a_recording_whose_name_is_not_utf8_is_sent(tmp_path: Path) -> None:
    async def give(_: UpstreamCall, __: web.Request) -> web.Response:
        return web.Response(text="Hello.")

    recording = tmp_path / os.fsdecode(b"K\xf6ln.wav")
    recording.write_bytes(b"sound")
    with fake_upstream(give) as server:
        done = CliRunner().invoke(main.app, ["transcribe", str(recording), "--server", server.url])
    assert (done.exit_code, done.stdout) == (0, "Hello.\n"), done.output
    assert [call.file for call in server.calls] == [b"sound"]
