"""Names to models: config, disk, embedded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from msgspec.structs import replace

from eardrum import config
from eardrum.api.ollama.model_info import inspect_files
from eardrum.errors import ConfigError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.gateway.models import catalog, names
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_ALIASES, EMBEDDED_ID, Model
from eardrum.gateway.models.names import DEFAULT_ALIASES
from eardrum.gateway.models.store import ModelStore, find_hub_cache
from eardrum.transcription import Capabilities, SpeechTask, TranscriptionRequest
from tests.cards import TORCH, WHISPER
from tests.gateway.models.test_names import EVIL

FILES = ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, so that this machine's own is out of play."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


def write_model(folder: Path, size: int = 1) -> Path:
    """A folder that looks like a Moonshine model of three times `size` bytes."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(b"\0" * size)
    return folder


def write_cached_model(store: Path, name: str, snapshot: str = "0a1b", size: int = 1) -> Path:
    """The layout of the Hugging Face cache: blobs, and snapshots that link to them."""
    folder = store / f"models--{name.replace('/', '--')}"
    blobs, snapshot_folder = folder / "blobs", folder / "snapshots" / snapshot
    blobs.mkdir(parents=True, exist_ok=True)
    snapshot_folder.mkdir(parents=True)
    for file in FILES:
        blob = blobs / f"{snapshot}-{file}"
        blob.write_bytes(b"\0" * size)
        (snapshot_folder / file).symlink_to(os.path.relpath(blob, snapshot_folder))
    return snapshot_folder


def create_catalog(**settings: object) -> ModelCatalog:
    return ModelCatalog(config.Settings(**settings))


def build_entry(source: Path, **more: object) -> dict[str, object]:
    return {"source": str(source), **more}


def test_the_embedded_model_is_there_and_has_its_names() -> None:
    found = create_catalog()
    embedded = found.find_model(EMBEDDED_ID)
    assert embedded.origin == "embedded"
    assert embedded.size > 20_000_000
    assert embedded.created > 0
    assert embedded.capabilities.languages == ("en",)
    assert set(embedded.options["sha256"]) == set(FILES)
    for name in (*EMBEDDED_ALIASES, *DEFAULT_ALIASES, ""):
        assert found.find_model(name) is embedded
    assert set(found.list_aliases(embedded)) == {*EMBEDDED_ALIASES, *DEFAULT_ALIASES}
    assert [name for name in found.list_aliases(embedded) if name in DEFAULT_ALIASES] == list(DEFAULT_ALIASES)
    assert found.default is embedded
    assert "embedded" in found.why_default


def test_an_unknown_name_is_told_what_there_is(tmp_path: Path) -> None:
    found = create_catalog(models={"mine": build_entry(write_model(tmp_path / "mine"))})
    with pytest.raises(ModelNotFoundError) as caught:
        found.find_model("large-v9")
    assert caught.value.param == "model"
    for name in ("'large-v9'", "mine", EMBEDDED_ID, "whisper-1"):
        assert name in caught.value.message


def test_names_that_nobody_knows_take_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, looks = create_catalog(), 0
    fingerprint = ModelStore.compute_fingerprint

    def slow(store: ModelStore) -> object:
        nonlocal looks
        looks += 1
        time.sleep(0.01)  # as with thousands of models
        return fingerprint(store)

    monkeypatch.setattr(ModelStore, "compute_fingerprint", slow)
    began = time.monotonic()
    for number in range(100):
        with pytest.raises(ModelNotFoundError):
            found.find_model(f"nobody-{number}")
    assert looks <= 4 + (time.monotonic() - began) / 0.1, "a look and a scan of 0.01 s each have 0.2 s without one behind them"


def test_names_are_exact() -> None:
    with pytest.raises(ModelNotFoundError):
        create_catalog().find_model(EMBEDDED_ID.upper())


def test_models_in_a_plain_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    source = write_model(folder / "base-en", size=10)
    (folder / "notes.txt").write_text("not a model")
    (folder / "unfinished").mkdir()
    found = create_catalog(model_dir=folder)
    assert {model.id: model.origin for model in found if model.is_speech_model} == {"base-en": "disk", EMBEDDED_ID: "embedded"}
    assert found.find_model("base-en") == found.default
    assert (found.default.source, found.default.size, found.default.engine) == (source, 30, "moonshine")


def test_models_in_the_hugging_face_cache(store: Path) -> None:
    old, new = (write_cached_model(store, "Org/moon-en", snapshot, size) for snapshot, size in (("bbbb", 1), ("aaaa", 2)))
    os.utime(old, (1, 1))
    write_cached_model(store, "solo-ja")
    (store / "models--Org--still-loading" / "snapshots").mkdir(parents=True)
    (store / "version.txt").write_text("1")
    found = create_catalog()
    assert [model.id for model in found if model.origin == "disk"] == ["Org/moon-en", "solo-ja"]
    assert found.find_model("Org/moon-en").source == new, "not the newest snapshot"
    assert found.find_model("Org/moon-en").size == 6
    assert found.find_model("solo-ja").capabilities.languages == ("ja",)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "~/hub")
    assert find_hub_cache() == Path("~/hub").expanduser()
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", "/hf")
    assert find_hub_cache() == Path("/hf/hub")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert find_hub_cache() == Path("/cache/huggingface/hub")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert find_hub_cache() == Path("~/.cache/huggingface/hub").expanduser()


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ConfigError, match="set model_dir"):
        find_hub_cache()


@pytest.mark.parametrize("setting", ["default_model", "source"])
def test_a_folder_in_the_home_of_nobody_is_an_error(setting: str) -> None:
    path = "~nobody-has-this-name/model"
    with pytest.raises(ConfigError, match=path):
        create_catalog(**({"default_model": path} if setting == "default_model" else {"models": {"m": {"source": path}}}))


TOO_LONG = "a" * 300
"""Longer than a file system takes."""


@pytest.mark.parametrize(
    "settings",
    [
        {"model_dir": TOO_LONG},
        {"models": {"m": {"source": TOO_LONG}}},
        {"models": {"m": {"source": f"/{TOO_LONG}"}}},
        {"models": {TOO_LONG: {}}},
        {"default_model": f"/{TOO_LONG}"},
    ],
)
def test_a_path_that_no_file_system_takes_is_an_error_of_the_config(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"a{70}"):
        create_catalog(**settings)


def test_a_cache_that_no_file_system_takes_is_an_error_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", TOO_LONG)
    with pytest.raises(ConfigError, match=r"The folder of models, a+, cannot be read: set model_dir"):
        create_catalog()


def test_no_cache_at_all_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nowhere"))
    assert [model.id for model in create_catalog() if model.is_speech_model] == [EMBEDDED_ID]


def test_a_model_dir_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_dir"):
        create_catalog(model_dir=tmp_path / "nowhere")


def test_the_largest_on_disk_is_the_default(store: Path) -> None:
    write_cached_model(store, "a-small", size=5)
    write_cached_model(store, "b-large", size=50)
    write_cached_model(store, "c-larger-ja", size=500)
    found = create_catalog()
    assert (found.default.id, found.why_default) == ("b-large", "the largest on disk")
    assert found.find_model("whisper-1") is found.default


def test_the_first_of_the_config_comes_before_the_disk(store: Path, tmp_path: Path) -> None:
    write_cached_model(store, "on-disk", size=500)
    found = create_catalog(
        models={"z-first": build_entry(write_model(tmp_path / "one")), "a-second": build_entry(write_model(tmp_path / "two"))}
    )
    assert (found.default.id, found.why_default) == ("z-first", "the first in the config")


LLM: dict[str, object] = {"cmd": "llama-server --port 5800", "proxy": "http://localhost:5800"}
HEARING: dict[str, object] = {"cmd": "whisper-server", "proxy": "http://localhost:5801", "capabilities": {"inputs": ["audio"]}}


def test_a_command_is_the_default_only_if_it_is_for_speech(tmp_path: Path) -> None:
    assert create_catalog(models={"llm": LLM}).default.id == EMBEDDED_ID
    assert create_catalog(models={"llm": LLM, "ears": HEARING}).default.id == "ears"
    assert (
        create_catalog(models={"llm": LLM, "own": build_entry(write_model(tmp_path / "a")), "ears": HEARING}).default.id == "own"
    )
    assert create_catalog(models={"llm": LLM, "ears": HEARING}, default_model="llm").default.id == "llm"
    assert create_catalog(models={"llm": LLM, "ears": HEARING}).find_model("whisper-1").id == "ears"
    assert create_catalog(models={"llm": LLM | {"aliases": ["whisper-1"]}}).find_model("whisper-1").id == "llm"


def build_command_entry(line: str = "", **more: object) -> dict[str, object]:
    return {"cmd": line, "proxy": "http://localhost:5802", **more}


HEARS: list[dict[str, object]] = [
    build_command_entry("whisper-server --port 5802 -m ggml-base.bin -l auto"),
    build_command_entry(
        "/opt/whisper.cpp/build/bin/whisper-server -m /models/large.bin --inference-path /v1/audio/transcriptions"
    ),
    build_command_entry("docker run --rm -p 5802:8080 ghcr.io/ggml-org/whisper.cpp:main-cuda -m x.bin"),
    build_command_entry("sh -c 'exec whisper-server --port 5802 -m x.bin'"),
    build_command_entry("vllm serve Qwen/Qwen3-ASR-1.7B --port 5802"),
    build_command_entry("vllm serve mistralai/Voxtral-Mini-3B-2507 --port 5802"),
    build_command_entry("uv run speaches_server --model=nvidia/parakeet-tdt-0.6b-v3"),
    build_command_entry("some-server --route /v1/audio/transcriptions"),
    build_command_entry(use_model_name="whisper-large-v3-turbo"),
    build_command_entry(aliases=["asr"]),
    build_command_entry(aliases=["gpt-4o-transcribe"]),
    build_command_entry(options={"transcriptions": "/api/hear"}),
    build_command_entry("my-server", capabilities={"inputs": ["audio"]}),
    build_command_entry("my-server", capabilities={"inputs": ["text", "audio"], "outputs": ["text"]}),
    build_command_entry("my-server", metadata={"capabilities": ["audio"]}),
]

HEARS_NOT: list[dict[str, object]] = [
    build_command_entry("llama-server --port 5802 -m /models/qwen3.gguf --jinja"),
    build_command_entry("/home/whisper/llama-server --port 5802 -m /srv/asr/qwen3.gguf"),
    build_command_entry("llama-server -m Horse-Whisperer-7B.gguf"),
    build_command_entry("vllm serve collabora/whisperspeech"),
    build_command_entry("vllm serve some/voxtral-tts-4b"),
    build_command_entry(use_model_name="gpt-4o-mini-tts"),
    build_command_entry("whisper-server", capabilities={"inputs": ["text"], "outputs": ["text"]}),
    build_command_entry("whisper-server", metadata={"capabilities": ["completion"]}),
    build_command_entry("my-server", capabilities={"inputs": ["audio"], "outputs": ["audio"]}),
    build_command_entry("my-server", capabilities={"outputs": ["text"]}, aliases=["asr"]),
    build_command_entry(),
]


@pytest.mark.parametrize(("entry_", "hears"), [(e, True) for e in HEARS] + [(e, False) for e in HEARS_NOT])
def test_a_server_that_hears_is_the_default_by_what_is_declared_or_else_by_its_names(entry_: dict, hears: bool) -> None:
    models = {"llm": LLM, "m": entry_}
    found = create_catalog(models=models)
    assert found.find_model("m").is_speech_model is hears
    for name in ("", "whisper-1", "gpt-4o-mini-transcribe"):
        assert found.find_model(name).id == ("m" if hears else EMBEDDED_ID)


def test_who_chats_too_is_the_default_only_if_nobody_is_for_speech_alone() -> None:
    omni = build_command_entry(
        "llama-server -m omni.gguf --mmproj omni.mmproj", capabilities={"inputs": ["text", "audio"], "outputs": ["text"]}
    )
    assert create_catalog(models={"omni": omni}).default.id == "omni"
    assert create_catalog(models={"omni": omni, "ears": HEARING}).default.id == "ears"


def test_a_peer_that_hears_comes_after_the_disk_and_before_the_embedded_model(store: Path) -> None:
    peers = {"attic": {"proxy": "http://attic:8100", "models": ("llama-70b", "whisper-large-v3")}}
    found = create_catalog(peers=peers)
    assert (found.default.id, found.why_default) == ("attic/whisper-large-v3", "the first of a peer")
    assert create_catalog(peers={"attic": {"proxy": "http://attic:8100", "models": ("llama-70b",)}}).default.id == EMBEDDED_ID
    write_cached_model(store, "on-disk", size=500)
    assert create_catalog(peers=peers).default.id == "on-disk"


def test_live_sessions_that_name_no_model_get_one_that_takes_them(tmp_path: Path) -> None:
    found = create_catalog(models={"ears": HEARING})
    assert {name: found.find_live_model(name).id for name in ("", "whisper-1", "ears")} == {
        "": EMBEDDED_ID, "whisper-1": EMBEDDED_ID, "ears": "ears",
    }  # fmt: skip
    found = create_catalog(models={"ears": HEARING, "own": build_entry(write_model(tmp_path / "a"))})
    assert (found.find_live_model("").id, found.default.id) == ("own", "ears")
    chosen = create_catalog(models={"ears": HEARING}, default_model="ears")
    assert chosen.find_live_model("whisper-1").id == "ears", "somebody wants it so, and is told why it cannot be"
    named = create_catalog(models={"ears": HEARING | {"aliases": ["whisper-1"]}})
    assert (named.find_live_model("whisper-1").id, named.find_live_model("").id) == ("ears", EMBEDDED_ID)
    found.replace_with(create_catalog(models={"other": HEARING}), set())
    assert (found.find_live_model("").id, found.default.id) == (EMBEDDED_ID, "other")


def test_a_language_model_is_not_named_as_one_that_translates() -> None:
    models = create_catalog(models={"llm": LLM, "ears": HEARING}, default_model=EMBEDDED_ID)
    with pytest.raises(UnsupportedFeatureError, match=r"Models that can: ears\."):
        models.check_request(models.default, TranscriptionRequest(task=SpeechTask.TRANSLATE))


def test_default_model_comes_before_all(store: Path, tmp_path: Path) -> None:
    write_cached_model(store, "Org/moon")
    models = {"mine": build_entry(write_model(tmp_path / "one"), aliases=["my-alias"])}
    for name, id in (("Org/moon", "Org/moon"), ("my-alias", "mine"), ("moonshine/tiny", EMBEDDED_ID)):
        found = create_catalog(models=models, default_model=name)
        assert found.default.id == id
        assert "default_model" in found.why_default
        assert found.find_model("gpt-4o-transcribe").id == id


def test_an_unknown_default_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"default_model \(STT_DEFAULT_MODEL, WHISPER_MODEL\): .*large-v9.*moonshine-tiny-en"):
        create_catalog(default_model="large-v9")


def test_default_engine() -> None:
    assert create_catalog(default_engine="moonshine").default.id == EMBEDDED_ID
    with pytest.raises(ConfigError, match=r"no engine 'whispr'.*moonshine"):
        create_catalog(default_engine="whispr")


def test_the_config_wins_over_the_disk_and_the_disk_over_the_embedded(store: Path, tmp_path: Path) -> None:
    write_cached_model(store, "same", size=3)
    write_cached_model(store, EMBEDDED_ID)
    mine = write_model(tmp_path / "mine")
    found = create_catalog(models={"same": build_entry(mine)})
    assert found.find_model("same").source == mine
    assert found.find_model(EMBEDDED_ID).origin == "disk"


def test_a_models_settings_reach_it(tmp_path: Path) -> None:
    models = {
        "mine": build_entry(write_model(tmp_path / "one"), options={"threads": 2, "device": "cpu"}, batch_size=3, max_requests=5)
    }
    found = create_catalog(models=models, device="cuda", compute_type="int8", limits={"requests": 9})
    mine = found.find_model("mine")
    assert mine.options == {"threads": 2, "device": "cpu", "compute_type": "int8"}
    assert (mine.batch_size, mine.scheduling.max_requests) == (3, 5)
    assert found.find_model(EMBEDDED_ID).scheduling.max_requests == 9


def test_a_models_language_is_in_its_options_or_its_name(tmp_path: Path) -> None:
    models = {
        "mine-es": build_entry(write_model(tmp_path / "one")),
        "mine": build_entry(write_model(tmp_path / "two"), options={"language": "uk"}),
    }
    found = create_catalog(models=models)
    assert found.find_model("mine-es").capabilities.languages == ("es",)
    assert found.find_model("mine").capabilities.languages == ("uk",)
    assert found.default.id == EMBEDDED_ID, "a model without English is no default for everybody"


def test_files_of_no_engine_are_refused_and_the_message_says_which_would_do(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    with pytest.raises(ConfigError, match=r"models\.odd.*moonshine: encoder_model\.ort"):
        create_catalog(models={"odd": build_entry(tmp_path / "odd")})
    assert (
        create_catalog(models={"odd": build_entry(tmp_path / "odd", engine="moonshine")}).find_model("odd").engine == "moonshine"
    )


def test_an_alias_belongs_to_one_model(tmp_path: Path) -> None:
    one, two = (
        build_entry(write_model(tmp_path / "one"), aliases=["x"]),
        build_entry(write_model(tmp_path / "two"), aliases=["x"]),
    )
    with pytest.raises(ConfigError, match="'x' of two already belongs to one"):
        create_catalog(models={"one": one, "two": two})


@pytest.mark.parametrize(
    "order",
    [
        ["two", "one"],
        pytest.param(["one", "two"]),
    ],
)
def test_an_alias_may_not_be_another_models_id(tmp_path: Path, order: list[str]) -> None:
    models = {
        "one": build_entry(write_model(tmp_path / "one"), aliases=["two"]),
        "two": build_entry(write_model(tmp_path / "two")),
    }
    with pytest.raises(ConfigError, match="two"):
        create_catalog(models={id: models[id] for id in order})


def test_an_alias_of_the_config_wins_over_the_embedded_models_id(tmp_path: Path) -> None:
    found = create_catalog(models={"mine": build_entry(write_model(tmp_path / "one"), aliases=[EMBEDDED_ID])})
    assert found.find_model(EMBEDDED_ID).id == "mine"


def test_a_clients_usual_name_may_be_given_to_another_model(tmp_path: Path) -> None:
    models = {
        "one": build_entry(write_model(tmp_path / "one")),
        "two": build_entry(write_model(tmp_path / "two"), aliases=["whisper-1"]),
    }
    found = create_catalog(models=models)
    assert found.find_model("whisper-1").id == "two"
    assert found.find_model("gpt-4o-transcribe").id == found.default.id == "one"
    assert "whisper-1" in found.list_aliases(found.find_model("two"))


@pytest.mark.parametrize("name", [EMBEDDED_ID, pytest.param("")])
def test_what_the_loaded_model_says_of_itself_replaces_the_card(name: str) -> None:
    found = create_catalog()
    refined = Capabilities(languages=("en", "fr"), translate=True)
    found.update_capabilities(found.find_model(EMBEDDED_ID), refined)
    found.check_request(found.find_model(name), TranscriptionRequest(task=SpeechTask.TRANSLATE, language="fr"))
    assert found.find_model(name).capabilities == refined


def test_a_model_that_one_client_loaded_keeps_the_time_to_live_of_the_config() -> None:
    found = create_catalog(default_ttl=60)
    refined = Capabilities(languages=("en", "fr"))
    found.update_capabilities(found.default.with_ttl(0.001), refined)  # as Ollama's `keep_alive: 0` asks
    assert (found.default.ttl, found.default.capabilities) == (60, refined)


def test_what_a_model_that_is_gone_reports_does_not_bring_it_back(tmp_path: Path) -> None:
    before = create_catalog(models={"one": build_entry(write_model(tmp_path / "one"))})
    found = create_catalog()
    found.update_capabilities(before.find_model("one"), Capabilities())
    assert "one" not in [model.id for model in found]


def get_refusal(found: ModelCatalog, model: Model, request: TranscriptionRequest) -> UnsupportedFeatureError:
    with pytest.raises(UnsupportedFeatureError) as caught:
        found.check_request(model, request)
    assert caught.value.message.startswith(model.id)
    return caught.value


@pytest.mark.parametrize(
    ("request_", "param", "says"),
    [
        (TranscriptionRequest(language="de"), "language", "German (de), only English (en)"),
        (TranscriptionRequest(task=SpeechTask.TRANSLATE), "model", "does not translate"),
        (TranscriptionRequest(words=True), "timestamp_granularities", "not per word"),
    ],
)
def test_what_a_model_cannot_is_refused_with_what_it_can(request_: TranscriptionRequest, param: str, says: str) -> None:
    found = create_catalog()
    error = get_refusal(found, found.default, request_)
    assert error.param == param
    assert says in error.message
    assert "No model" in error.message


def test_a_refusal_names_the_models_that_can(tmp_path: Path) -> None:
    found = create_catalog(
        models={"german-de": build_entry(write_model(tmp_path / "one")), "babel": build_entry(write_model(tmp_path / "two"))}
    )
    found.update_capabilities(found.find_model("babel"), Capabilities(translate=True, words=True))
    embedded = found.find_model(EMBEDDED_ID)
    assert "Models that can: german-de, babel." in get_refusal(found, embedded, TranscriptionRequest(language="de")).message
    for request in (
        TranscriptionRequest(task=SpeechTask.TRANSLATE),
        TranscriptionRequest(words=True),
    ):
        assert "Models that can: babel." in get_refusal(found, embedded, request).message
        found.check_request(found.find_model("babel"), request)


def test_logprobs_need_a_model_that_has_them() -> None:
    found = create_catalog()
    found.check_request(
        found.default, TranscriptionRequest(logprobs=True, language="en", prompt="hints are no demands", temperature=1.0)
    )
    found.update_capabilities(found.default, Capabilities())
    assert get_refusal(found, found.default, TranscriptionRequest(logprobs=True)).param == "include"


def test_options_and_sources_are_checked_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models.one.options: moonshine has no option beam, only .*threads"):
        create_catalog(models={"one": build_entry(write_model(tmp_path / "one"), options={"beam": 5})})
    with pytest.raises(ConfigError, match=r"models.one.source: .*nowhere does not exist"):
        create_catalog(models={"one": build_entry(tmp_path / "nowhere")})


@pytest.fixture
def engines(cards: Callable[..., None]) -> Callable[..., None]:
    """Engines with names, which Moonshine has none of."""
    return cards


def write_whisper(store: Path, id: str) -> Path:
    """A model of the engine `whispering` in the cache."""
    snapshot = store / f"models--{id.replace('/', '--')}" / "snapshots" / "r1"
    snapshot.mkdir(parents=True)
    for name in ("model.bin", "config.json"):
        (snapshot / name).write_bytes(b"{}")
    return snapshot


SMALL = "Systran/faster-whisper-small"


def test_all_names_of_a_model_on_disk_find_it(engines: Callable[..., None], store: Path) -> None:
    write_whisper(store, SMALL)
    found = create_catalog()
    for name in ("small", "openai/whisper-small", SMALL, "faster-whisper-small"):
        assert found.find_model(name).id == SMALL
    assert found.find_model("small").capabilities.words


def test_weights_of_another_engine_serve_a_name_when_the_best_ones_are_not_here(
    engines: Callable[..., None], store: Path
) -> None:
    folder = store / "models--openai--whisper-small" / "snapshots" / "r1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    (folder / "model.safetensors").write_bytes(b"")
    assert create_catalog().find_model("small").id == "openai/whisper-small"


def test_a_known_model_that_is_not_here_says_how_to_get_it(engines: Callable[..., None], store: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"small \(Systran/.*\) is not on this machine: run `eardrum pull small`"):
        create_catalog().find_model("small")
    blobs = store / "models--Systran--faster-whisper-small" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "ff.part").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"is only partly downloaded: run `eardrum pull small`"):
        create_catalog().find_model("small")


def test_a_model_that_arrives_is_seen_without_a_restart(
    engines: Callable[..., None], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "RESCAN_PAUSE_FACTOR", 0)  # a scan that a busy machine slows down delays the next one
    found = create_catalog()
    with pytest.raises(ModelNotFoundError):
        found.find_model("small")
    write_whisper(store, SMALL)
    assert found.find_model("small").id == SMALL


def test_the_files_of_a_model_of_the_config_are_seen_without_a_restart(
    engines: Callable[..., None], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "RESCAN_PAUSE_FACTOR", 0)
    found = create_catalog(models={"m": {"source": "small"}})
    assert found.find_model("m").needs_download
    write_whisper(store, SMALL)
    assert not found.find_model("m").needs_download


def test_with_pull_missing_a_known_model_is_there_before_its_files(engines: Callable[..., None]) -> None:
    found = create_catalog(pull_missing=True)
    model = found.find_model("large")
    assert (model.id, model.needs_download, model.engine) == ("Systran/faster-whisper-large-v3", True, "whispering")
    assert model not in list(found)
    found.check_request(model, TranscriptionRequest(words=True, task=SpeechTask.TRANSLATE))
    with pytest.raises(UnsupportedFeatureError):
        found.check_request(model, TranscriptionRequest(logprobs=True))
    with pytest.raises(ModelNotFoundError):
        found.find_model("../../etc/passwd")


def test_a_model_of_the_config_may_be_a_name(engines: Callable[..., None], store: Path) -> None:
    models = {
        "quick": {"source": "small", "aliases": ["q"]},
        "large": {},
        "tuned": {"engine": "whispering", "source": "someone/tuned"},
    }
    found = create_catalog(models=models)
    for name, repository in (("q", SMALL), ("large", "Systran/faster-whisper-large-v3"), ("tuned", "someone/tuned")):
        model = found.find_model(name)
        assert (model.needs_download, model.repository, model.engine, model.origin) == (True, repository, "whispering", "config")
    assert found.default.id == EMBEDDED_ID, "what is not here is no default"
    write_whisper(store, SMALL)
    found.scan()
    assert not found.find_model("quick").needs_download


def test_a_name_in_the_config_that_nobody_knows_is_refused(engines: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match=r"models\.x: .*'smal'.*Close to it: small.* There is no directory /"):
        create_catalog(models={"x": {"source": "smal"}})


def test_a_folder_that_happens_to_have_the_name_of_a_model_is_not_it(
    engines: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert create_catalog(models={"small": {}}).find_model("small").repository == SMALL


def test_another_servers_settings_mean_what_they_meant_there(engines: Callable[..., None], store: Path) -> None:
    settings = config.load_settings(environment={"ASR_BACKEND": "torching", "WHISPER_MODEL": "small"})
    with pytest.raises(
        ConfigError, match=r"default_model \(STT.*small \(openai/whisper-small\).*`eardrum pull small --engine torching`"
    ):
        ModelCatalog(settings)
    write_whisper(store, SMALL)
    with pytest.raises(ConfigError, match="openai/whisper-small"):  # the other engine's weights are not what was asked for
        ModelCatalog(settings)
    assert ModelCatalog(config.load_settings(environment={"WHISPER_MODEL": "small"})).default.id == SMALL
    with pytest.raises(ConfigError, match=r"default_engine \(STT_DEFAULT_BACKEND, ASR_BACKEND\): There is no engine 'nobody'"):
        create_catalog(default_engine="nobody")
    with pytest.raises(ConfigError, match=rf"is {EMBEDDED_ID}, which moonshine runs, but default_engine .* is torching"):
        create_catalog(default_engine="torching", default_model=EMBEDDED_ID)
    with pytest.raises(ConfigError, match=r"There is no model of the engine lacking.*pip install 'eardrum\[lacking\]'"):
        create_catalog(default_engine="lacking")


def test_the_default_engine_runs_what_several_engines_could(engines: Callable[..., None], store: Path) -> None:
    engines(WHISPER, TORCH, replace(TORCH, name="torching_too", names={}, rank=1))
    folder = store / "models--openai--whisper-small" / "snapshots" / "r1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    (folder / "model.safetensors").write_bytes(b"")
    assert create_catalog(default_model="openai/whisper-small").default.engine == "torching_too"
    found = ModelCatalog(config.load_settings(environment={"ASR_BACKEND": "torching", "WHISPER_MODEL": "small"}))
    assert (found.default.id, found.default.engine) == ("openai/whisper-small", "torching")
    assert found.find_model("small") is found.default
    models = {"mine": {"source": "openai/whisper-small", "engine": "torching_too"}}
    assert create_catalog(default_engine="torching", models=models).find_model("mine").engine == "torching_too"


def test_a_default_whose_engine_cannot_run_says_what_to_install(engines: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match=r"default_model Rare/rare-1b: .*no_such_library: run pip install 'eardrum\[lacking\]'"):
        create_catalog(default_model="rare", pull_missing=True)


def test_a_fallback_that_could_be_fetched_is_no_mistake(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = create_catalog(models={"mine": build_entry(write_model(tmp_path / "one"), fallback=["large-v3", EMBEDDED_ID])})
    assert found.find_model("mine").fallback == ("large-v3", EMBEDDED_ID)
    assert "eardrum pull large-v3" in caplog.text


def test_a_speech_model_is_no_help_to_a_language_model(caplog: pytest.LogCaptureFixture) -> None:
    create_catalog(models={"llm": LLM | {"fallback": [EMBEDDED_ID]}})
    assert f"models.llm.fallback: {EMBEDDED_ID} is a speech model, but llm is not" in caplog.text
    caplog.clear()
    create_catalog(models={"llm": LLM | {"fallback": ["ears"]}, "ears": HEARING | {"fallback": [EMBEDDED_ID]}})
    assert "no help" not in caplog.text


def test_of_a_model_in_the_config_its_name_may_say_all() -> None:
    found = create_catalog(
        **config.load_settings(overrides={"models": {"large-v3": None}}, environment={}).model_dump(include={"models"})
    )
    assert (found.find_model("large-v3").engine, found.find_model("large-v3").needs_download) == ("faster_whisper", True)


def test_the_embedded_model_may_be_named_in_the_config() -> None:
    plain = create_catalog().find_model(EMBEDDED_ID)
    found = create_catalog(models={EMBEDDED_ID: {"ttl": 5, "aliases": ["tiny"]}})
    assert (found.find_model(EMBEDDED_ID).source, found.find_model(EMBEDDED_ID).scheduling.ttl) == (plain.source, 5)
    assert {found.find_model(name).id for name in ("tiny", *plain.aliases)} == {EMBEDDED_ID}
    other = create_catalog(models={"mine": {"source": EMBEDDED_ID}})
    assert (other.find_model("mine").source, other.find_model(EMBEDDED_ID).source) == (plain.source, plain.source)


def test_fallbacks_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.mine\.fallback: .*'nobody'"):
        create_catalog(models={"mine": build_entry(write_model(tmp_path / "one"), fallback=["nobody"])})


def test_what_breaks_on_disk_later_does_not_take_the_rest_along(tmp_path: Path, store: Path) -> None:
    source = write_model(tmp_path / "mine")
    found = create_catalog(models={"mine": build_entry(source)})
    (source / FILES[0]).unlink()
    write_model(store / "new-en")
    assert found.find_model("new-en").origin == "disk"
    assert found.find_model("mine").source == source
    assert found.find_model(EMBEDDED_ID).is_runnable


@pytest.mark.parametrize("name", EVIL[1:], ids=range(len(EVIL) - 1))
@pytest.mark.parametrize("pull_missing", [False, True])
def test_no_name_from_a_client_does_harm(engines: Callable[..., None], name: str, pull_missing: bool) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        create_catalog(pull_missing=pull_missing).find_model(name)
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message


def reload_catalog(found: ModelCatalog) -> ModelCatalog:
    """The catalog a moment later: two looks at the disk are never at the same time."""
    found._next_scan_at = 0
    return found


GERMAN = TranscriptionRequest(language="de")


@pytest.mark.parametrize("name", ["", "whisper-1", "gpt-live-transcribe"])
def test_what_comes_to_the_disk_becomes_the_default_of_a_running_server(
    store: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = create_catalog()
    assert found.find_model(name).id == EMBEDDED_ID
    write_cached_model(store, "a-small", size=5)
    assert reload_catalog(found).find_model(name).id == found.default.id == "a-small"
    write_model(store / "b-large", size=50)
    assert reload_catalog(found).find_model(name).id == found.default.id == "b-large"
    assert found.why_default == "the largest on disk"
    assert set(DEFAULT_ALIASES) <= set(found.list_aliases(found.default))
    assert "The default model is now b-large: the largest on disk." in caplog.text
    write_cached_model(store, "a-small", snapshot="an-update", size=500)
    assert reload_catalog(found).find_model(name).id == "a-small"


def test_the_default_that_goes_from_the_disk_is_followed_by_the_next(store: Path) -> None:
    write_cached_model(store, "large", size=50)
    found = create_catalog()
    assert found.default.id == "large"
    shutil.rmtree(store / "models--large")
    assert reload_catalog(found).find_model("whisper-1").id == EMBEDDED_ID


def test_a_default_that_somebody_has_chosen_stays(store: Path, tmp_path: Path) -> None:
    chosen, first = (
        create_catalog(default_model=EMBEDDED_ID),
        create_catalog(models={"mine": build_entry(write_model(tmp_path / "one"))}),
    )
    write_cached_model(store, "large", size=50)
    assert reload_catalog(chosen).find_model("").id == EMBEDDED_ID
    assert reload_catalog(first).find_model("").id == "mine"
    assert chosen.find_model("large").origin == "disk"


def test_the_disk_is_not_looked_at_all_the_time(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, looks = create_catalog(), 0
    fingerprint = found.inventory.store.compute_fingerprint

    def counted() -> object:
        nonlocal looks
        looks += 1
        return fingerprint()

    monkeypatch.setattr(found.inventory.store, "compute_fingerprint", counted)
    monkeypatch.setattr("eardrum.gateway.models.catalog.RESCAN_PAUSE_FACTOR", 1e9)
    for _ in range(100):
        found.find_model("whisper-1")
    assert looks == 1


def test_models_that_come_and_go_during_a_scan_disturb_no_other(tmp_path: Path) -> None:
    found = ModelCatalog(config.Settings(model_dir=tmp_path))
    files, ended = found.default.source, Event()
    assert files

    def come_and_go(name: str) -> None:
        while not ended.is_set():
            for folder in (tmp_path / f"models--a--{name}", tmp_path / name):
                shutil.copytree(files, folder / "snapshots" / "r1" if "models--" in folder.name else folder)
                shutil.rmtree(folder)

    with ThreadPoolExecutor(3) as threads:
        coming = [threads.submit(come_and_go, name) for name in "bcd"]
        until = time.monotonic() + 3
        try:
            while time.monotonic() < until:
                found.scan()
                assert all(model.size >= 0 and model.created >= 0 and inspect_files(model).size >= 0 for model in found)
                assert found.inventory.store.list_unfinished() == []
        finally:
            ended.set()
        assert not any(one.exception() for one in coming)


def test_a_config_json_without_end_disturbs_no_other(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("model.bin", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "vocabulary.json"):
        (tmp_path / "deep" / name).write_text("{}")
    (tmp_path / "deep" / "config.json").write_text("[" * 100_000)
    assert EMBEDDED_ID in [model.id for model in ModelCatalog(config.Settings(model_dir=tmp_path))]


def test_a_store_that_cannot_be_read_any_more_refuses_nobody(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = create_catalog()
    write_cached_model(store, "large", size=50)

    def unreadable() -> list[object]:
        raise ConfigError("The folder of models cannot be read.")

    monkeypatch.setattr(found.inventory.store, "_list_ids", unreadable)
    assert reload_catalog(found).find_model("").id == EMBEDDED_ID
    assert "cannot be read" in caplog.text


def test_who_names_a_language_and_no_model_gets_one_that_knows_it(store: Path) -> None:
    found = create_catalog()
    assert found.find_model("whisper-1", GERMAN).id == EMBEDDED_ID
    write_cached_model(store, "moon-de")
    assert reload_catalog(found).find_model("whisper-1", GERMAN).id == "moon-de"
    write_cached_model(store, "moon-large-de", size=9)
    assert reload_catalog(found).find_model("", GERMAN).id == "moon-large-de"
    assert found.find_model("", TranscriptionRequest(language="en")).id == found.find_model("").id == EMBEDDED_ID
    assert found.find_model(EMBEDDED_ID, GERMAN).id == EMBEDDED_ID, "who names a model is refused by it"


def test_a_usual_name_that_the_config_gives_away_names_a_model(store: Path, tmp_path: Path) -> None:
    write_cached_model(store, "moon-de")
    found = create_catalog(models={"mine-en": build_entry(write_model(tmp_path / "one"), aliases=["whisper-1"])})
    assert found.find_model("whisper-1", GERMAN).id == "mine-en"
    assert found.find_model("gpt-4o-transcribe", GERMAN).id == "moon-de"


def test_of_those_that_know_the_language_one_that_can_the_rest_comes_first(store: Path, tmp_path: Path) -> None:
    models = {
        name: build_entry(write_model(tmp_path / name), unlisted=name == "secret-de")
        for name in ("secret-de", "one-de", "two-de")
    }
    found = create_catalog(models=models)
    found.update_capabilities(found.find_model("two-de"), Capabilities(languages=("de",), translate=True))
    assert found.find_model("", GERMAN).id == "one-de"
    assert found.find_model("", replace(GERMAN, task=SpeechTask.TRANSLATE)).id == "two-de"
    assert found.find_model("", TranscriptionRequest(task=SpeechTask.TRANSLATE)).id == EMBEDDED_ID, (
        "what else is asked for moves nobody"
    )


def test_live_sessions_without_a_name_get_a_model_that_can_have_them(store: Path) -> None:
    write_cached_model(store, "moon-de")
    found = create_catalog(models={"whisper": HEARING}, default_model=EMBEDDED_ID)
    assert found.find_model("", GERMAN).id == "whisper"
    assert found.find_model("", GERMAN, live=True).id == "moon-de"


def test_the_default_knows_the_servers_language(store: Path) -> None:
    write_cached_model(store, "moon-de", size=5)
    write_cached_model(store, "moon-en", size=50)
    assert create_catalog(default_language="de").default.id == "moon-de"
    assert create_catalog().default.id == "moon-en"


def test_a_refusal_knows_what_has_come(store: Path) -> None:
    found = create_catalog()
    write_cached_model(store, "moon-de")
    assert "Models that can: moon-de." in get_refusal(reload_catalog(found), found.find_model(EMBEDDED_ID), GERMAN).message


def test_a_folder_may_stand_in_the_place_of_the_default_models_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write_model(tmp_path / "models" / "mine")
    for path in (str(folder), "models/mine", "./models/mine", "models/mine/", "~/models/mine"):
        default = create_catalog(default_model=path).default
        assert (default.id, default.source, default.engine) == ("mine", folder, "moonshine"), path
    again = create_catalog(default_model="models/mine")
    again.scan()
    assert again.find_model("whisper-1").source == again.find_model("mine").source == folder
    assert "mine" in [model.id for model in again]


def test_a_part_of_a_hugging_face_cache_is_such_a_folder_too(tmp_path: Path) -> None:
    snapshot = write_cached_model(tmp_path / "copy", "someone/moon")
    for path in (snapshot, snapshot.parent.parent):
        default = create_catalog(default_model=str(path)).default
        assert (default.id, default.source) == ("someone/moon", snapshot)


def test_a_folder_that_the_catalog_knows_is_the_model_it_knows(store: Path, tmp_path: Path) -> None:
    known = write_model(tmp_path / "models" / "moon")
    other = write_model(tmp_path / "other" / "moon")
    by_path = create_catalog(model_dir=known.parent, default_model=str(known))
    assert (by_path.default.id, by_path.default.origin) == ("moon", "disk")
    both = create_catalog(model_dir=known.parent, default_model=str(other))
    assert (both.default.id, both.find_model("moon").source) == (str(other), known)


def test_a_name_stays_a_name_where_a_folder_is_called_so_too(
    engines: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(WHISPER)
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / EMBEDDED_ID)
    (tmp_path / "large-v3").mkdir()
    assert create_catalog(default_model=EMBEDDED_ID).default.origin == "embedded"
    with pytest.raises(ConfigError, match="run `eardrum pull large-v3`"):
        create_catalog(default_model="large-v3")


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"No engine recognises {tmp_path}/empty as a model"):
        create_catalog(default_model=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="There is no model at /nowhere/at/all"):
        create_catalog(default_model="/nowhere/at/all")


def test_no_client_can_name_a_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    with pytest.raises(ModelNotFoundError):
        create_catalog().find_model(str(folder))


@pytest.mark.parametrize(
    ("entry_", "command"),
    [
        ({"source": "small"}, "eardrum pull small"),
        ({"source": "Systran/faster-whisper-small"}, "eardrum pull Systran/faster-whisper-small"),
        ({"source": "small", "engine": "torching"}, "eardrum pull small --engine torching"),
        ({"source": "someone/tuned", "engine": "torching"}, "eardrum pull someone/tuned"),
    ],
)
def test_a_model_that_the_config_alone_knows_is_fetched_by_its_source(
    engines: Callable[..., None], entry_: dict[str, object], command: str
) -> None:
    engines(WHISPER, TORCH)
    here = create_catalog(models={"best": entry_})
    assert here.find_model("best").format_pull_command() == command
    assert f"run `{command}`" in here.explain_download(here.find_model("best"))
    at_a_shell = create_catalog(models={})
    source = command.split()[2]
    match = names.choose_match(source, "torching" if "--engine" in command or "tuned" in command else "")
    assert at_a_shell.inventory.build_downloadable(match).repository == here.find_model("best").repository


def test_a_configs_name_that_engines_know_for_other_weights_is_not_what_is_fetched(engines: Callable[..., None]) -> None:
    engines(WHISPER, TORCH)
    assert (
        create_catalog(models={"small": {"source": "large-v3"}}).find_model("small").format_pull_command()
        == "eardrum pull large-v3"
    )
