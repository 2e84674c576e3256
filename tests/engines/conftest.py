"""The embedded model, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from eardrum import config
from eardrum.engines.moonshine import Moonshine
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import EMBEDDED_ID


@pytest.fixture(scope="session")
def weights() -> Path:
    return Catalog(config.Settings()).find(EMBEDDED_ID).source


@pytest.fixture(scope="session")
def moonshine(weights: Path) -> Moonshine:
    return Moonshine.load(weights, Moonshine.Options())
