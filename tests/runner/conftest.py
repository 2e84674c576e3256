"""The embedded model in a runner of its own, in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eardrum import config
from eardrum.engines.moonshine import Moonshine
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import EMBEDDED_ID
from eardrum.runner.batcher import Batcher


@pytest.fixture(scope="session")
def hearing() -> Iterator[Batcher]:
    """A batcher around the embedded model, one window at a time so that texts repeat."""
    model = Moonshine.load(Catalog(config.Settings()).find(EMBEDDED_ID).source, Moonshine.Options())
    batcher = Batcher(model, batch=1)
    yield batcher
    batcher.close()
