"""The model that ships in a wheel needs no building."""

from __future__ import annotations

from pathlib import Path

from eardrum import config
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_ID


def build(_: Path) -> Path:
    """Where the wheel has it."""
    source = ModelCatalog(config.Settings()).find_model(EMBEDDED_ID).source
    assert source
    return source
