"""`eardrum listen` against a real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR
from threading import Thread

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.commands import run_eardrum, start_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import SAMPLE, SPEECH_TEXT, create_tone, encode_pcm, encode_tracks, load_speech

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

LINES = SPEECH_TEXT.replace(". H", ".\nH") + "\n"
FIRST = SPEECH_TEXT.split(". Had")[0] + "."


def run_listen(*arguments: str, audio: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run_eardrum("listen", *arguments, input=audio, text=False)


def test_what_is_piped_in_becomes_lines(server: ServerUnderTest) -> None:
    done = run_listen("--server", server.address, audio=SAMPLE.read_bytes())
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, LINES, b"")


def test_sound_that_breaks_off_is_said_to(server: ServerUnderTest) -> None:
    done = run_listen("--server", server.address, audio=SAMPLE.read_bytes()[:-20_000])
    assert done.returncode == 0
    assert done.stdout.decode().startswith(FIRST)
    assert b"breaks off" in done.stderr


def test_headerless_sound_needs_its_rate(server: ServerUnderTest) -> None:
    done = run_listen("--server", server.address, "--rate", "16000", "--language", "en", audio=encode_pcm(load_speech()))
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, LINES, b"")


def test_json_is_what_the_server_says(server: ServerUnderTest) -> None:
    done = run_listen("--server", server.address, "--json", audio=SAMPLE.read_bytes())
    said = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert said[0]["type"] == "ready"
    assert said[-1]["type"] == "done"
    assert " ".join(message["text"] for message in said if message["type"] == "final") == SPEECH_TEXT


def test_one_of_several_audio_tracks_is_listened_to(server: ServerUnderTest) -> None:
    data = encode_tracks(create_tone(18), load_speech())
    done = run_listen("--server", server.address, "--audio-track", "2", audio=data)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, LINES, b"")
    refused = run_listen("--server", server.address, "--audio-track", "3", audio=data)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"2 audio tracks" in refused.stderr


def test_a_file_is_piped_in_as_well_as_a_pipe(server: ServerUnderTest) -> None:
    with SAMPLE.open("rb") as file:
        done = run_eardrum("listen", "--server", server.address, stdin=file)
    assert done.stdout == LINES


def test_sound_that_cannot_be_read_is_an_error(server: ServerUnderTest) -> None:
    with Path("/proc/self/mem").open("rb") as broken:  # as a device that was unplugged
        done = run_eardrum("listen", "--server", server.address, stdin=broken)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "eardrum: The audio cannot be read: Input/output error.\n"


def test_ctrl_c_ends_it_with_the_last_words(server: ServerUnderTest) -> None:
    pipe = subprocess.PIPE
    command = ("listen", "--server", server.address, "--rate", "16000", "--json")
    with start_eardrum(*command, stdin=pipe, stdout=pipe, stderr=pipe) as program:
        assert program.stdin
        assert program.stdout
        assert json.loads(program.stdout.readline())["type"] == "ready"
        program.stdin.write(encode_pcm(load_speech()[: 6 * 16_000]))
        program.stdin.flush()
        assert json.loads(program.stdout.readline())["type"] == "speech_started"
        program.send_signal(signal.SIGINT)  # the pipe stays open: nobody ends the audio but this
        said = [json.loads(line) for line in program.stdout.read().decode().splitlines()]
        assert [message["type"] for message in said[-2:]] == ["final", "done"]
        text = said[-2]["text"].rstrip(".")  # how much of the six seconds was read before the signal is chance
        assert text.startswith("And Mr. John Dashwood")
        assert FIRST.startswith(text[:60].rpartition(" ")[0])  # the signal may come in the middle of a word
        assert program.wait(60) == 0
        program.stdin.close()
        assert program.stderr
        assert program.stderr.read() == b""


def test_a_terminal_shows_text_while_it_comes(server: ServerUnderTest) -> None:
    ours, theirs = pty.openpty()
    pipe = subprocess.PIPE
    command = ("listen", "--server", server.address, "--rate", "16000")
    with start_eardrum(*command, stdin=pipe, stdout=theirs, stderr=pipe) as program:
        os.close(theirs)
        shown = bytearray()
        reader = Thread(target=_read_terminal, args=(ours, shown))
        reader.start()
        assert program.stdin
        audio = encode_pcm(load_speech()[: int(7.5 * 16_000)])
        for start in range(0, len(audio), 3200):
            program.stdin.write(audio[start : start + 3200])
            program.stdin.flush()
            time.sleep(0.05)
        program.stdin.close()
        assert program.wait(60) == 0
        reader.join()
    os.close(ours)
    text = shown.decode()
    assert text.count("\r\x1b[K") > 2
    assert "\x1b[2m" in text.split(FIRST)[0]  # what may still change
    assert text.endswith(f"\r\x1b[K{FIRST}\r\n\r\x1b[K")


def _read_terminal(fd: int, into: bytearray) -> None:
    while True:
        try:
            into += os.read(fd, 4096)
        except OSError:
            return  # so does a terminal end


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "nope"], "There is no model 'nope'"),
        (["--language", "de"], "does not support German"),
        (["--translate"], "does not translate"),
        (["--rate", "5"], "sample_rate must be"),
        (["--audio-track", "2", "--rate", "16000"], "--audio-track is for piped files"),
    ],
)
def test_what_cannot_be_is_one_sentence(server: ServerUnderTest, arguments: list[str], sentence: str) -> None:
    done = run_listen("--server", server.address, *arguments, audio=bytes(32_000))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().startswith("eardrum: ")
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_noise_is_no_recording(server: ServerUnderTest) -> None:
    done = run_listen("--server", server.address, audio=os.urandom(100_000))
    assert done.returncode == 1
    assert b"cannot be decoded" in done.stderr


def test_a_server_that_is_not_there_is_said_to_be() -> None:
    done = run_listen("--server", "http://127.0.0.1:9", audio=b"x")
    assert done.returncode == 1
    assert b"is `eardrum serve` running there?" in done.stderr


def test_a_key_that_is_missing_is_asked_for() -> None:
    with run_server("--set", "api_keys=[sk-one]") as server:
        done = run_listen("--server", server.address, audio=SAMPLE.read_bytes())
        assert (done.returncode, b"--key" in done.stderr) == (1, True)
        done = run_listen("--server", server.address, "--key", "sk-one", audio=SAMPLE.read_bytes())
        assert done.stdout.decode() == LINES


def test_a_server_that_dies_is_told_of() -> None:
    def dies(socket: ServerConnection) -> None:
        socket.recv()
        socket.send(json.dumps({"type": "ready"}))
        socket.socket.shutdown(SHUT_RDWR)

    with serve(dies, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        done = run_listen("--server", f"http://127.0.0.1:{server.socket.getsockname()[1]}", audio=SAMPLE.read_bytes())
        server.shutdown()
        thread.join()
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"closed the connection early" in done.stderr


def test_a_second_ctrl_c_does_not_wait() -> None:
    def never_ends(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            while "finish" not in str(socket.recv()):
                pass
            socket.send(json.dumps({"type": "finishing"}))
            socket.recv()

    with serve(never_ends, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        pipe = subprocess.PIPE
        command = ("listen", "--json", "--server", f"http://127.0.0.1:{server.socket.getsockname()[1]}")
        with start_eardrum(*command, stdin=pipe, stdout=pipe, stderr=pipe) as program:
            assert program.stdin
            assert program.stdout
            program.stdin.write(b"x")
            program.stdin.close()
            assert json.loads(program.stdout.readline())["type"] == "finishing"
            program.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert program.poll() is None
            program.send_signal(signal.SIGINT)
            assert program.wait(60) != 0
            assert program.stderr
            assert b"Traceback" not in program.stderr.read()
        server.shutdown()
        thread.join()


def test_a_microphone_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise ImportError('no such module')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = run_eardrum("listen", "--microphone", env=environment)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install 'eardrum[microphone]'.")
    assert done.stderr.count("\n") == 1


PROGRAM = """
import time
class PortAudioError(Exception): pass
def check_input_settings(**_): pass
class RawInputStream:
    def __init__(self, samplerate, **_):
        assert samplerate == 16000
        self.audio = open({audio!r}, "rb")
    def __enter__(self): return self
    def __exit__(self, *_): self.audio.close()
    def read(self, size):
        time.sleep(0.02)
        return self.audio.read(2 * size).ljust(2 * size, b"\\0"), False
"""
"""What `sounddevice` is, as far as we use it, for machines without sound: a microphone that hears a file, five times too fast."""


def test_the_microphone_is_listened_to_until_ctrl_c(server: ServerUnderTest, tmp_path: Path) -> None:
    (tmp_path / "audio").write_bytes(encode_pcm(load_speech()[: int(7.5 * 16_000)]))
    (tmp_path / "sounddevice.py").write_text(PROGRAM.format(audio=str(tmp_path / "audio")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    pipe = subprocess.PIPE
    command = ("listen", "--microphone", "--server", server.address)
    with start_eardrum(*command, env=environment, stdout=pipe, stderr=pipe) as program:
        assert program.stdout
        assert program.stdout.readline().decode() == f"{FIRST}\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 0
        assert program.stdout.read() == b""
        assert program.stderr
        assert program.stderr.read().decode() == ""
    wait_for(lambda: not _list_microphones())


def _list_microphones() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"eardrum.cli.microphone" in entry.read_bytes():
                found.append(str(entry))
        except OSError:
            continue
    return found
