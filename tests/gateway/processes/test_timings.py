from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eardrum import config
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Model
from eardrum.gateway.processes import timings
from eardrum.gateway.processes.timings import Timing, Timings, default_folder
from tests.weights import MOONSHINE

FOUND = Timing(4, {"threads": 2})


@pytest.fixture
def model(tmp_path: Path) -> Model:
    source = tmp_path / "mine-en"
    source.mkdir()
    for file in MOONSHINE.iterdir():
        (source / file.name).symlink_to(file)
    settings = config.load(None, [f"models.mine.source={source}"], environment={})
    return Catalog(settings).find("mine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there yet"


def test_what_was_found_is_known_to_the_next_server(model: Model, folder: Path) -> None:
    first = Timings(folder)
    assert first.of(model) == Timing()
    first.keep(model, FOUND)
    assert first.of(model) == Timings(folder).of(model) == FOUND
    first.keep(model, Timing(8))
    assert Timings(folder).of(model) == Timing(8)
    assert [file.name for file in folder.iterdir()] == [timings.FILE]


def test_another_model_is_timed_anew(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Timings(folder).keep(model, FOUND)
    assert model.source
    for other in (
        replace(model, options={"threads": 1}),
        replace(model, engine="other"),
        replace(model, python="/elsewhere/python"),
        replace(model, source=MOONSHINE),
    ):
        assert Timings(folder).of(other) == Timing()
    weights = model.source / "decoder_model_merged.ort"
    weights.unlink()
    weights.write_bytes(b"others")
    assert Timings(folder).of(model) == Timing(), "other files in the same place"


@pytest.mark.parametrize("fact", ["CPU", "QUOTA"])
def test_another_machine_times_anew(
    model: Model, folder: Path, tmp_path: Path, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Timings(folder).keep(model, FOUND)
    (tmp_path / "other").write_text("model name: another one\n")
    monkeypatch.setattr(timings, fact, tmp_path / "other")
    assert Timings(folder).of(model) == Timing()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"batch": "x", "options": {}}}', b"\xff"])
def test_a_broken_file_is_as_none(model: Model, folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / timings.FILE).write_bytes(content)
    assert Timings(folder).of(model) == Timing()
    Timings(folder).keep(model, FOUND)
    assert Timings(folder).of(model) == FOUND


def test_without_a_folder_it_is_known_as_long_as_the_process_lives(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = Timings(tmp_path / "file")
    known.keep(model, FOUND)
    assert known.of(model) == FOUND
    assert Timings(tmp_path / "file").of(model) == Timing()


def test_a_user_without_a_home_has_nowhere_to_keep_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    homeless = Timings(default_folder())
    homeless.keep(model, FOUND)
    assert homeless.of(model) == FOUND


def test_nothing_is_written_about_models_elsewhere_or_never_timed(model: Model, folder: Path) -> None:
    Timings(folder).keep(replace(model, source=None), FOUND)
    Timings(folder).keep(model, Timing())
    assert not folder.exists()


def test_the_oldest_make_room(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "MOST", 2)
    several = [replace(model, options={"threads": number}) for number in (1, 2, 3)]
    for one in (*several[:2], several[0]):
        Timings(folder).keep(one, FOUND)
    Timings(folder).keep(several[2], FOUND)
    assert [Timings(folder).of(one) == FOUND for one in several] == [True, False, True]
