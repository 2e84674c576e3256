"""The program that fetches, as a process, against a fake hub."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from eardrum.gateway.models.store import ModelStore
from eardrum.hub import HubBlob, RepositoryCache
from tests.commands import start_module
from tests.conftest import wait_for
from tests.fake_hub import FakeHub, FakeRepository, fake_hub

pytestmark = pytest.mark.slow

BIG = random.Random(1).randbytes(600_000)
OTHER_BIG = random.Random(2).randbytes(50_000)
FILES = {"model.bin": BIG, "config.json": b'{"model_type": "whisper"}', "sub/vocab.txt": b"a b c", "README.md": b"read me"}
TOTAL = sum(map(len, FILES.values()))
NAME = "org/model"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(org__model=FakeRepository(dict(FILES))) as running:
        yield running


@dataclass
class ProgramOutput:
    """What the program said and how it ended."""

    code: int
    lines: list[dict[str, Any]]
    log: str

    @property
    def error(self) -> str:
        return f"{self.lines[-1]['failed']['error']}: {self.lines[-1]['failed']['message']}"

    @property
    def path(self) -> Path:
        return Path(self.lines[-1]["done"]["path"])

    def progress(self) -> list[int]:
        return [line["progress"]["completed"] for line in self.lines if "progress" in line]


@dataclass
class DownloadRunner:
    """Starts the program for one cache."""

    hub: FakeHub
    cache: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, name: str = NAME) -> subprocess.Popen[str]:
        return start_module(
            *("eardrum.hub", name, f"--cache={self.cache}", *arguments),
            env=os.environ | self.hub.environment | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, name: str = NAME) -> ProgramOutput:
        out, log = self.start(*arguments, name=name).communicate(timeout=60)
        return ProgramOutput(0 if '"failed"' not in out else 1, [json.loads(line) for line in out.splitlines()], log)


@pytest.fixture
def fetch(hub: FakeHub, tmp_path: Path) -> DownloadRunner:
    return DownloadRunner(hub, tmp_path / "hub")


def read_contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def list_parts(cache: Path) -> list[Path]:
    return list(cache.rglob("*.part"))


def test_a_repository_arrives_whole_where_the_hubs_own_library_finds_it(fetch: DownloadRunner) -> None:
    said = fetch()
    assert read_contents(said.path) == FILES
    assert said.lines[0] == {"plan": {"files": 4, "total": TOTAL, "present": 0}}
    assert said.progress()[-1] == TOTAL
    assert said.progress() == sorted(said.progress())
    assert said.log == ""
    assert try_to_load_from_cache(NAME, "sub/vocab.txt", cache_dir=fetch.cache) == str(said.path / "sub/vocab.txt")
    (repository,) = scan_cache_dir(fetch.cache).repos
    assert (repository.repo_id, repository.nb_files, repository.size_on_disk) == (NAME, 4, TOTAL)
    assert ModelStore(fetch.cache).find_files(NAME) == said.path


def test_only_what_the_engine_reads_is_fetched(fetch: DownloadRunner) -> None:
    said = fetch("--pattern=*.bin", "--pattern=config.json")
    assert sorted(read_contents(said.path)) == ["config.json", "model.bin"]
    assert fetch.hub.served == len(BIG) + len(FILES["config.json"])
    assert "has no files that its engine reads (*.onnx)" in fetch("--pattern=*.onnx").error


def test_a_second_time_moves_no_bytes(fetch: DownloadRunner) -> None:
    first = fetch()
    served = fetch.hub.served
    again = fetch()
    assert (again.path, fetch.hub.served) == (first.path, served)
    assert again.lines[0]["plan"]["present"] == TOTAL


def test_a_new_revision_fetches_what_changed_and_the_old_one_stays(fetch: DownloadRunner) -> None:
    old = fetch().path
    fetch.hub.served = 0
    repository = fetch.hub.repositories[NAME]
    repository.revision, repository.files["config.json"] = "b" * 40, b"{}"
    new = fetch().path
    assert fetch.hub.served == 2
    assert read_contents(old) == FILES
    assert read_contents(new) == FILES | {"config.json": b"{}"}
    assert ModelStore(fetch.cache).find_files(NAME) == new


def test_listing_fetches_nothing(fetch: DownloadRunner) -> None:
    said = fetch("--list")
    assert said.lines == [{"listing": {"files": list(FILES), "config": {"model_type": "whisper"}}}]
    assert not fetch.cache.exists()


@pytest.mark.parametrize("config", [b"", b"[]", b"\xff", b"{"])
def test_a_config_that_is_none_is_empty(fetch: DownloadRunner, config: bytes) -> None:
    fetch.hub.repositories[NAME].files["config.json"] = config
    assert fetch("--list").lines[0]["listing"]["config"] == {}


def test_a_killed_download_is_continued_to_the_byte(fetch: DownloadRunner) -> None:
    repository = fetch.hub.repositories[NAME]
    repository.pace = 0.02
    with fetch.start() as process:
        wait_for(lambda: list_parts(fetch.cache) and list_parts(fetch.cache)[0].stat().st_size > 100_000)
        process.kill()
    (part,) = list_parts(fetch.cache)
    arrived = part.stat().st_size
    assert 100_000 < arrived < len(BIG)
    assert ModelStore(fetch.cache).find_files(NAME) is None
    assert ModelStore(fetch.cache).is_unfinished(NAME)
    wait_for(lambda: not fetch.hub.sending)
    repository.pace, fetch.hub.served = 0, 0
    said = fetch()
    assert fetch.hub.ranges == [f"bytes={arrived}-"]
    assert fetch.hub.served == TOTAL - arrived
    assert said.lines[0]["plan"]["present"] == arrived
    assert read_contents(said.path) == FILES
    assert list_parts(fetch.cache) == []


def test_a_connection_that_breaks_is_continued_in_the_same_run(fetch: DownloadRunner) -> None:
    repository = fetch.hub.repositories[NAME]
    repository.cut_after = 200_000
    with fetch.start() as process:
        wait_for(lambda: any(part.stat().st_size == 200_000 for part in list_parts(fetch.cache)))
        repository.cut_after = None
        assert process.stdout
        lines = [json.loads(line) for line in process.stdout]
        process.communicate()
    assert read_contents(Path(lines[-1]["done"]["path"])) == FILES
    assert set(fetch.hub.ranges) == {"bytes=200000-"}
    assert fetch.hub.served == TOTAL


def test_a_connection_that_keeps_breaking_is_given_up_and_what_arrived_is_kept(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].cut_after = 200_000
    said = fetch()
    assert "PullError: Cannot reach the hub" in said.error
    assert "It continues where it stopped." in said.error
    assert [part.stat().st_size for part in list_parts(fetch.cache)] == [200_000]


def test_a_hub_that_knows_no_ranges_sends_the_file_again(fetch: DownloadRunner) -> None:
    repository = fetch.hub.repositories[NAME]
    blobs = fetch.cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.part").write_bytes(BIG[:5000])
    repository.ignores_ranges = True
    assert read_contents(fetch().path) == FILES
    assert fetch.hub.served == TOTAL


def test_a_hub_that_knows_no_ranges_and_breaks_off_is_given_up(fetch: DownloadRunner) -> None:
    repository = fetch.hub.repositories[NAME]
    blobs = fetch.cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.part").write_bytes(BIG[:-500])
    repository.ignores_ranges, repository.cut_after = True, 1000
    assert "Cannot reach the hub" in fetch().error
    assert [part.stat().st_size for part in list_parts(fetch.cache)] == [1000]


def test_a_model_that_is_pulled_again_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RepositoryCache(tmp_path, NAME)
    cache.blobs.mkdir(parents=True)
    files = {name: HubBlob(f"hash-of-{name}", len(name)) for name in ("one", "seven")}
    for name, blob in files.items():
        (cache.blobs / blob.hash).write_text(name)

    def copy_half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuse_link(_: Path, __: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as without_links:
        without_links.setattr(Path, "symlink_to", refuse_link)
        snapshot = cache.publish("a" * 40, {"one": files["one"]})
        without_links.setattr(shutil, "copyfile", copy_half)
        with pytest.raises(OSError, match="No space"):
            cache.publish("a" * 40, files)
    assert read_contents(snapshot) == {"one": b"one"}
    cache.publish("a" * 40, files)
    assert read_contents(snapshot) == {"one": b"one", "seven": b"seven"}
    linked = (snapshot / "seven").lstat().st_ctime_ns
    cache.publish("a" * 40, files)
    assert (snapshot / "seven").lstat().st_ctime_ns == linked, "a process may be opening it"


@pytest.mark.parametrize("length", [len(BIG) + 5, len(BIG)])
def test_a_part_that_cannot_be_right_is_not_believed(fetch: DownloadRunner, length: int) -> None:
    blobs = fetch.cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.part").write_bytes(b"?" * length)
    said = fetch()
    if length == len(BIG):  # as long as it should be, but not it
        assert "model.bin of org/model does not match the hub's checksum: pull the model again" in said.error
        said = fetch()
    assert read_contents(said.path) == FILES


def test_damaged_files_are_noticed_large_and_small(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].damaged = True
    assert "model.bin of org/model does not match the hub's checksum" in fetch().error
    assert "config.json of org/model does not match the hub's checksum" in fetch("--pattern=config.json").error
    assert (list_parts(fetch.cache), ModelStore(fetch.cache).find_files(NAME)) == ([], None)
    fetch.hub.repositories[NAME].damaged = False
    assert read_contents(fetch().path) == FILES


def test_parts_of_a_revision_that_nobody_wants_any_more_go(fetch: DownloadRunner) -> None:
    blobs = fetch.cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ("f" * 64 + ".part")).write_bytes(b"of another revision")
    fetch()
    assert not ModelStore(fetch.cache).is_unfinished(NAME)


def test_one_content_under_two_names_is_fetched_once(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].files = {"a.bin": BIG, "b.bin": BIG}
    said = fetch()
    assert read_contents(said.path) == {"a.bin": BIG, "b.bin": BIG}
    assert (fetch.hub.served, said.lines[0]["plan"]["total"]) == (len(BIG), len(BIG))


def test_a_mirror_that_tells_neither_sizes_nor_hashes_will_do(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].terse = True
    said = fetch()
    assert read_contents(said.path) == FILES
    assert said.lines[0]["plan"]["total"] == TOTAL


def test_the_token_goes_to_the_hub_and_to_nobody_it_redirects_to(fetch: DownloadRunner) -> None:
    fetch.environment["HF_TOKEN"] = "hf_secret"
    fetch()
    assert fetch.hub.tokens == {fetch.hub.address: {"Bearer hf_secret"}}
    assert any("/stored/" in request for request in fetch.hub.requests)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "rejected the token in HF_TOKEN"),
        (
            403,
            "requires you to accept its terms: accept them on its page at the hub, then set HF_TOKEN",
        ),
        (404, "The hub has no model org/model, or it is private: check the name, or set HF_TOKEN"),
        (418, "The hub refused org/model with status 418"),
        (429, "limits requests from this address: pull org/model again later"),
        (500, "The hub failed with status 500: pull org/model again later"),
    ],
)
def test_refusals_say_what_to_do(fetch: DownloadRunner, status: int, says: str) -> None:
    fetch.hub.repositories[NAME].status = status
    said = fetch()
    kinds = {401: "HubAccessError", 403: "HubAccessError", 404: "ModelNotFoundError"}
    assert said.lines[-1]["failed"]["error"] == kinds.get(status, "PullError")
    assert says in said.error
    assert "Traceback" not in said.log


def test_terms_that_nobody_accepted_are_told_before_the_download_begins(fetch: DownloadRunner) -> None:
    """Everybody may list the files of such a repository."""
    fetch.hub.repositories[NAME].gated = True
    said = fetch()
    assert said.error.startswith("HubAccessError: org/model requires you to accept its terms")
    assert len(said.lines) == 1, "no plan"
    fetch.environment["HF_TOKEN"] = "hf_secret"
    assert read_contents(fetch().path) == FILES


@pytest.mark.parametrize("name", ["org/other", "no-owner-and-nothing", "a/b/c", "../../x", "x\ny/z", "a" * 5000])
def test_names_the_hub_does_not_have(fetch: DownloadRunner, name: str) -> None:
    assert "The hub has no model" in fetch(name=name).error
    assert not fetch.cache.exists()


def test_offline_and_no_hub_are_told_apart(fetch: DownloadRunner) -> None:
    fetch.environment["HF_HUB_OFFLINE"] = "1"
    assert "HF_HUB_OFFLINE is set" in fetch().error
    assert fetch.hub.requests == []
    fetch.environment = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "Cannot reach the hub" in fetch().error


@pytest.mark.parametrize("revision", ["", "../../../evil", "main"])
def test_something_else_in_place_of_the_hub(fetch: DownloadRunner, revision: str) -> None:
    fetch.hub.repositories[NAME].revision = revision
    assert "check that HF_ENDPOINT is a Hugging Face hub" in fetch().error


@pytest.mark.parametrize("file", ["../../evil", "/etc/evil", "a/../../evil", "a\\b", "x.part", "a\0b"])
def test_a_hub_cannot_write_outside_of_the_cache(fetch: DownloadRunner, tmp_path: Path, file: str) -> None:
    fetch.hub.repositories[NAME].files[file] = b"evil"
    assert "with an unsafe name" in fetch().error
    assert not list(tmp_path.rglob("*evil*"))


def test_a_disk_without_room_is_refused_before_anything_moves(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].claims = 1 << 50
    said = fetch()
    assert "StorageFullError: org/model needs" in said.error
    assert "free some space, or set model_dir (HF_HUB_CACHE) to another disk" in said.error
    assert fetch.hub.served == 0


def test_a_disk_that_is_full_in_the_middle(fetch: DownloadRunner) -> None:
    blobs = fetch.cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(BIG).hexdigest()}.part").symlink_to("/dev/full")  # every write finds no space, for real
    assert "StorageFullError: The disk is full: free some space, then pull org/model again" in fetch().error


def test_a_cache_that_cannot_be_written_is_named(fetch: DownloadRunner) -> None:
    fetch.cache.write_text("a file where the folder should be")
    assert f"Cannot store org/model: Not a directory: {fetch.cache}" in fetch().error


def test_two_at_once_fetch_once(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].pace = 0.01
    one, two = fetch.start(), fetch.start()
    for process in (one, two):
        out, log = process.communicate(timeout=60)
        assert '"done"' in out, log
    assert fetch.hub.served == TOTAL


def test_it_ends_with_its_parent(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].pace = 0.05
    with fetch.start("--parent") as process:
        wait_for(lambda: list_parts(fetch.cache))
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 1
        process.stdin = None


def test_ending_it_keeps_what_has_arrived(fetch: DownloadRunner) -> None:
    fetch.hub.repositories[NAME].pace = 0.05
    with fetch.start() as process:
        wait_for(lambda: list_parts(fetch.cache) and list_parts(fetch.cache)[0].stat().st_size)
        process.send_signal(signal.SIGTERM)
    assert list_parts(fetch.cache)[0].stat().st_size > 0
