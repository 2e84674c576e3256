"""`/v1/models`: what can be asked for now, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.requests import Request

from eardrum import config
from eardrum.api.openai.routes import Models
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.service import Service
from tests.cards import WHISPER, card, cards

__all__ = ["cards"]


def ask(id: str = "") -> Request:
    return Request({"type": "http", "method": "GET", "path": "/", "headers": [], "path_params": {"id": id}})


async def test_models_that_cannot_run_are_hidden(
    cards: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(WHISPER, card("lacking", requires=("no_such_library",), layouts=(("odd.bin",),)))
    for name, files in (("here", ("model.bin", "config.json")), ("unable", ("odd.bin",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"{}")
    service = Service(config.Settings(model_dir=tmp_path, models={"absent": {"source": "small"}}))
    assert {model.id for model in service.catalog} == {"absent", "here", "unable", "moonshine-tiny-en"}
    models = Models(service)
    listed = json.loads((await models.list(ask())).body)["data"]
    assert [model["id"] for model in listed] == ["here", "moonshine-tiny-en"]
    with pytest.raises(ModelNotFoundError, match="`eardrum pull absent`"):
        await models.one(ask("absent"))
    with pytest.raises(ModelNotFoundError, match="needs no_such_library: run pip install"):
        await models.one(ask("unable"))
    assert json.loads((await models.one(ask("here"))).body)["engine"] == "whispering"
