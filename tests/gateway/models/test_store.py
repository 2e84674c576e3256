"""The folder of models: what is seen in it, copied into it and deleted from it."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from eardrum.errors import ConfigError, PullError, StorageFullError
from eardrum.gateway.models.store import ModelStore, is_model_id, measure_size
from tests.gateway.models.test_names import EVIL


def write_cached_model(folder: Path, id: str, revision: str = "r1", **files: bytes) -> Path:
    """A model as the hub's tools keep it."""
    home = folder / f"models--{id.replace('/', '--')}"
    snapshot = home / "snapshots" / revision
    for path in (home / "blobs", home / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    for name, data in (files or {"model": b"12345"}).items():
        blob = home / "blobs" / f"{revision}-{name}"
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def ignore_progress(_: int) -> None:
    """Progress that nobody watches."""


def test_both_layouts_are_seen(tmp_path: Path) -> None:
    snapshot = write_cached_model(tmp_path, "Org/model")
    bare = write_cached_model(tmp_path, "bare")
    (tmp_path / "plain one").mkdir()
    (tmp_path / ".locks").mkdir()
    (tmp_path / "version.txt").write_text("1")
    expected = {"Org/model": snapshot, "bare": bare, "plain one": tmp_path / "plain one"}
    assert dict(ModelStore(tmp_path)) == expected
    assert dict(ModelStore(tmp_path / "nowhere")) == {}


def test_the_newest_revision_counts_and_odd_files_do_not(tmp_path: Path) -> None:
    new, old = write_cached_model(tmp_path, "Org/model", "aaa"), write_cached_model(tmp_path, "Org/model", "zzz")
    os.utime(old, (1, 1))
    (new.parent / ".DS_Store").write_text("x")
    assert ModelStore(tmp_path).find_files("Org/model") == new


def test_an_update_that_was_cut_off_hides_nothing(tmp_path: Path) -> None:
    snapshot = write_cached_model(tmp_path, "Org/model")
    part = snapshot.parent.parent / "blobs" / "ff.part"
    part.write_bytes(b"x")
    store = ModelStore(tmp_path)
    assert store.find_files("Org/model") == snapshot
    assert store.is_unfinished("Org/model")
    assert store.list_unfinished() == ["Org/model"]
    part.unlink()
    assert not store.is_unfinished("Org/model")


@pytest.mark.parametrize("name", ["ff.part", "ff.incomplete"])
def test_a_first_download_that_was_cut_off_is_no_model(tmp_path: Path, name: str) -> None:
    blobs = tmp_path / "models--Org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / name).write_bytes(b"x")
    store = ModelStore(tmp_path)
    assert store.find_files("Org/model") is None
    assert list(store) == []
    assert store.list_unfinished() == ["Org/model"]


def test_two_copies_under_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    source, store = tmp_path / "source", ModelStore(tmp_path / "store")
    source.mkdir()
    for name in ("one", "two", "three"):
        (source / name).write_text(name)

    def copy_again(_: int) -> None:
        with pytest.raises(ConfigError, match="m is being copied by another process"):
            store.import_folder(source, "m", ignore_progress)

    left = tmp_path / "store" / "models--m" / ".imported"
    left.mkdir(parents=True)  # by a copy that was killed
    (left / "four").write_text("half")
    store.import_folder(source, "m", copy_again)
    found = store.find_files("m")
    assert found
    assert sorted(path.name for path in found.iterdir()) == ["one", "three", "two"]
    assert not store.is_unfinished("m")


@pytest.mark.parametrize(("id", "is_fit"), [("fine-tuned", 1), ("own/a-b", 1), ("a--b", 0), ("own/a--b", 0), ("own-/a", 0)])
def test_a_copied_model_is_found_by_its_name_or_refused(tmp_path: Path, id: str, is_fit: bool) -> None:
    source, store = tmp_path / "source", ModelStore(tmp_path / "store")
    source.mkdir()
    (source / "model.bin").write_bytes(b"x")
    with nullcontext() if is_fit else pytest.raises(ConfigError, match=f"A model cannot be called '{id}'"):
        store.import_folder(source, id, ignore_progress)
    assert [found for found, _ in store] == ([id] if is_fit else [])


@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_no_name_leads_out_of_the_store(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "store"
    folder.mkdir(parents=True)
    (tmp_path / "a" / "small").mkdir()
    (tmp_path / "a" / "small" / "precious").write_text("x")
    store = ModelStore(folder)
    assert store.find_files(name) is None
    assert not store.is_unfinished(name)
    assert store.remove_model(name) == 0
    assert (tmp_path / "a" / "small" / "precious").exists()
    if not is_model_id(name):
        with pytest.raises(ConfigError, match="cannot be called"):
            store.import_folder(tmp_path / "a" / "small", name, ignore_progress)
    assert folder.exists()


def test_a_folder_is_copied_in(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    (stick / "sub").mkdir(parents=True)
    (stick / "sub" / "b").write_bytes(b"123")
    (stick / "a").write_bytes(b"12345")
    (stick / "link").symlink_to("a")
    (stick / ".git").mkdir()
    (stick / ".git" / "history").write_bytes(b"x" * 1000)
    store = ModelStore(tmp_path / "new" / "store")
    sizes: list[int] = []
    target = store.import_folder(stick, "mine", sizes.append)
    assert store.find_files("mine") == target
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == ["a", "link", "sub/b"]
    assert not (target / "link").is_symlink(), "it would break when the stick is gone"
    assert (sum(sizes), measure_size(target)) == (13, 13)
    assert [path.name for path in target.parent.parent.iterdir()] == ["snapshots"]
    with pytest.raises(ConfigError, match="There is a model mine already: `eardrum rm mine`"):
        store.import_folder(stick, "mine", ignore_progress)


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("a", "b"):
        (stick / name).write_bytes(b"1")
    store = ModelStore(tmp_path / "store")
    store.folder.mkdir()
    real = shutil.copyfile

    def fake_full_disk(source: Path, target: Path) -> None:
        if list(target.parent.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(shutil, "copyfile", fake_full_disk)
    with pytest.raises(StorageFullError, match="is full: make room"):
        store.import_folder(stick, "mine", ignore_progress)
    assert list(store.folder.iterdir()) == []

    def fake_pulled_stick(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(source))

    monkeypatch.setattr(shutil, "copyfile", fake_pulled_stick)
    with pytest.raises(PullError, match="Input/output error"):
        store.import_folder(stick, "mine", ignore_progress)
    assert list(store.folder.iterdir()) == []


def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    with (stick / "huge").open("wb") as file:
        file.truncate(1 << 43)  # 8 TB, none of them on the disk
    with pytest.raises(StorageFullError, match=r"8796\.1 GB"):
        ModelStore(tmp_path / "store").import_folder(stick, "mine", ignore_progress)
    assert not (tmp_path / "store").exists()


def test_a_model_is_removed_with_all_its_revisions_and_parts(tmp_path: Path) -> None:
    write_cached_model(tmp_path, "Org/model", "r1", model=b"12345")
    snapshot = write_cached_model(tmp_path, "Org/model", "r2", model=b"123")
    (snapshot.parent.parent / "blobs" / "ff.part").write_bytes(b"12")
    (tmp_path / ".locks" / "models--Org--model").mkdir(parents=True)
    kept = write_cached_model(tmp_path, "Org/model-2")
    store = ModelStore(tmp_path)
    assert store.remove_model("Org/model") == 10
    assert dict(store) == {"Org/model-2": kept}
    assert list((tmp_path / ".locks").iterdir()) == []


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine").symlink_to(tmp_path / "elsewhere")
    ModelStore(tmp_path / "store").remove_model("mine")
    assert not (tmp_path / "store" / "mine").is_symlink()
    assert (tmp_path / "elsewhere" / "file").exists()


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_denied(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fake_denied)
    with pytest.raises(ConfigError, match=rf"{tmp_path}, cannot be read"):
        list(ModelStore(tmp_path))
