"""`/v1/models`: what can be asked for now, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.requests import Request

from eardrum import config
from eardrum.api.openai import models as modalities
from eardrum.api.openai.models import OpenAIModelRoutes
from eardrum.config.llama_swap import DeclaredCapabilities, ModelProfile, ModelSelector
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.service import Service
from tests.cards import WHISPER, cards, create_card

__all__ = ["cards"]


def build_request(id: str = "") -> Request:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "path_params": {"id": id}}
    return Request(scope)


async def test_models_that_cannot_run_are_hidden(
    cards: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(WHISPER, create_card("lacking", requires=("no_such_library",), layouts=(("odd.bin",),)))
    for name, files in (("here", ("model.bin", "config.json")), ("unable", ("odd.bin",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"{}")
    service = Service(config.Settings(model_dir=tmp_path, models={"absent": {"source": "small"}}))
    assert {model.id for model in service.catalog} == {"absent", "here", "unable", "moonshine-tiny-en"}
    models = OpenAIModelRoutes(service)
    listed = json.loads((await models.list_models(build_request())).body)["data"]
    assert [model["id"] for model in listed] == ["here", "moonshine-tiny-en"]
    with pytest.raises(ModelNotFoundError, match=r"absent .* run `eardrum pull small`"):
        await models.show_model(build_request("absent"))
    with pytest.raises(ModelNotFoundError, match="needs no_such_library: run pip install"):
        await models.show_model(build_request("unable"))
    assert json.loads((await models.show_model(build_request("here"))).body)["engine"] == "whispering"


def list_models(service: Service) -> dict[str, dict[str, Any]]:
    async def asked() -> dict[str, dict[str, Any]]:
        answer = await OpenAIModelRoutes(service).list_models(build_request())
        return {model["id"]: model for model in json.loads(answer.body)["data"]}

    return asyncio.run(asked())


def test_a_model_object() -> None:
    found = list_models(Service(config.Settings()))["moonshine-tiny-en"]
    assert (found["object"], found["owned_by"], found["state"]) == ("model", "eardrum", "stopped")
    assert isinstance(found["created"], int)
    assert found["capabilities"]["tasks"] == ["transcribe"]
    assert found["capabilities"]["timestamp_granularities"] == ["segment"]
    assert found["capabilities"]["audio_transcriptions"] is True
    assert found["architecture"]["modality"] == "audio->text"
    assert found["status"] == {"value": "unloaded"}
    assert found["meta"]["llamaswap"]["type"] == "model"
    assert "name" not in found


def test_what_a_model_can_do_more_is_said() -> None:
    entry = Service(config.Settings()).catalog.find_model("moonshine-tiny-en")
    able = replace(entry, capabilities=replace(entry.capabilities, translate=True, words=True))
    more = modalities.describe_modalities(able)["capabilities"]
    assert more["tasks"] == ["transcribe", "translate"]
    assert more["timestamp_granularities"] == ["segment", "word"]


def test_an_upstream_is_what_the_config_declares() -> None:
    declared = DeclaredCapabilities.model_validate(
        {"inputs": ["text", "image"], "outputs": ["text"], "tools": True, "context": 4096}
    )
    settings = config.Settings(
        models={
            "llm": config.ModelSettings(
                proxy="http://127.0.0.1:1",
                aliases=("gpt",),
                name="An LLM",
                description=" big ",
                metadata={"port": 1, "type": "mine"},
                capabilities=declared,
            ),
            "unknown": config.ModelSettings(proxy="http://127.0.0.1:2"),
            "ears": config.ModelSettings(cmd="whisper-server", proxy="http://127.0.0.1:4"),
            "hidden": config.ModelSettings(proxy="http://127.0.0.1:3", unlisted=True),
        },
        include_aliases_in_list=True,
    )
    found = list_models(Service(settings))
    llm = found["llm"]
    assert (llm["name"], llm["description"]) == ("An LLM", "big")
    assert llm["meta"]["llamaswap"] == {"port": 1, "type": "model", "aliases": ["gpt"]}
    assert llm["capabilities"] == {"vision": True, "function_calling": True}
    assert llm["architecture"] == {
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "modality": "text+image->text",
    }
    assert llm["context_length"] == 4096
    assert "tools" in llm["supported_parameters"]
    assert found["gpt"]["meta"]["llamaswap"] == {"port": 1, "type": "alias", "modelID": "llm"}
    assert found["unknown"]["capabilities"] == {}
    assert found["ears"]["capabilities"]["audio_transcriptions"] is True, "its command says what it is for"
    assert found["ears"]["architecture"]["modality"] == "audio->text"
    assert "hidden" not in found


async def test_selectors_and_pins_are_listed() -> None:
    settings = config.Settings(
        models={"a": config.ModelSettings(proxy="http://127.0.0.1:1"), "b": config.ModelSettings(proxy="http://127.0.0.1:2")},
        selectors={
            "any": ModelSelector(strategy="spillover", targets=("a", "b"), name="Any of them", metadata={"k": "v"}),
            "secret": ModelSelector(strategy="pin", targets=("a",), unlisted=True),
        },
        profiles={"p": ModelProfile(pins={"gpt": "a", "any": "a", "b": "a", "off": ""})},
    )
    service = Service(settings)
    models = OpenAIModelRoutes(service)

    async def ids() -> dict[str, Any]:
        return {model["id"]: model for model in json.loads((await models.list_models(build_request())).body)["data"]}

    before = await ids()
    assert before["any"]["name"] == "Any of them"
    assert before["any"]["meta"]["llamaswap"] == {
        "k": "v",
        "type": "selector",
        "strategy": "spillover",
        "targets": ["a", "b"],
        "spillover": 1,
    }
    assert before["any"]["status"] == {"value": "unloaded"}
    assert not {"secret", "gpt", "off"} & before.keys()
    assert json.loads((await models.show_model(build_request("secret"))).body)["meta"]["llamaswap"]["strategy"] == "pin"
    service.activate_profile("p")
    after = await ids()
    assert after.keys() - before.keys() == {"gpt"}
    assert after["gpt"]["meta"]["llamaswap"] == {"type": "profile"}
