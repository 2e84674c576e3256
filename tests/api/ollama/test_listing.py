"""Models as they are listed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from eardrum import config
from eardrum.api.ollama import listing
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import ProcessStatus

NOW = 1_700_000_000.0


def create_models(tmp_path: Path, **entries: Any) -> dict[str, Model]:
    return {model.id: model for model in ModelCatalog(config.Settings(model_dir=tmp_path, models=entries))}


def create_status(model: Model, ttl: float, left: float | None) -> ProcessStatus:
    return ProcessStatus(model, ModelState.READY, 0, 7, NOW - 10, default=False, ttl=ttl, ttl_remaining=left)


def get_expiry(model: Model, ttl: float, left: float | None) -> float:
    said = listing.describe_process(create_status(model, ttl, left), {}, NOW)["expires_at"]
    return datetime.fromisoformat(said).timestamp() - NOW


def test_what_cannot_be_asked_for_is_not_listed(tmp_path: Path) -> None:
    proxy = {"proxy": "http://127.0.0.1:1"}
    found = create_models(tmp_path, shown=proxy, hidden=proxy | {"unlisted": True}, absent={"source": "small"})
    tags = listing.list_tags(list(found.values()), [("copy", found["hidden"])])["models"]
    assert {tag["name"] for tag in tags} == {"shown:latest", "moonshine-tiny-en:latest", "copy:latest"}
    assert [tag["modified_at"] for tag in tags] == sorted((tag["modified_at"] for tag in tags), reverse=True)


def test_when_a_model_expires(tmp_path: Path) -> None:
    model = create_models(tmp_path)["moonshine-tiny-en"]
    assert get_expiry(model, ttl=60, left=20) == 20
    assert get_expiry(model, ttl=60, left=None) == 60, "it is at work"
    assert get_expiry(model, ttl=0, left=None) > 290 * 365 * 86_400, "it stays"


def test_memory_is_that_of_the_process(tmp_path: Path) -> None:
    model = create_models(tmp_path)["moonshine-tiny-en"]
    entry = listing.describe_process(create_status(model, 0, None), {"cpu": 300.0, "cuda": 50.0, "cuda:0": 50.0}, NOW)
    assert (entry["size"], entry["size_vram"]) == (350, 50)
    assert (entry["name"], entry["model"]) == ("moonshine-tiny-en:latest",) * 2


def test_what_is_shown_of_a_model(tmp_path: Path) -> None:
    shown = listing.describe_model(create_models(tmp_path)["moonshine-tiny-en"])
    assert shown["capabilities"] == ["audio"]
    assert shown["model_info"]["general.architecture"] == "moonshine"
    assert shown["details"]["family"] == "moonshine"
