from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from eardrum import config
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes import launcher
from eardrum.gateway.processes.launcher import TuningCache, TuningResult, find_cache_folder
from tests.weights import MOONSHINE

FOUND = TuningResult(4, {"threads": 2})


@pytest.fixture
def model(tmp_path: Path) -> Model:
    source = tmp_path / "mine-en"
    source.mkdir()
    for file in MOONSHINE.iterdir():
        (source / file.name).symlink_to(file)
    settings = config.load_settings(None, [f"models.mine.source={source}"], environment={})
    return ModelCatalog(settings).find_model("mine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there yet"


def test_what_was_found_is_known_to_the_next_server(model: Model, folder: Path) -> None:
    first = TuningCache(folder)
    assert first.get_result(model) == TuningResult()
    first.store_result(model, FOUND)
    assert first.get_result(model) == TuningCache(folder).get_result(model) == FOUND
    first.store_result(model, TuningResult(8))
    assert TuningCache(folder).get_result(model) == TuningResult(8)
    assert [file.name for file in folder.iterdir()] == [launcher.CACHE_FILE]


def test_another_model_is_timed_anew(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TuningCache(folder).store_result(model, FOUND)
    assert model.source
    for other in (
        replace(model, options={"threads": 1}),
        replace(model, engine="other"),
        replace(model, python="/elsewhere/python"),
        replace(model, source=MOONSHINE),
    ):
        assert TuningCache(folder).get_result(other) == TuningResult()
    weights = model.source / "decoder_model_merged.ort"
    weights.unlink()
    weights.write_bytes(b"others")
    assert TuningCache(folder).get_result(model) == TuningResult(), "other files in the same place"


@pytest.mark.parametrize("fact", ["CPU_INFO", "CPU_QUOTA"])
def test_another_machine_times_anew(
    model: Model, folder: Path, tmp_path: Path, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    TuningCache(folder).store_result(model, FOUND)
    (tmp_path / "other").write_text("model name: another one\n")
    monkeypatch.setattr(launcher, fact, tmp_path / "other")
    assert TuningCache(folder).get_result(model) == TuningResult()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"batch": "x", "options": {}}}', b"\xff"])
def test_a_broken_file_is_as_none(model: Model, folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / launcher.CACHE_FILE).write_bytes(content)
    assert TuningCache(folder).get_result(model) == TuningResult()
    TuningCache(folder).store_result(model, FOUND)
    assert TuningCache(folder).get_result(model) == FOUND


def test_without_a_folder_it_is_known_as_long_as_the_process_lives(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = TuningCache(tmp_path / "file")
    known.store_result(model, FOUND)
    assert known.get_result(model) == FOUND
    assert TuningCache(tmp_path / "file").get_result(model) == TuningResult()


def test_a_user_without_a_home_has_nowhere_to_keep_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    homeless = TuningCache(find_cache_folder())
    homeless.store_result(model, FOUND)
    assert homeless.get_result(model) == FOUND


def test_nothing_is_written_about_models_elsewhere_or_never_timed(model: Model, folder: Path) -> None:
    TuningCache(folder).store_result(replace(model, source=None), FOUND)
    TuningCache(folder).store_result(model, TuningResult())
    assert not folder.exists()


def test_the_oldest_make_room(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "MAX_CACHED_MODELS", 2)
    several = [replace(model, options={"threads": number}) for number in (1, 2, 3)]
    for one in (*several[:2], several[0]):
        TuningCache(folder).store_result(one, FOUND)
    TuningCache(folder).store_result(several[2], FOUND)
    assert [TuningCache(folder).get_result(one) == FOUND for one in several] == [True, False, True]
