"""The command line as a newcomer uses it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.commands import run_eardrum, start_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import PHONE, SPEECH_TEXT, create_tone, encode, encode_speech, encode_tracks, load_speech
from tests.transcripts import remove_logprobs
from tests.upstreams import FakeUpstream, fake_html, fake_upstream, fake_whisper_server
from tests.weights import MOONSHINE

pytestmark = pytest.mark.slow


@pytest.fixture
def recordings(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "one.mp3", tmp_path / "two.webm"]
    for path in paths:
        path.write_bytes(encode(load_speech(), path.suffix[1:]))
    return [str(path) for path in paths]


def test_transcribe_without_a_server(recordings: list[str], tmp_path: Path) -> None:
    done = run_eardrum("transcribe", recordings[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, SPEECH_TEXT + "\n", "")
    out = tmp_path / "out"
    done = run_eardrum("transcribe", *recordings, "--format", "srt", "--output-dir", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["one.srt", "two.srt"]
    assert (out / "two.srt").read_text().startswith("1\n00:00:00,")
    plain = (out / "two.srt").read_text()
    shape = ["--subtitles", "broadcast", "--max-line-width", "30"]
    done = run_eardrum("transcribe", recordings[1], "--format", "srt", "--output-dir", str(out), "--overwrite", *shape)
    assert done.returncode == 0, done.stderr
    shaped = (out / "two.srt").read_text()
    assert shaped.count("-->") > plain.count("-->")
    assert all(len(line) <= 30 for line in shaped.splitlines())


def test_transcribe_through_a_server(server: ServerUnderTest, recordings: list[str]) -> None:
    done = run_eardrum("transcribe", recordings[0], "--server", server.address, "--format", "verbose_json")
    assert json.loads(done.stdout)["text"] == SPEECH_TEXT
    refused = run_eardrum("transcribe", recordings[0], "--server", server.address, "--language", "de")
    assert refused.returncode == 1
    assert "does not support German" in refused.stderr


def test_one_of_several_audio_tracks(server: ServerUnderTest, tmp_path: Path) -> None:
    path = tmp_path / "recorded.mkv"
    path.write_bytes(encode_tracks(create_tone(18), load_speech()))
    for where in ([], ["--server", server.address]):
        done = run_eardrum("transcribe", str(path), "--audio-track", "2", "--format", "verbose_json", *where)
        said = json.loads(done.stdout)
        assert (said["text"], said["audio_track"], said["audio_tracks"]) == (SPEECH_TEXT, 2, 2)
        refused = run_eardrum("transcribe", str(path), "--audio-track", "3", *where)
        assert (refused.returncode, "2 audio tracks" in refused.stderr) == (1, True)


def test_a_shape_for_text_is_named(recordings: list[str]) -> None:
    done = run_eardrum("transcribe", recordings[0], "--max_line_width", "30")
    assert done.stdout == SPEECH_TEXT + "\n"
    assert "max_line_width" in done.stderr


def test_a_terminal_sees_progress_and_the_end_of_a_long_path(recordings: list[str], tmp_path: Path) -> None:
    path = tmp_path / ("far away" * 10) / "one.mp3"
    path.parent.mkdir()
    path.write_bytes(Path(recordings[0]).read_bytes())
    main, terminal = pty.openpty()
    with start_eardrum("transcribe", str(path), stdout=subprocess.PIPE, stderr=terminal, text=True) as done:
        os.close(terminal)
        shown: list[bytes] = []
        watching = Thread(target=watch_terminal, args=(main, shown))
        watching.start()
        assert done.stdout
        assert done.stdout.read() == SPEECH_TEXT + "\n"
        watching.join(60)
    os.close(main)
    assert b"one.mp3" in b"".join(shown)


def watch_terminal(terminal: int, shown: list[bytes]) -> None:
    with suppress(OSError):  # a terminal whose other end is closed ends with an error
        while data := os.read(terminal, 65536):
            shown.append(data)


def test_a_bad_file_does_not_stop_the_others(recordings: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp3"
    bad.write_text("not audio")
    done = run_eardrum("transcribe", str(bad), recordings[0])
    assert (done.returncode, done.stdout) == (1, SPEECH_TEXT + "\n")
    assert f"{bad}: The file cannot be decoded" in done.stderr


def test_what_could_not_be_decoded_is_said(server: ServerUnderTest, tmp_path: Path) -> None:
    short = tmp_path / "short.mp3"
    short.write_bytes(encode_speech("mp3")[: len(encode_speech("mp3")) // 2])
    for where in ([], ["--server", server.address]):
        done = run_eardrum("transcribe", str(short), *where)
        assert done.returncode == 0
        assert SPEECH_TEXT.startswith(done.stdout.strip()[:100])
        assert "short.mp3: The file breaks off at 9.0 s: its header promises 18.0 s." in done.stderr


def create_clips(count: int) -> list[bytes]:
    """Short recordings of a telephone, over and over."""
    files = sorted(PHONE.glob("*.flac"), key=lambda path: path.stat().st_size)[:12]
    return [files[number % len(files)].read_bytes() for number in range(count)]


def test_a_folder_is_done_but_for_what_cannot_be(tmp_path: Path) -> None:
    """60 recordings with the same stems. Tests run as root, who may read and write everything: so the file that cannot be
    read is a link to nothing, and the text that cannot be written has a folder in its place."""
    recordings, out = tmp_path / "in", tmp_path / "out"
    for number, clip in enumerate(create_clips(60)):
        path = recordings / f"day{number // 6 % 5}" / f"take{number % 3}.{('flac', 'wav')[number // 3 % 2]}"
        path = path.with_name(f"{number // 30}-{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip)
    everything = sorted(recordings.rglob("*.*"))
    assert len(everything) == 60
    for path, content in zip(everything[::11], (b"", b"no audio", b"{}", b"RIFF", b"ID3"), strict=False):
        path.write_bytes(content)
    everything[59].unlink()
    everything[59].symlink_to("nowhere")
    in_the_way = out / everything[1].relative_to(recordings).with_name(everything[1].name + ".txt")
    in_the_way.mkdir(parents=True)
    command = ["transcribe", str(recordings), "--output-dir", str(out)]

    done = run_eardrum(*command)
    failed = [line for line in done.stderr.splitlines() if line.startswith("eardrum: ")]
    results = [path for path in out.rglob("*") if path.is_file()]
    assert (done.returncode, done.stdout, len(failed), len(results)) == (1, "", 7, 53), done.stderr
    assert "Traceback" not in done.stderr
    assert "eardrum: " not in done.stderr.partition(failed[0])[0]
    assert done.stderr.splitlines()[-1].startswith("60 recordings: 53 transcribed (")
    assert all(path.read_text().strip() for path in results)

    before = {path: path.stat().st_mtime_ns for path in results}
    refused = run_eardrum(*command)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "use --skip-existing to leave out such recordings" in refused.stderr
    again = run_eardrum(*command, "--skip-existing")
    assert [line for line in again.stderr.splitlines() if line.startswith("eardrum: ")] == failed
    assert again.stderr.splitlines()[-1] == "60 recordings: 0 transcribed, 53 skipped (output exists), 7 failed."
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    results[0].unlink()
    assert "60 recordings: 1 transcribed (" in run_eardrum(*command, "--skip-existing").stderr
    assert results[0].is_file()


def test_pipes_and_several_formats(recordings: list[str], tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    writing = Thread(target=pipe.write_bytes, args=(Path(recordings[0]).read_bytes(),), daemon=True)
    writing.start()
    formats = ("--format", "srt", "--format", "text,verbose_json", "--output-dir", str(out))
    command = ["transcribe", "-", str(pipe), *formats]
    done = run_eardrum(*command, input=Path(recordings[1]).read_bytes(), text=False, check=True)
    writing.join()
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}.{suffix}" for name in ("pipe", "stdin") for suffix in ("json", "srt", "txt")
    ]
    assert (out / "stdin.txt").read_text().strip() == (out / "pipe.txt").read_text().strip() == SPEECH_TEXT
    heard = json.loads((out / "pipe.json").read_text())
    assert len(heard["segments"]) == (out / "pipe.srt").read_text().count("-->")
    assert b"2 recordings: 2 transcribed (" in done.stderr


def test_several_formats_of_a_server_are_one_request(server: ServerUnderTest, recordings: list[str], tmp_path: Path) -> None:
    formats = ("text", "json", "srt", "vtt", "verbose_json")
    command = ["transcribe", recordings[0], "--server", server.address, "--hotwords", "Dashwood"]
    before = server.log.count("POST /v1/audio/transcriptions")
    done = run_eardrum(*command, "--format", ",".join(formats), "--output-dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "hotwords has no effect: the model does not support it.\n")
    wait_for(lambda: server.log.count("POST /v1/audio/transcriptions") > before)
    assert server.log.count("POST /v1/audio/transcriptions") == before + 1
    names = {"text": "one.txt", "json": "one.json", "srt": "one.srt", "vtt": "one.vtt", "verbose_json": "one.verbose.json"}
    for format in formats:
        alone = run_eardrum(*command, "--format", format.replace("text", "txt")).stdout
        assert remove_logprobs((tmp_path / names[format]).read_text()) == remove_logprobs(alone)


def write_config(folder: Path, upstream: FakeUpstream, **settings: object) -> list[str]:
    """Write a config with one model that has word times, another server's. Returns the arguments that name it."""
    model = {"proxy": upstream.url, "capabilities": {"in": ["audio"], "out": ["text"]}}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"default_model": "other", "models": {"other": model}, **settings}))
    return ["--config", str(config)]


def test_subtitles_beside_other_formats_are_those_of_one_format(tmp_path: Path) -> None:
    """Cues follow the words' times, and the server's rules hold where the command has none."""
    recording = tmp_path / "one.wav"
    recording.write_bytes(encode(load_speech(), "wav"))
    with (
        fake_upstream(fake_whisper_server) as other,
        run_server(*write_config(tmp_path, other, subtitles={"max_words_per_line": 1})) as server,
    ):
        for number, rules in enumerate(([], ["--max-words-per-line", "2"], ["--highlight-words"], ["--subtitles", "none"])):
            out = tmp_path / f"out{number}"
            command = ["transcribe", str(recording), "--server", server.address, *rules]
            done = run_eardrum(*command, "--format", "srt,vtt,json,verbose_json", "--output-dir", str(out))
            assert (done.returncode, done.stderr) == (0, "")
            for format in ("srt", "vtt"):
                alone = run_eardrum(*command, "--format", format).stdout
                assert (out / f"one.{format}").read_text().strip() == alone.strip()
            assert json.loads((out / "one.verbose.json").read_text()).keys() == VERBOSE_FIELDS
        assert "\n00:00:00,200 --> 00:00:00,500\nAnd\n" in (tmp_path / "out0/one.srt").read_text()
        with_words = ("--words", "--format", "srt,verbose_json", "--output-dir", str(tmp_path))
        assert run_eardrum(*command, *with_words).returncode == 0
        assert json.loads((tmp_path / "one.json").read_text()).keys() == VERBOSE_FIELDS | {"words"}


VERBOSE_FIELDS = {"task", "language", "duration", "text", "segments", "usage"}


def test_subtitles_of_an_upstream_have_times_beside_any_format(tmp_path: Path) -> None:
    """The first format is one without times, for which an upstream is asked for the text alone."""
    recording = tmp_path / "one.wav"
    recording.write_bytes(encode(load_speech(), "wav"))
    with fake_upstream(fake_whisper_server) as other:
        command = ["transcribe", str(recording), *write_config(tmp_path, other)]
        done = run_eardrum(*command, "--format", "text,srt", "--output-dir", str(tmp_path))
        assert done.returncode == 0, done.stderr
        alone = run_eardrum(*command, "--format", "srt").stdout
        assert (tmp_path / "one.srt").read_text().strip() == alone.strip()


def test_an_answer_that_is_no_transcript_is_named(recordings: list[str], tmp_path: Path) -> None:
    with fake_upstream(fake_html) as other:
        command = ("transcribe", recordings[0], "--server", other.url, "--format", "srt,json", "--output-dir", str(tmp_path))
        done = run_eardrum(*command)
    assert done.returncode == 1
    assert f"one.mp3: Another program than Eardrum answers at {other.url}: check the address." in done.stderr


def test_a_folder_may_stand_in_a_models_place(recordings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(MOONSHINE, folder)
    assert run_eardrum("transcribe", recordings[0], "--model", str(folder)).stdout == SPEECH_TEXT + "\n"
    assert "mine (default)" in " ".join(run_eardrum("list", "--set", f"default_model={folder}").stdout.split())
    for variable in ("WHISPER_MODEL", "STT_DEFAULT_MODEL", "EARDRUM_DEFAULT_MODEL"):
        assert "mine (default)" in " ".join(run_eardrum("list", env=os.environ | {variable: str(folder)}).stdout.split())
    assert "Moonshine" in run_eardrum("show", str(folder)).stdout
    refused = run_eardrum("transcribe", recordings[0], "--model", str(folder), "--language", "de")
    assert refused.returncode == 1
    assert "mine does not support German" in refused.stderr
    for path, says in ((tmp_path, "No engine recognises"), (tmp_path / "nowhere", "There is no model at")):
        assert says in run_eardrum("transcribe", recordings[0], "--model", str(path)).stderr
    assert (
        "a server has models by name" in run_eardrum("transcribe", recordings[0], "--model", str(folder), "--server", "x").stderr
    )


def test_a_runners_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_eardrum("runner", "moonshine-tiny-en", "--listen", f"127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (
        1,
        f"eardrum: Port {port} on 127.0.0.1 is taken: stop the program that uses it, or choose another with --listen.\n",
    )


def test_subtitles_on_a_terminal_do_not_run_together(recordings: list[str]) -> None:
    shown = run_eardrum("transcribe", *recordings, "--format", "srt").stdout
    for recording, document in zip(recordings, shown.split("==> ")[1:], strict=True):
        head, _, cues = document.partition("\n\n")
        assert head == f"{recording} <=="
        assert cues.startswith("1\n00:00:00,")
        assert cues.endswith("\n\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["transcribe", "nowhere.mp3"], "There is no file nowhere.mp3."),
        (["transcribe", "pyproject.toml", "--format", "srt,vtt"], "Several formats need --output-dir"),
        (["transcribe", "pyproject.toml", "--skip-existing"], "--skip-existing needs --output-dir"),
        (["transcribe", "pyproject.toml", "--words", "--format", "verbose_json"], "gives times per segment but not per word"),
        (["transcribe", "pyproject.toml", "--words"], "--words needs --format verbose_json"),
        (["transcribe", "pyproject.toml", "--diarize"], "--diarize needs --format srt, vtt or verbose_json"),
        (["transcribe", ""], "An input is empty"),
        (["serve", "--config", "nowhere.yaml"], "Cannot read the config file nowhere.yaml"),
        (["serve", "--set", "prot=1"], "Unknown setting prot. Did you mean port?"),
        (["serve", "--set", "default_model=large-v9"], "There is no model 'large-v9'"),
        (["serve", "--set", "default_engine=nobody"], "There is no engine 'nobody'"),
        (["list", "--set", "model_dir=/nowhere"], "model_dir /nowhere is not a directory"),
        (["transcribe", "pyproject.toml", "--server", "http://127.0.0.1:9"], "is `eardrum serve` running there?"),
    ],
)
def test_errors_are_one_sentence(arguments: list[str], says: str) -> None:
    done = run_eardrum(*arguments, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_no_type_beside_a_flag() -> None:
    assert "<bool>" not in run_eardrum("serve", "--help").stdout + run_eardrum("transcribe", "--help").stdout


@pytest.mark.parametrize(("variables", "colored"), [({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)])
def test_errors_are_red_on_a_terminal(variables: dict[str, str], colored: bool) -> None:
    main, terminal = pty.openpty()
    try:
        run_eardrum("show", "nobody", stderr=terminal, env=os.environ | variables)
        shown = os.read(main, 1000)
    finally:
        os.close(main)
        os.close(terminal)
    assert (b"\x1b[31m" in shown) is colored
    assert b"eardrum:" in shown


def test_a_format_that_names_none_is_refused() -> None:
    done = run_eardrum("transcribe", "pyproject.toml", "--format", ",", cwd=Path(__file__).parent.parent)
    assert (done.returncode, "Name at least one of text, srt" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_streams_may_be_closed_or_know_few_letters(recordings: list[str], tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.webm"
    Path(os.fsdecode(odd)).write_bytes(Path(recordings[1]).read_bytes())
    command = b"%b -m eardrum transcribe --format srt %b %b - <&- 2>&-"
    line = command % (os.fsencode(sys.executable), odd, os.fsencode(recordings[0]))
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([b"sh", b"-c", line], capture_output=True, timeout=120, env=env, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.count(b"-->") >= 2
    assert b"caf\\udce9.webm <==" in done.stdout


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_eardrum("serve", "--port", str(port))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"Port {port} on 127.0.0.1 is taken" in done.stderr


def test_list_and_engines() -> None:
    listed = run_eardrum("list").stdout
    assert "moonshine-tiny-en (default)" in " ".join(listed.split())
    assert "the embedded model, as no other is installed" in listed
    assert "moonshine" in run_eardrum("engines").stdout


def try_printed_command(server: ServerUnderTest, **variables: str) -> str:
    """What comes of the line that the server printed, in a shell."""
    server.wait_for_log("  curl ")
    (line,) = [line.strip() for line in server.log.splitlines() if line.strip().startswith("curl")]
    env = {**os.environ, **variables}
    said = subprocess.run(line.replace("curl", "curl -s", 1), shell=True, capture_output=True, timeout=60, check=True, env=env)
    answer: str = json.loads(said.stdout)["text"]
    return answer


def test_serve_says_how_to_use_it() -> None:
    with run_server("--set", "models.best.source=large-v3") as server:
        for part in (
            "moonshine-tiny-en",
            "moonshine-tiny-en (default)",
            "The default model is moonshine-tiny-en: ",
            "curl http://127.0.0.1:",
            "/docs",
            "the embedded model, as no other is installed",
        ):
            server.wait_for_log(part)
        (absent,) = [line for line in server.log.splitlines() if line.strip().startswith("best ")]
        assert absent.endswith("config, not on this machine: `eardrum pull large-v3`)")
        assert "not on this machine" not in server.log.replace(absent, "")
        assert try_printed_command(server) == SPEECH_TEXT


def test_what_serve_says_works_with_keys_and_tells_none_in_a_log() -> None:
    with run_server("--set", "api_keys=[sesame]") as server:
        assert try_printed_command(server, EARDRUM_KEY="sesame") == SPEECH_TEXT
        assert "sesame" not in server.log


def test_json_log() -> None:
    with run_server("--set", "log.format=json") as server:
        server.post_audio(encode_speech("wav"))
        server.wait_for_log('"eardrum.access"')
        (line,) = [line for line in server.log.splitlines() if '"eardrum.access"' in line]
    entry = json.loads(line)
    assert (entry["status"], entry["model"], entry["audio_s"]) == (200, "moonshine-tiny-en", 17.94)
    assert {"request", "queue_s", "decode_s", "total_s"} <= set(entry)
    assert 0.0 < entry["model_wait_s"] <= entry["total_s"], "the request loaded the model"
