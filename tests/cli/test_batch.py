"""Manifests of `eardrum batch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eardrum.cli import batch
from eardrum.cli.batch import ManifestRun, compare_words, read_manifest
from eardrum.errors import ConfigError


def write(folder: Path, *lines: object) -> Path:
    manifest = folder / "m"
    manifest.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return manifest


def test_each_kind_of_line(tmp_path: Path) -> None:
    nemo = {"audio_filepath": "n.wav", "duration": 2.5, "text": "ja", "source_lang": "de", "taskname": "ast"}
    request = {"custom_id": "r", "url": "/v1/audio/translations", "body": {"file_url": "https://x.example/r", "hotwords": ["a"]}}
    lines = list(read_manifest(write(tmp_path, "a b.mp3", "", nemo, request, {**nemo, "id": "own"}, "https://x.example/p")))
    assert [line.key for line in lines] == ["1", "3", "r", "own", "6"]
    plain, first, second = lines[:3]
    assert plain.audio == str(tmp_path / "a b.mp3")
    assert (first.form, first.text, first.duration) == ({"language": ["de"], "task": ["translate"]}, "ja", 2.5)
    assert (second.audio, second.form) == ("https://x.example/r", {"hotwords": ["a"], "task": ["translate"]})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], "m:1: the line is not JSON"),
        ([{"id": "a", "audio_filepath": "x"}, {"id": "a", "audio_filepath": "y"}], "m:2: the key 'a' is there twice"),
        ([{"text": "x"}], "m:1: the line has neither"),
        ([{"audio_filepath": "x", "offset": 3}], "`offset` is not supported"),
        ([{"body": {}}], "must name the audio once"),
        (["x" * 300], "m:1: the line is longer than 200"),
    ],
)
def test_a_line_that_is_wrong_is_told_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[object], says: str
) -> None:
    monkeypatch.setattr(batch, "MAX_LINE_CHARS", 200)
    with pytest.raises(ConfigError, match=says):
        list(read_manifest(write(tmp_path, *lines)))


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        list(read_manifest(tmp_path / "none"))
    (tmp_path / "m").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_manifest(tmp_path / "m"))


@pytest.mark.parametrize("text", ["my notes\n", "my notes", "[1]\n", '{"a": 1}\nmy notes\n', '{\n  "a": 1\n}'])
def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    output = tmp_path / "notes"
    output.write_text(text)
    with pytest.raises(ConfigError, match="something else"), ManifestRun([], output, {}, 1):
        pass
    assert output.read_text() == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"id": "1"}\n{"id": "2", "pred', '{"id": "1"}\n'),
        ('{"id": "1"}\n{"id": "2"}', '{"id": "1"}\n{"id": "2"}\n'),
        ('{"a": 1}', '{"a": 1}\n'),
    ],
    ids=["within a line", "before its end", "nothing else"],
)
def test_only_a_line_that_was_cut_off_is_removed(tmp_path: Path, text: str, left: str) -> None:
    output = tmp_path / "results"
    output.write_text(text)
    with ManifestRun([], output, {}, 1):
        pass
    assert output.read_text() == left


def test_word_errors_do_not_count_case_and_punctuation() -> None:
    assert compare_words("One, two three.", "one two  THREE") == (3, 0)
    assert compare_words("one two three", "one too three four") == (3, 2)
    assert compare_words("", "one") == (0, 1)
