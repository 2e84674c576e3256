from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.engines.folder import read_folder
from bench.errors import BenchError
from tests.recordings import PHONE, ROOT, create_tone, encode


def write_recording(folder: Path, name: str, seconds: float = 1.0, container: str = "wav") -> None:
    path = folder / f"{name}.{container}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.asarray(create_tone(seconds)), container))


def test_recordings_with_their_text_beside_them_are_found_at_any_depth(tmp_path: Path) -> None:
    write_recording(tmp_path, "a")
    write_recording(tmp_path, "deep/er/b", 2.0, "mp3")
    write_recording(tmp_path, "no-text")
    (tmp_path / "a.txt").write_text("What is\nsaid.\n")
    (tmp_path / "deep/er/b.txt").write_text("More.")
    first, second = read_folder(tmp_path, "de")
    assert (first.path, first.text, first.language) == (tmp_path / "a.wav", "What is said.", "de")
    assert first.seconds == pytest.approx(1.0, abs=0.01)
    assert (second.path.name, second.text) == ("b.mp3", "More.")
    assert second.seconds == pytest.approx(2.0, abs=0.1)


def test_a_table_with_a_header_may_name_the_language(tmp_path: Path) -> None:
    write_recording(tmp_path, "a")
    write_recording(tmp_path, "b")
    (tmp_path / "references.tsv").write_text('text\tname\tlanguage\n"Ja."\ta\tde\nYes.\tb.wav\t\n')
    german, english = read_folder(tmp_path, "en")
    assert (german.text, german.language) == ('"Ja."', "de")
    assert (english.text, english.language) == ("Yes.", "en")


def test_the_tables_of_this_project_are_read() -> None:
    phone, hearing = read_folder(PHONE, "en"), read_folder(ROOT / "tests" / "data" / "hearing")
    assert len(phone) == 39
    assert {recording.language for recording in phone} == {"en"}
    assert [recording.language for recording in hearing].count("de") == 6
    assert hearing[0].text == "Computer what time is it please."


def test_a_recording_that_the_table_names_and_nobody_has_is_an_error(tmp_path: Path) -> None:
    write_recording(tmp_path, "a")
    (tmp_path / "references.tsv").write_text("a\tYes.\nmissing\tNo.\n")
    with pytest.raises(BenchError, match="names 'missing'"):
        read_folder(tmp_path)


def test_a_line_without_a_text_is_an_error(tmp_path: Path) -> None:
    write_recording(tmp_path, "a")
    (tmp_path / "references.tsv").write_text("a\n")
    with pytest.raises(BenchError, match="without a text: 'a'"):
        read_folder(tmp_path)


def test_a_folder_with_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    write_recording(tmp_path, "a")
    with pytest.raises(BenchError, match=r"neither a references\.tsv nor"):
        read_folder(tmp_path)
    with pytest.raises(BenchError, match="is not a folder"):
        read_folder(tmp_path / "none")


def test_what_is_no_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"nothing that plays")
    (tmp_path / "a.txt").write_text("Yes.")
    with pytest.raises(BenchError, match=r"a\.wav cannot be read as audio"):
        read_folder(tmp_path)
