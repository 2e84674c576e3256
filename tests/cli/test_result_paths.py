"""Where results go."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest

from eardrum.cli.recordings import check_writable, find_recordings, list_existing, plan_outputs, write_result
from eardrum.errors import ConfigError

OUT = Path("out")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that tests are in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_results(*inputs: str, formats: Sequence[str] = ("srt",)) -> list[str]:
    recordings, _ = find_recordings(inputs)
    targets = plan_outputs(recordings, formats, OUT)
    return [str(path.relative_to(OUT)) for each in targets for path in each.values()]


def write_files(*names: str) -> list[str]:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"audio")
    return list(names)


@pytest.mark.parametrize(
    ("files", "inputs", "results"),
    [
        (["a.wav", "b.mp3"], ["a.wav", "b.mp3"], ["a.srt", "b.srt"]),
        (["x/a.wav", "y/b.wav"], ["x/a.wav", "y/b.wav"], ["a.srt", "b.srt"]),
        (["x/a.wav", "x/sub/a.wav"], ["x"], ["a.srt", "sub/a.srt"]),
        (["a.mp3", "a.wav", "sub/a.wav"], ["a.mp3", "a.wav", "sub/a.wav"], ["a.mp3.srt", "a.wav.srt", "sub/a.srt"]),
        (["x/a.wav", "y/a.wav"], ["x", "y"], ["x/a.srt", "y/a.srt"]),
        (["x/1/a.wav", "x/2/a.mp3"], ["x/1/a.wav", "x/2/a.mp3"], ["1/a.srt", "2/a.srt"]),
        (["in/a.mp3", "in/a.wav", "in/b.wav"], ["in"], ["a.mp3.srt", "a.wav.srt", "b.srt"]),
        (["v1.2 talk.wav"], ["v1.2 talk.wav"], ["v1.2 talk.srt"]),
    ],
)
def test_names_differ(files: Sequence[str], inputs: Sequence[str], results: Sequence[str]) -> None:
    write_files(*files)
    assert plan_results(*inputs) == results


def test_every_format_has_a_file() -> None:
    write_files("a.wav")
    assert plan_results("a.wav", formats=["text", "srt", "vtt", "json"]) == ["a.txt", "a.srt", "a.vtt", "a.json"]
    assert plan_results("a.wav", formats=["verbose_json"]) == ["a.json"]
    assert plan_results("a.wav", formats=["json", "verbose_json"]) == ["a.json", "a.verbose.json"]


def test_what_cannot_be_told_apart_is_refused() -> None:
    write_files("a.mp3", "a.wav", "a.wav.ogg")
    with pytest.raises(ConfigError, match=r"a\.wav and a\.wav\.ogg would both be written to out/a\.wav\.srt"):
        plan_results("a.mp3", "a.wav", "a.wav.ogg")


def test_a_recording_is_not_written_over() -> None:
    write_files("out/talk.txt")
    with pytest.raises(ConfigError, match=r"overwrite the recording out/talk\.txt"):
        plan_results("out/talk.txt", formats=["text"])


def test_a_result_is_whole_and_with_usual_rights() -> None:
    target = OUT / "sub" / "a.srt"
    check_writable(target)
    write_result(target, "Grüße", replace=False)
    assert target.read_text("utf-8") == "Grüße"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in target.parent.iterdir()] == ["a.srt"]


def test_what_is_there_is_only_written_over_if_that_is_wanted() -> None:
    target = Path("a.srt")
    target.write_text("old")
    assert list_existing([{"srt": target, "text": Path("a.txt")}]) == [target]
    with pytest.raises(FileExistsError):
        write_result(target, "new", replace=False)
    assert target.read_text() == "old"
    write_result(target, "new", replace=True)
    assert target.read_text() == "new"
    assert [path.name for path in Path().iterdir()] == ["a.srt"]


def test_a_link_stays_one() -> None:
    Path("real.srt").write_text("old")
    Path("a.srt").symlink_to("real.srt")
    write_result(Path("a.srt"), "new", replace=True)
    assert (Path("a.srt").is_symlink(), Path("real.srt").read_text()) == (True, "new")


def test_a_full_disk_leaves_nothing() -> None:
    # No disk is full here, but to a process that may not write longer files it looks the same: a part, then an error.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            write_result(Path("a.srt"), "x" * 100_000, replace=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            check_writable(Path("a.srt"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failure.value.errno == errno.EFBIG
    assert not list(Path().iterdir())


def test_what_is_in_the_way_is_noticed_before_the_work() -> None:
    (OUT / "a.srt").mkdir(parents=True)
    Path("out/sub").write_text("a file where a folder is needed")
    Path("out/b.srt").symlink_to("/dev/full")
    reasons = {
        "a.srt": "not a file",
        "sub/a.srt": "(File exists|Not a directory)",
        "b.srt": "not a file",
        f"{'long' * 64}.srt": "too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(OSError, match=reason):
            check_writable(OUT / name)
    assert list_existing([{"srt": OUT / "a.srt"}]) == []


def test_a_name_too_long_for_a_file_is_the_matter_of_its_recording_alone() -> None:
    recordings, _ = find_recordings(write_files(f"{'x' * 250}.wav", "a.wav"))
    long, short = plan_outputs(recordings, ["verbose_json", "json"], OUT)
    with pytest.raises(OSError, match="too long"):
        check_writable(long["verbose_json"])
    assert list_existing([long, short]) == []
    check_writable(short["verbose_json"])
