"""Downloads as the gateway has them done: shared, watched, and ended with the last who waits."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from threading import Event

import psutil
import pytest

from eardrum import config
from eardrum.errors import BusyError, InvalidRequestError, ModelNotFoundError, PullError, ShuttingDownError, StorageFullError
from eardrum.gateway.models import download
from eardrum.gateway.models.download import MAX_DOWNLOADS, ModelDownloader, PullProgress
from eardrum.gateway.models.inventory import ModelInventory
from eardrum.gateway.models.store import ModelStore
from tests.cards import TORCH, WHISPER, create_card
from tests.fake_hub import FakeHub, FakeRepository, fake_hub
from tests.processes import find_children

pytestmark = pytest.mark.slow


NAME = "org/model"
BIG = bytes(400_000)
FILES = {"model.bin": BIG, "config.json": b"{}", "notes.txt": b"not wanted"}
PATTERNS = ("*.bin", "*.json")
TOTAL = len(BIG) + 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(org__model=FakeRepository(dict(FILES))) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
async def downloader(hub: FakeHub, tmp_path: Path) -> AsyncIterator[ModelDownloader]:
    downloader = ModelDownloader(tmp_path / "hub")
    yield downloader
    await downloader.shutdown()
    assert list_children() == []


def list_children() -> list[psutil.Process]:
    return find_children(os.getpid(), "eardrum.hub")


async def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- what is waited for is in other processes
            await asyncio.sleep(0.01)


async def pull_model(puller: ModelDownloader, name: str = NAME) -> list[PullProgress]:
    async with aclosing(puller.download_model(name, PATTERNS)) as steps:
        return [progress async for progress in steps]


@pytest.mark.slow
async def test_progress_until_all_is_there(downloader: ModelDownloader, hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME].pace = 0.03
    steps = await pull_model(downloader)
    completed = [step.completed for step in steps]
    assert completed == sorted(completed)
    assert len(set(completed)) > 2, "no progress in between"
    assert steps[-1].completed == steps[-1].total == TOTAL
    source = ModelStore(tmp_path / "hub").find_files(NAME)
    assert source
    assert sorted(path.name for path in source.iterdir()) == ["config.json", "model.bin"]


async def test_two_who_want_the_same_share_one_download(downloader: ModelDownloader, hub: FakeHub) -> None:
    gate = hub.repositories[NAME].gate = Event()
    one = asyncio.create_task(pull_model(downloader))
    await wait_until(lambda: hub.served)
    two = asyncio.create_task(pull_model(downloader))
    await asyncio.sleep(0.2)
    assert len(list_children()) == 1
    gate.set()
    for steps in await asyncio.gather(one, two):
        assert steps[-1] == PullProgress(TOTAL, TOTAL, steps[-1].file)
    assert hub.served == TOTAL
    assert len([request for request in hub.requests if request.startswith("GET /api")]) == 1


async def test_it_ends_with_the_last_who_waits(downloader: ModelDownloader, hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME].gate = Event()
    tasks = [asyncio.create_task(pull_model(downloader)) for _ in range(2)]
    await wait_until(lambda: hub.served and list_children())
    (child,) = list_children()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    assert child.is_running()
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert not child.is_running()
    assert ModelStore(tmp_path / "hub").is_unfinished(NAME)


async def test_who_comes_after_the_last_left_continues(downloader: ModelDownloader, hub: FakeHub) -> None:
    gate = hub.repositories[NAME].gate = Event()
    first = asyncio.create_task(pull_model(downloader))
    await wait_until(lambda: hub.served >= len(BIG) // 2 - 20_000)
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    steps = await pull_model(downloader)
    assert steps[0].completed > 0
    assert hub.ranges, "began anew"
    assert steps[-1].completed == TOTAL


async def test_everybody_who_waits_hears_why_it_failed(downloader: ModelDownloader, hub: FakeHub) -> None:
    hub.repositories[NAME].status = 500
    results = await asyncio.gather(pull_model(downloader), pull_model(downloader), return_exceptions=True)
    assert [type(result) for result in results] == [PullError, PullError]
    assert "failed with status 500" in str(results[0])
    hub.repositories[NAME].status = 200
    assert (await pull_model(downloader))[-1].completed == TOTAL, "a failure must not stick"


async def test_a_full_disk_keeps_its_kind(downloader: ModelDownloader, hub: FakeHub) -> None:
    hub.repositories[NAME].claims = 1 << 50
    with pytest.raises(StorageFullError, match="free some space"):
        await pull_model(downloader)


async def test_a_download_that_dies_is_an_error(downloader: ModelDownloader, hub: FakeHub) -> None:
    hub.repositories[NAME].gate = Event()
    pulling = asyncio.create_task(pull_model(downloader))
    await wait_until(lambda: hub.served and list_children())
    list_children()[0].kill()
    with pytest.raises(PullError, match="ended with exit code -9"):
        await pulling


async def test_shutdown_tells_those_who_wait(downloader: ModelDownloader, hub: FakeHub) -> None:
    hub.repositories[NAME].gate = Event()
    pulling = asyncio.create_task(pull_model(downloader))
    await wait_until(lambda: hub.served)
    await downloader.shutdown()
    with pytest.raises(ShuttingDownError, match="what has arrived is kept"):
        await pulling
    with pytest.raises(ShuttingDownError):
        await pull_model(downloader)


PARENT = """
import asyncio, sys
from pathlib import Path
from eardrum.gateway.models.download import ModelDownloader
async def main():
    async for _ in ModelDownloader(Path(sys.argv[1])).download_model("org/model", ()): print("going", flush=True)
asyncio.run(main())
"""


@pytest.mark.slow
def test_no_download_outlives_a_killed_gateway(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[NAME].gate = Event()
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "going\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    assert not psutil.wait_procs([child], timeout=60)[1]


@pytest.fixture
def choose(cards: Callable[..., None], downloader: ModelDownloader, tmp_path: Path) -> Callable[..., object]:
    cards(WHISPER, TORCH)
    folder = tmp_path / "hub"
    folder.mkdir(exist_ok=True)

    async def choose(name: str, engine: str = "", **settings: object) -> tuple[str, str]:
        match = await download.choose_download(
            name, ModelInventory(config.Settings(model_dir=folder, **settings)), downloader, engine
        )
        return match.card.name, match.repository

    return choose


async def test_a_known_name_needs_no_hub(choose: Callable[..., object], hub: FakeHub) -> None:
    assert await choose("small") == ("whispering", "Systran/faster-whisper-small")
    assert await choose("small", "torching") == ("torching", "openai/whisper-small")
    assert await choose("somebody/anything", "torching") == ("torching", "somebody/anything")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["/".join(["d" * 200] * 25), "half-\ud800"], ids=["too long", "half a character"])
async def test_names_that_no_file_can_have_are_the_repositorys_fault(
    choose: Callable[..., object], hub: FakeHub, name: str
) -> None:
    hub.repositories["org/odd"] = FakeRepository({name: b"x"})
    with pytest.raises(PullError, match="org/odd"):
        await choose("org/odd")


@pytest.mark.parametrize("is_listing", [True, False])
async def test_a_process_that_cannot_be_started_is_an_error_of_the_download(
    downloader: ModelDownloader, monkeypatch: pytest.MonkeyPatch, is_listing: bool
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    work = downloader.list_repository(NAME) if is_listing else anext(downloader.download_model(NAME, ()))
    with pytest.raises(PullError, match="The process that downloads org/model cannot be started: No such file"):
        await work


async def test_a_disk_that_is_full_is_named_when_a_repository_is_examined(
    choose: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TemporaryDirectory", lambda prefix: Path("/dev/full").write_text(prefix))
    with pytest.raises(StorageFullError, match="There is no room left to examine the files of a repository"):
        await choose("org/model")


def create_repository(files: list[str], model_type: str) -> FakeRepository:
    contents = dict.fromkeys(files, b"x")
    if "config.json" in contents:
        contents["config.json"] = json.dumps({"model_type": model_type}).encode()
    return FakeRepository(contents)


@pytest.mark.parametrize(
    ("files", "model_type", "engine"),
    [
        (["model.bin", "config.json"], "", "whispering"),
        (["config.json", "model-1.safetensors", "README.md", "sub/x"], "whisper", "torching"),
        (["encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"], "", "moonshine"),
    ],
)
async def test_an_unknown_id_is_known_by_its_files(
    choose: Callable[..., object], hub: FakeHub, files: list[str], model_type: str, engine: str
) -> None:
    hub.repositories["someone/my-finetune"] = create_repository(files, model_type)
    assert await choose("someone/my-finetune") == (engine, "someone/my-finetune")
    assert hub.served < 100


@pytest.mark.parametrize(
    ("files", "model_type"), [(["config.json", "model.safetensors"], "bert"), (["sub/model.bin", "config.json"], ""), ([], "")]
)
async def test_files_that_no_engine_reads_are_refused_with_those_they_do(
    choose: Callable[..., object], hub: FakeHub, files: list[str], model_type: str
) -> None:
    hub.repositories["someone/bert"] = create_repository(files, model_type)
    with pytest.raises(InvalidRequestError, match=r"No engine recognises the files of someone/bert"):
        await choose("someone/bert")


async def test_names_that_lead_nowhere(choose: Callable[..., object], hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match="Close to it: small"):
        await choose("smal")
    with pytest.raises(ModelNotFoundError):
        await choose("../../etc/passwd")
    assert hub.requests == []
    with pytest.raises(ModelNotFoundError, match="The hub has no model nobody/nothing"):
        await choose("nobody/nothing")
    with pytest.raises(InvalidRequestError, match="it is part of the package"):
        await choose("moonshine-tiny-en")


async def test_a_name_of_the_config_means_what_the_config_says(choose: Callable[..., object], tmp_path: Path) -> None:
    models = {"mine": {"engine": "whispering", "source": "someone/tuned", "aliases": ["me"]}, "solo": {"source": "small"}}
    assert await choose("mine", models=models) == ("whispering", "someone/tuned")
    assert await choose("me", models=models) == ("whispering", "someone/tuned")
    assert await choose("solo", models=models) == ("whispering", "Systran/faster-whisper-small")
    (tmp_path / "weights").mkdir()
    local = {"local": {"engine": "whispering", "source": str(tmp_path / "weights")}}
    with pytest.raises(InvalidRequestError, match=r"local cannot be downloaded: its files are at .*weights"):
        await choose("local", models=local)


async def test_an_ambiguous_id_does_not_go_to_the_hub(choose: Callable[..., object], cards: Callable[..., None]) -> None:
    cards(create_card("a", repositories=("x/*",)), create_card("b", repositories=("x/*",)))
    with pytest.raises(ModelNotFoundError, match="is ambiguous"):
        await choose("x/y")


@pytest.mark.parametrize(
    "more",
    [
        {"config.json": json.dumps({"model_type": "whisper", "pad": "x" * 200_000}).encode()},
        {f"notes/{number:04}-{'n' * 60}.txt": b"x" for number in range(3000)},
        {"a": b"x", "a/b": b"x", "a/b/c": b"x"},
        {"n" * 300 + ".txt": b"x", f"folder/{'d' * 300}/x.txt": b"x"},
    ],
    ids=["a long config", "many files", "a file that is a folder too", "long names"],
)
async def test_repositories_of_odd_shapes_are_recognised(
    choose: Callable[..., object], hub: FakeHub, more: dict[str, bytes]
) -> None:
    repository = create_repository(["config.json", "model.bin"], "whisper")
    usual = await _choose_engine(choose, hub, repository)
    assert await _choose_engine(choose, hub, FakeRepository({**repository.files, **more})) == usual


async def _choose_engine(chosen: Callable[..., object], hub: FakeHub, repository: FakeRepository) -> object:
    hub.repositories["somebody/odd"] = repository
    try:
        return await chosen("somebody/odd")
    except InvalidRequestError as refused:
        return str(refused)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.bin": b"x", "a.bin/b.bin": b"y"}, "a.bin/b.bin is inside a.bin, which is also a file"),
        ({"n" * 300 + ".bin": b"x"}, "has a name longer than 255 bytes"),
    ],
)
async def test_what_no_disk_holds_is_told(downloader: ModelDownloader, hub: FakeHub, files: dict[str, bytes], says: str) -> None:
    hub.repositories[NAME] = FakeRepository(files)
    with pytest.raises(PullError, match=says):
        await pull_model(downloader)


async def test_downloads_wait_for_their_turn(downloader: ModelDownloader, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eardrum.gateway.models.download.MAX_QUEUED", 7)
    gate = Event()
    for number in range(8):
        hub.repositories[f"org/m{number}"] = FakeRepository(dict(FILES), gate=gate)
    pulling = [asyncio.create_task(pull_model(downloader, f"org/m{number}")) for number in range(7)]
    await wait_until(lambda: len(list_children()) >= MAX_DOWNLOADS)
    await asyncio.sleep(0.5)
    assert len(list_children()) == MAX_DOWNLOADS
    with pytest.raises(BusyError):
        await pull_model(downloader, "org/m7")
    gate.set()
    for steps in await asyncio.gather(*pulling):
        assert steps[-1].completed == TOTAL
