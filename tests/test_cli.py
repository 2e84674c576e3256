"""The command line as a newcomer uses it."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import RunningServer, running, wait_for
from tests.recordings import SPEECH_TEXT, encode, speech, spoken

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "eardrum"]


def eardrum(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


@pytest.fixture
def recordings(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "one.mp3", tmp_path / "two.webm"]
    for path in paths:
        path.write_bytes(encode(speech(), path.suffix[1:]))
    return [str(path) for path in paths]


def test_transcribe_without_a_server(recordings: list[str], tmp_path: Path) -> None:
    done = eardrum("transcribe", recordings[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, SPEECH_TEXT + "\n", "")
    out = tmp_path / "out"
    done = eardrum("transcribe", *recordings, "--format", "srt", "--output-dir", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["one.srt", "two.srt"]
    assert (out / "two.srt").read_text().startswith("1\n00:00:00,")


def test_transcribe_through_a_server(server: RunningServer, recordings: list[str]) -> None:
    done = eardrum("transcribe", recordings[0], "--server", server.address, "--format", "verbose_json")
    assert json.loads(done.stdout)["text"] == SPEECH_TEXT
    refused = eardrum("transcribe", recordings[0], "--server", server.address, "--language", "de")
    assert refused.returncode == 1
    assert "does not know german" in refused.stderr


def test_a_terminal_sees_progress(recordings: list[str]) -> None:
    main, terminal = pty.openpty()
    with subprocess.Popen([*COMMAND, "transcribe", recordings[0]], stdout=subprocess.PIPE, stderr=terminal, text=True) as done:
        os.close(terminal)
        shown: list[bytes] = []
        watching = Thread(target=watch, args=(main, shown))
        watching.start()
        assert done.stdout
        assert done.stdout.read() == SPEECH_TEXT + "\n"
        watching.join(20)
    os.close(main)
    assert b"one.mp3" in b"".join(shown)


def watch(terminal: int, shown: list[bytes]) -> None:
    with suppress(OSError):  # a terminal whose other end is closed ends with an error
        while data := os.read(terminal, 65536):
            shown.append(data)


def test_a_bad_file_does_not_stop_the_others(recordings: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp3"
    bad.write_text("not audio")
    done = eardrum("transcribe", str(bad), recordings[0])
    assert (done.returncode, done.stdout) == (1, SPEECH_TEXT + "\n")
    assert f"{bad}: The file cannot be decoded" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transcribe", "nowhere.mp3"], "There is no file nowhere.mp3."),
        (["serve", "--config", "nowhere.yaml"], "Cannot read the config file nowhere.yaml"),
        (["serve", "--set", "prot=1"], "Unknown setting prot. Did you mean port?"),
        (["serve", "--set", "default_model=large-v9"], "There is no model 'large-v9'"),
        (["serve", "--set", "default_engine=nobody"], "There is no engine 'nobody'"),
        (["list", "--set", "model_dir=/nowhere"], "model_dir /nowhere is not a directory"),
        (["transcribe", "pyproject.toml", "--server", "http://127.0.0.1:9"], "is `eardrum serve` running there?"),
    ],
)
def test_errors_are_one_sentence(arguments: list[str], says: str) -> None:
    done = eardrum(*arguments, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = eardrum("serve", "--port", str(port))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"Port {port} on 127.0.0.1 is taken" in done.stderr


def test_list_and_engines() -> None:
    listed = eardrum("list").stdout
    assert "moonshine-tiny-en (default)" in " ".join(listed.split())
    assert "embedded: nothing better is on disk" in listed
    assert "moonshine" in eardrum("engines").stdout


def test_serve_says_how_to_use_it() -> None:
    with running() as server:
        for part in ("moonshine-tiny-en", "The default is", "curl http://127.0.0.1:", "/docs", "nothing better is on disk"):
            assert part in server.log
        (curl,) = [line.split() for line in server.log.splitlines() if line.strip().startswith("curl")]
        said = subprocess.run([*curl[:1], "-s", *curl[1:]], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(said.stdout)["text"] == SPEECH_TEXT


def test_json_log() -> None:
    with running("--set", "log.format=json") as server:
        server.post(spoken("wav"))
        wait_for(lambda: '"eardrum.access"' in server.log)
        (line,) = [line for line in server.log.splitlines() if '"eardrum.access"' in line]
    entry = json.loads(line)
    assert (entry["status"], entry["model"], entry["audio_s"]) == (200, "moonshine-tiny-en", 17.94)
    assert {"request", "queue_s", "decode_s", "total_s"} <= set(entry)
