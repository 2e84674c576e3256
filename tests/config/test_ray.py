"""Replicas that Ray runs, in the config."""

from __future__ import annotations

import pytest

from eardrum.config import consistency
from tests.config.conftest import Reader, Refuser, list_warnings

RAY = "ray: {address: 10.0.0.1:6379}\n"


@pytest.fixture(autouse=True)
def ray_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the check find Ray, which no other test needs."""
    monkeypatch.setattr(consistency, "find_spec", lambda name: object())


def write_model(replicas: str, more: str = "", ray: str = RAY) -> str:
    return f"{ray}models:\n  m:\n    engine: moonshine\n{more}    replicas: {{{replicas}}}\n"


def test_numbers_resources_and_labels(read_config: Reader) -> None:
    text = write_model(
        "min: 0, max: 8, resources: {num_cpus: 2, num_gpus: 0.5, memory: 8G, custom: {fast_disk: 1}}, labels: {gpu: h100}"
    )
    loaded = read_config(text)
    replicas = loaded.settings.models["m"].replicas
    assert (replicas.fewest, replicas.most, replicas.summary) == (0, 8, "0 to 8, on Ray")
    resources = replicas.resources
    assert (resources.num_cpus, resources.num_gpus, resources.memory, resources.custom) == (2, 0.5, 8e9, {"fast_disk": 1})
    assert replicas.labels == {"gpu": "h100"}
    assert (loaded.settings.ray.namespace, loaded.settings.ray.lease) == ("eardrum", 120)
    assert list_warnings(loaded) == []


@pytest.mark.parametrize(
    ("replicas", "fewest", "most"), [("min: 3", 3, 3), ("max: 4", 1, 4), ("min: 0", 0, 1), ("min: 2, max: 2", 2, 2)]
)
def test_a_number_that_is_not_set(read_config: Reader, replicas: str, fewest: int, most: int) -> None:
    settings = read_config(write_model(replicas)).settings.models["m"].replicas
    assert (settings.fewest, settings.most) == (fewest, most)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (write_model("min: 1", ray=""), "models.m.replicas: `min` and `max` need a cluster: set `ray.address`"),
        (write_model('min: 1, addresses: ["http://localhost:1"]'), "has both `addresses` and `min` or `max`"),
        (write_model("min: 3, max: 2"), "models.m.replicas: `min` is 3, which is more than `max`, 2"),
        (write_model("max: 0"), "models.m.replicas.max is 0: at least one replica must be allowed"),
        (write_model("min: 0, max: 0"), "models.m.replicas.max is 0: at least one replica must be allowed"),
        (write_model("min: -1"), "models.m.replicas.min"),
        (write_model("min: 1, resources: {num_gpus: -1}"), "models.m.replicas.resources.num_gpus"),
        (write_model("min: 1", "    cmd: serve\n"), "models.m has both `cmd` and `replicas`"),
        (
            write_model("min: 1", ray="ray: {address: auto}\n"),
            "ray.address must be HOST:PORT, as in 10.0.0.1:6379 (it is 'auto')",
        ),
        (write_model("min: 1", ray="ray: {address: 'ray://10.0.0.1:10001'}\n"), "ray.address must be HOST:PORT"),
    ],
)
def test_what_is_wrong_with_them(get_refusal: Refuser, text: str, says: str) -> None:
    assert says in get_refusal(text)


def test_without_ray_the_remedy_is_named(get_refusal: Refuser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "find_spec", lambda name: None)
    assert "models.m.replicas: `min` and `max` need a package: pip install 'eardrum[ray]'" in get_refusal(write_model("min: 1"))


def test_a_cluster_alone_needs_no_package(read_config: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "find_spec", lambda name: None)
    assert list_warnings(read_config(RAY)) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (write_model("labels: {gpu: h100}"), "models.m.replicas.labels has no effect: there is neither `min` nor `max`"),
        (
            write_model("min: 1", "    python: /usr/bin/python3\n"),
            "models.m.python has no effect with `replicas`: set `replicas.python`",
        ),
        (write_model("min: 1", "    ttl: 60\n"), "models.m.ttl unloads the model, and so ends its replicas"),
    ],
)
def test_what_is_odd_about_them(read_config: Reader, text: str, says: str) -> None:
    (warning,) = list_warnings(read_config(text))
    assert says in warning


def test_batch_size_and_options_are_for_the_replicas(read_config: Reader) -> None:
    assert list_warnings(read_config(write_model("min: 1", "    batch_size: 4\n    options: {device: cpu}\n"))) == []


@pytest.mark.parametrize(
    ("text", "ttl"),
    [
        (write_model("min: 0"), 300),
        (write_model("min: 0", "    ttl: 60\n"), 60),
        (write_model("min: 1"), 0),
        ("default_ttl: 40\n" + write_model("min: 0"), 40),
        ("default_ttl: 40\n" + write_model("min: 1"), 0),
    ],
)
def test_only_a_model_that_may_have_no_replicas_is_unloaded_by_itself(read_config: Reader, text: str, ttl: float) -> None:
    settings = read_config(text).settings
    assert settings.resolve_scheduling(settings.models["m"]).ttl == ttl


def test_models_that_always_have_replicas_are_preloaded(read_config: Reader) -> None:
    text = write_model("min: 1") + "  n: {engine: moonshine, replicas: {min: 0}}\n"
    assert read_config(text).settings.hooks.on_startup.preload == ("m",)
