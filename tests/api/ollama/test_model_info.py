"""What models can do and are, by the config and the words of a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eardrum import config
from eardrum.api.ollama import listing, model_info
from eardrum.api.ollama import model_info as details
from eardrum.api.ollama import model_info as files
from eardrum.api.ollama import model_info as weights
from eardrum.api.ollama.model_info import CommandFlags
from eardrum.api.ollama.requests import ServerFeatures
from eardrum.gateway.models.inventory import Model, ModelInventory
from tests import gguf_files


def create_external(id: str = "m", **entry: Any) -> Model:
    entry = {"proxy": "http://127.0.0.1:1"} | entry
    model = ModelInventory(config.Settings(models={id: entry})).find_configured(id)
    assert model
    return model


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, ["completion"]),
        ({"cmd": "llama-server -m x.gguf --jinja --mmproj y.gguf"}, ["completion", "tools", "vision"]),
        ({"cmd": "llama-server --reasoning-format deepseek"}, ["completion", "thinking"]),
        ({"cmd": "llama-server --reasoning-budget 0"}, ["completion"]),
        ({"cmd": "llama-server --embedding"}, ["embedding"]),
        ({"cmd": "vllm serve BAAI/bge-m3 --task=embed"}, ["embedding"]),
        ({"cmd": "llama-server --reranking"}, []),
        ({"cmd": "/opt/whisper-server -m tiny.bin"}, ["audio"]),
        ({"cmd": "server --inference-path /v1/audio/transcriptions"}, ["audio"]),
        ({"capabilities": {"inputs": ["audio"], "outputs": ["text"]}}, ["audio"]),
        ({"capabilities": {"inputs": ["text", "image", "audio"], "tools": True}}, ["completion", "tools", "vision", "audio"]),
        ({"capabilities": {"inputs": ["text"], "outputs": ["image"]}}, ["image"]),
        ({"cmd": "whisper-wrapper", "metadata": {"capabilities": ["completion", "insert"]}}, ["completion", "insert"]),
    ],
)
def test_capabilities(entry: dict[str, Any], expected: list[str]) -> None:
    assert model_info.get_capabilities(create_external(**entry)) == expected


def test_who_hears() -> None:
    assert model_info.is_speech_model(create_external(metadata={"capabilities": ["audio"]}))
    assert model_info.is_speech_model(create_external(options={"transcriptions": "/inference"}))
    assert not model_info.is_speech_model(create_external(cmd="whisper-server", metadata={"capabilities": ["completion"]}))
    assert not model_info.is_speech_model(create_external(capabilities={"inputs": ["audio", "text"]}))


def test_clouds_are_known_by_their_address() -> None:
    assert model_info.get_server_features(create_external(proxy="http://192.168.1.4:8080")) == ServerFeatures(
        local=True, infills=False
    )
    assert model_info.get_server_features(create_external(proxy="https://api.example.com")) == ServerFeatures(
        local=False, infills=False
    )
    assert model_info.get_server_features(create_external(cmd="/opt/llama-server -m x.gguf")) == ServerFeatures(
        local=True, infills=True
    )


@pytest.mark.parametrize(
    ("id", "cmd", "family", "size", "quantization"),
    [
        ("a", "llama-server -m /m/Qwen3-30B-A3B-Q4_K_M.gguf", "qwen3", "30B", "Q4_K_M"),
        ("a", "llama-server -hf ggml-org/gemma-3-4b-it-GGUF:Q8_0", "gemma3", "4B", "Q8_0"),
        ("a", "vllm serve mistralai/Mixtral-8x7B-AWQ --port 1", "mixtral", "8X7B", "AWQ"),
        ("gpt-oss-120b-mxfp4", "llama-server", "gptoss", "120B", "MXFP4"),
        ("nomic-embed-text-v1.5.f16", "llama-server", "nomic-bert", "", "F16"),
        ("mystery", "llama-server -m /m/b.gguf", "", "", ""),
    ],
)
def test_details_are_read_off_names(id: str, cmd: str, family: str, size: str, quantization: str) -> None:
    found = details.get_details(create_external(id, cmd=cmd))
    assert (found["family"], found["parameter_size"], found["quantization_level"]) == (family, size, quantization)
    assert found["families"] == ([family] if family else [])
    assert all(value is not None for value in found.values())


def test_the_config_knows_better() -> None:
    said = {"architecture": "olmo", "family": "o", "parameterSize": "1T", "quantizationLevel": "Q1", "contextLength": 99}
    model = create_external(cmd="llama-server -m qwen3-8b.gguf -c 4096", metadata=said)
    found = details.get_details(model)
    assert (found["family"], found["parameter_size"], found["quantization_level"]) == ("o", "1T", "Q1")
    assert details.get_model_info(model) == {"general.architecture": "olmo", "general.basename": "m", "olmo.context_length": 99}
    assert details.get_context_length(create_external(cmd="x -c 4096", capabilities={"context": 7})) == 7


@pytest.mark.parametrize(
    ("cmd", "context"), [("x -c 4096", 4096), ("x --ctx-size=512", 512), ("vllm --max-model-len 32k", 0), ("x -c", 0), ("'", 0)]
)
def test_context_of_a_command(cmd: str, context: int) -> None:
    assert CommandFlags.of(cmd).context_length == context


@pytest.mark.parametrize(
    ("cmd", "environment"),
    [
        ("sh -c 'exec llama-server --port 1 -m x.gguf -c 4096'", ()),
        ("/bin/bash -lc 'cd /srv && llama-server -m x.gguf -c 4096'", ()),
        ("env CUDA_VISIBLE_DEVICES=0 llama-server --port 1 -m x.gguf -c 4096", ()),
        ("env LLAMA_ARG_MODEL=x.gguf LLAMA_ARG_CTX_SIZE=4096 llama-server --port 1", ()),
        ("llama-server --port 1", ("LLAMA_ARG_MODEL=x.gguf", "LLAMA_ARG_CTX_SIZE=4096")),
        ("docker run -e LLAMA_ARG_MODEL=x.gguf ghcr.io/ggml-org/llama.cpp:server -c 4096", ()),
        ("llama-server -m y.gguf -c 8192 -m x.gguf -c 4096", ("LLAMA_ARG_MODEL=z.gguf",)),
    ],
)
def test_flags_are_found_wherever_they_are_said(cmd: str, environment: tuple[str, ...]) -> None:
    flags = CommandFlags.of(cmd, environment)
    assert (flags.weights, flags.context_length, flags.is_llama_server, flags.is_embedding_server) == (
        "x.gguf",
        4096,
        True,
        False,
    )


def test_what_runs_is_not_what_stands_before_it() -> None:
    assert CommandFlags.of("env A=1 sh -c 'exec /opt/whisper-server -m x.bin'").is_speech_server
    assert CommandFlags.of("nohup llama-server -c 5").program == "llama-server"
    assert CommandFlags.of("sh start.sh -c 4096").context_length == 4096
    assert CommandFlags.of("llama-server", ["LLAMA_ARG_EMBEDDINGS=1"]).is_embedding_server
    assert not CommandFlags.of("llama-server", ["LLAMA_ARG_EMBEDDINGS=0"]).is_embedding_server


def test_files_are_counted_and_a_digest_tells_when_they_change(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"big-0000{part}-of-00002.gguf").write_bytes(bytes(100))
    (tmp_path / "mmproj.gguf").write_bytes(bytes(11))
    model = create_external(cmd=f"llama-server -m {tmp_path}/big-00001-of-00002.gguf --mmproj {tmp_path}/mmproj.gguf")
    before = files.inspect_files(model)
    assert before.size == 211
    assert before == files.inspect_files(model)
    assert before.modified == max(path.stat().st_mtime for path in tmp_path.iterdir())
    (tmp_path / "big-00002-of-00002.gguf").write_bytes(bytes(101))
    assert files.inspect_files(model).digest != before.digest
    assert files.inspect_files(create_external("other")).digest != files.inspect_files(create_external("m")).digest
    assert files.inspect_files(create_external(cmd="llama-server -m nowhere.gguf")).size == 0


def test_contents_that_several_links_lead_to_count_once(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(100))
    for name in ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).symlink_to(tmp_path / "blob")
    model = ModelInventory(config.Settings(models={"a": {"source": str(tmp_path / "model")}})).find_configured("a")
    assert model
    assert files.inspect_files(model).size == 100


def create_command(tmp_path: Path, flags: str = "", program: str = "llama-server", **values: Any) -> Model:
    """A command with nothing but its weights."""
    path = gguf_files.write_gguf(tmp_path / "x.gguf", {**gguf_files.QWEN, **values})
    return create_external("m", cmd=f"{program} -m {path} {flags}")


def test_a_plain_llama_server_is_known_by_its_weights(tmp_path: Path) -> None:
    shown = listing.describe_model(create_command(tmp_path))
    assert shown["capabilities"] == ["completion", "tools"]
    assert ".Tools" in shown["template"]
    facts = shown["model_info"]
    assert (facts["general.architecture"], facts["qwen3.context_length"], facts["qwen3.embedding_length"]) == (
        "qwen3",
        40960,
        2560,
    )
    assert not [key for key, value in facts.items() if isinstance(value, list) or (isinstance(value, str) and len(value) > 1000)]
    told = shown["details"]
    assert (told["family"], told["parameter_size"], told["quantization_level"]) == ("qwen3", "4B", "Q4_K_M")
    (tag,) = listing.list_tags([create_command(tmp_path)], [])["models"]
    assert (tag["details"]["context_length"], tag["capabilities"]) == (40960, ["completion", "tools"])
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


@pytest.mark.parametrize(
    ("flags", "values", "expected"),
    [
        ("--no-jinja", {}, ["completion"]),
        ("--chat-template chatml", {}, ["completion"]),
        ("--chat-template chatml --jinja", {}, ["completion", "tools"]),
        ("--mmproj y.gguf", {}, ["completion", "tools", "vision"]),
        ("", {"tokenizer.chat_template": "{{ messages }}"}, ["completion"]),
        ("", {"tokenizer.chat_template": "{{ tools }}<think>"}, ["completion", "tools", "thinking"]),
        ("--reasoning-budget 0", {"tokenizer.chat_template": "{{ tools }}<think>"}, ["completion", "tools"]),
        ("", {"general.architecture": "nomic-bert"}, ["embedding"]),
        ("", {"qwen3.pooling_type": 3}, ["embedding"]),
        ("", {"qwen3.pooling_type": 4}, []),
    ],
)
def test_weights_and_flags_together(tmp_path: Path, flags: str, values: dict[str, Any], expected: list[str]) -> None:
    shown = listing.describe_model(create_command(tmp_path, flags, **values))
    assert shown["capabilities"] == expected
    assert (".Tools" in shown["template"]) is ("tools" in expected)


def test_a_context_that_is_set_comes_before_that_of_the_weights(tmp_path: Path) -> None:
    assert (
        details.get_model_info(model := create_command(tmp_path, "-c 4096"), weights.read_facts(model))["qwen3.context_length"]
        == 4096
    )
    assert (
        details.get_model_info(model := create_command(tmp_path, "-c 0"), weights.read_facts(model))["qwen3.context_length"]
        == 40960
    )


def test_weights_are_read_of_llama_servers_only_and_damaged_ones_are_no_harm(tmp_path: Path) -> None:
    assert listing.describe_model(create_command(tmp_path, program="other-server"))["capabilities"] == ["completion"]
    assert (
        listing.describe_model(create_command(tmp_path, program="docker run ghcr.io/ggml-org/llama.cpp:server"))["capabilities"][
            -1
        ]
        == "tools"
    )
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 100):
        (tmp_path / "bad.gguf").write_bytes(content)
        shown = listing.describe_model(create_external("m", cmd=f"llama-server -m {tmp_path}/bad.gguf"))
        assert (shown["capabilities"], shown["template"]) == (["completion"], "{{ .Prompt }}")


PROPS = {
    "default_generation_settings": {"n_ctx": 8192},
    "chat_template": "{{ tools }}",
    "modalities": {"vision": True, "audio": False},
}


def test_a_server_that_runs_knows_best(tmp_path: Path) -> None:
    shown = listing.describe_model(create_external("m", cmd="llama-server -hf ggml-org/gemma-3-4b-it-GGUF"), PROPS)
    assert shown["capabilities"] == ["completion", "tools", "vision"]
    assert shown["model_info"]["gemma3.context_length"] == 8192
    unable = PROPS | {"chat_template_caps": {"supports_tools": False}}
    assert listing.describe_model(create_command(tmp_path), unable)["capabilities"] == ["completion", "vision"]


@pytest.mark.parametrize("odd", [{"modalities": 3}, {"chat_template": 3}, {"default_generation_settings": {"n_ctx": "8k"}}])
def test_odd_properties_are_none(odd: dict[str, Any]) -> None:
    assert listing.describe_model(create_external("m", cmd="llama-server"), odd) == listing.describe_model(
        create_external("m", cmd="llama-server")
    )
