"""The embedded model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eardrum import config
from eardrum.engines.moonshine import Moonshine
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_ID


@pytest.fixture(scope="module", autouse=True)
def compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PyTorch's compiler makes its folder again whenever it likes; of a runner it goes with the runner's other files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiler"))
        yield


@pytest.fixture(scope="session")
def weights() -> Path:
    source = ModelCatalog(config.Settings()).find_model(EMBEDDED_ID).source
    assert source
    return source


@pytest.fixture(scope="session")
def moonshine(weights: Path) -> Moonshine:
    return Moonshine.load(weights, Moonshine.Options())
