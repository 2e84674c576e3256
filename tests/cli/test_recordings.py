"""Which recordings are meant by what stands on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from eardrum.cli.recordings import find_recordings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that tests are in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"audio")


def list_found(*inputs: str) -> list[str]:
    recordings, failures = find_recordings(inputs)
    assert not failures
    return [str(recording.path) for recording in recordings]


def list_failed(*inputs: str) -> list[tuple[str, str]]:
    return [(failure.name, failure.reason) for failure in find_recordings(inputs)[1]]


def test_a_folder_is_all_audio_and_video_below_it() -> None:
    write_files("in/b.MP3", "in/a.wav", "in/sub/deeper/c.mkv", "in/notes.txt", "in/.hidden.wav", "in/.cache/d.wav", "in/._a.wav")
    assert list_found("in") == ["in/a.wav", "in/b.MP3", "in/sub/deeper/c.mkv"]
    recordings, _ = find_recordings(["in"])
    assert [str(recording.relative_path) for recording in recordings] == ["a.wav", "b.MP3", "sub/deeper/c.mkv"]


def test_a_named_file_may_be_called_as_it_likes() -> None:
    write_files("notes.txt", "in/voice")
    assert list_found("notes.txt", "in/voice") == ["notes.txt", "in/voice"]


def test_patterns_are_understood_where_no_shell_did_that() -> None:
    write_files("a.wav", "b.mp3", "sub/c.wav", "sub/d.wav")
    assert list_found("*.wav") == ["a.wav"]
    assert list_found("**/*.wav") == ["a.wav", "sub/c.wav", "sub/d.wav"]
    assert list_found("su*") == ["sub/c.wav", "sub/d.wav"]
    assert list_failed("*.flac") == [("*.flac", "No file matches this pattern.")]


def test_a_name_that_looks_like_a_pattern_is_a_name_if_there_is_such_a_file() -> None:
    write_files("take [1].wav", "take 1.wav")
    assert list_found("take [1].wav") == ["take [1].wav"]


def test_a_name_may_begin_as_a_home_folder_does(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    write_files("~backup.wav", "~$talk.wav", "home/a.wav")
    assert list_found("~backup.wav", "~$talk.wav") == ["~backup.wav", "~$talk.wav"]
    assert list_failed("~nobody-has-this-name/a.wav") == [
        ("~nobody-has-this-name/a.wav", "There is no file ~nobody-has-this-name/a.wav.")
    ]
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert list_found("~/a.wav", "~/*.wav") == [str(folder / "home" / "a.wav")]


@pytest.mark.parametrize("inputs", [["a.wav", "a.wav"], ["a.wav", "./a.wav"], [".", "a.wav"], ["*.wav", "sub/../a.wav"]])
def test_what_is_named_twice_is_one_recording(inputs: Sequence[str]) -> None:
    write_files("a.wav", "sub/none.txt")
    assert len(list_found(*inputs)) == 1


def test_links_to_folders_are_followed_and_circles_are_not() -> None:
    write_files("elsewhere/a.wav", "in/b.wav")
    Path("in/link").symlink_to(Path("elsewhere").absolute())
    Path("elsewhere/back").symlink_to(Path("in").absolute())
    assert list_found("in") == ["in/b.wav", "in/link/a.wav"]


def test_what_cannot_be_had_is_told_and_the_rest_is_found() -> None:
    write_files("in/a.wav")
    Path("empty").mkdir()
    Path("in/lost.wav").symlink_to("nowhere")
    recordings, failures = find_recordings(["in", "missing.wav", "empty", "in/lost.wav"])
    assert [recording.name for recording in recordings] == ["in/a.wav"]
    assert [(failure.name, failure.reason) for failure in failures] == [
        ("in/lost.wav", "The link is broken: nowhere does not exist."),
        ("missing.wav", "There is no file missing.wav."),
        ("empty", "This folder has no audio or video file."),
        ("in/lost.wav", "The link is broken: nowhere does not exist."),
    ]


def test_pipes_and_stdin_are_read_once() -> None:
    os.mkfifo("pipe")
    recordings, failures = find_recordings(["pipe", "-", "-"])
    assert not failures
    assert [(recording.name, recording.is_piped) for recording in recordings] == [("pipe", True), ("stdin", True)]


def test_files_may_have_the_names_of_stdin() -> None:
    write_files("stdin", "-")
    recordings, failures = find_recordings(["stdin", "./-", "-", "stdin", "-"])
    assert not failures
    assert [recording.is_piped for recording in recordings] == [False, False, True]


def test_a_pipe_in_a_folder_is_not_waited_for() -> None:
    write_files("in/a.wav")
    os.mkfifo("in/pipe.wav")
    assert list_failed("in") == [("in/pipe.wav", "This is a pipe or device: name it on the command line to read from it.")]
