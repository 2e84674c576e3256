"""A Ray cluster for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fleet.fleets import build_scripted_model
from tests.fleet.ray_clusters import RayCluster, run_cluster


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, str]]:
    """The scripted engine: a model's entry, and the environment that finds the engine."""
    return build_scripted_model(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="session")
def cluster(scripted: tuple[dict, dict[str, str]]) -> Iterator[RayCluster]:
    """Three nodes with one CPU each. Ray listens on all addresses, so these must be of the loopback."""
    if set(psutil.net_if_addrs()) != {"lo"}:
        pytest.fail("`make test-ray` runs these tests in a network namespace of their own.")
    with run_cluster(3, scripted[1]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def scripted_entry(scripted: tuple[dict, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict:
    model: dict = scripted[0]
    assert Path(model["source"]).exists()
    return model
