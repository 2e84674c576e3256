"""Former names of settings work with one warning each; llama-swap's names and values work without any."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eardrum import config
from eardrum.config.setting_names import list_former_names, list_sections
from tests.config.conftest import Reader, Refuser, list_warnings
from tests.config.test_llama_swap import LOADS, get_value

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "config.md"

FORMER: dict[str, tuple[str, dict[str, Any]]] = {
    "start_timeout": ("start_seconds: 5m", {"start_timeout": 300}),
    "liveness_timeout": ("answer_seconds: 2", {"liveness_timeout": 2}),
    "batch_timeout": ("batchSeconds: 90", {"batch_timeout": 90}),
    "shutdown_timeout": ("stop_seconds: 500ms", {"shutdown_timeout": 0.5}),
    "realtime_sample_rate": ("realtime_rate: 16000", {"realtime_sample_rate": 16_000}),
    "timings_dir": ("cache_dir: /srv/timings", {"timings_dir": Path("/srv/timings")}),
    "limits.stall_timeout": ("limits: {stallSeconds: 9}", {"limits.stall_timeout": 9}),
    "limits.idle_timeout": ("limits: {idle_seconds: 8}", {"limits.idle_timeout": 8}),
    "limits.audio_duration": ("limits: {audio_seconds: 1h}", {"limits.audio_duration": 3600}),
    "live.max_sessions": ("live: {sessions: 3}", {"live.max_sessions": 3}),
    "live.idle_timeout": ("live: {idle_seconds: 2m}", {"live.idle_timeout": 120}),
    "models.max_concurrency": ("models: {a: {proxy: 'http://x', at_once: 2}}", {"models[a].max_concurrency": 2}),
    "models.batch_size": ("models: {a: {source: tiny, batch: 4}}", {"models[a].batch_size": 4}),
}


@pytest.mark.parametrize(("text", "expected"), FORMER.values(), ids=FORMER.keys())
def test_a_former_name_works_with_a_warning_that_names_the_new_one(
    read_config: Reader, text: str, expected: dict[str, Any]
) -> None:
    loaded = read_config(text)
    assert {path: get_value(loaded.settings, path) for path in expected} == expected
    (warning,) = list_warnings(loaded)
    new = next(iter(expected)).rpartition(".")[2]
    assert re.fullmatch(rf"config\.yaml:1: [\w.]+ is called {new} now: rename it\. The old name still works\.", warning)


def test_every_former_name_is_tested() -> None:
    listed = [
        f"{path.replace('.NAME', '')}{new}" for path, section in list_sections() for new in list_former_names(section).values()
    ]
    assert sorted(listed) == sorted(FORMER)


def test_a_former_name_in_several_models_is_told_once(read_config: Reader) -> None:
    loaded = read_config("models:\n  a: {proxy: 'http://x', at_once: 1}\n  b: {proxy: 'http://y', at_once: 2}")
    assert list_warnings(loaded) == [
        "config.yaml:2: models.a.at_once is called max_concurrency now: rename it. The old name still works."
    ]
    assert loaded.settings.models["b"].max_concurrency == 2


def test_former_names_in_the_environment_and_after_set(read_config: Reader) -> None:
    loaded = read_config("", "limits.stall_seconds=7", EARDRUM_START_SECONDS="3", EARDRUM_LIVE__SESSIONS="4")
    assert (loaded.settings.limits.stall_timeout, loaded.settings.start_timeout, loaded.settings.live.max_sessions) == (7, 3, 4)
    assert sorted(warning.partition(":")[0] for warning in list_warnings(loaded)) == [
        "--set limits.stall_seconds",
        "EARDRUM_LIVE__SESSIONS",
        "EARDRUM_START_SECONDS",
    ]
    assert read_config("", EARDRUM_MODELS='{"a": {"proxy": "http://x", "at_once": 5}}').settings.models["a"].max_concurrency == 5


def test_a_later_source_wins_under_whichever_name(read_config: Reader) -> None:
    assert read_config("start_timeout: 1", EARDRUM_START_SECONDS="2").settings.start_timeout == 2
    assert read_config("start_seconds: 1", "start_timeout=3").settings.start_timeout == 3
    assert read_config("globalTTL: 1", EARDRUM_DEFAULT_TTL="2").settings.default_ttl == 2
    assert read_config("default_ttl: 1", "globalTTL=3").settings.default_ttl == 3


def test_a_wrong_value_is_told_with_the_name_that_is_written(get_refusal: Refuser) -> None:
    assert get_refusal("\nstart_seconds: never").startswith("config.yaml:2: The setting start_seconds is wrong")
    assert get_refusal("globalTTL: never").startswith("config.yaml:1: The setting globalTTL is wrong")
    assert get_refusal("models: {a: {cmd: 's ${PORT}', unloadTimeout: x}}").startswith(
        "config.yaml:1: The setting models.a.unloadTimeout is wrong"
    )


@pytest.mark.parametrize("second", ["start_timeout", "startTimeout", "startSeconds"])
def test_one_setting_under_two_names_is_an_error(get_refusal: Refuser, second: str) -> None:
    message = get_refusal(f"start_seconds: 1\n{second}: 2")
    assert message == f"config.yaml:2: {second} and start_seconds are the same setting: keep one of them."


@pytest.mark.parametrize("text", [text for text, _ in LOADS.values()], ids=LOADS.keys())
def test_nothing_in_a_file_of_llama_swap_is_to_be_renamed(read_config: Reader, text: str) -> None:
    assert not [
        warning for warning in list_warnings(read_config(text)) if "called" in warning or "leaving the setting out" in warning
    ]


def test_values_of_llama_swap_that_mean_not_set(read_config: Reader) -> None:
    loaded = read_config(
        """
        globalTTL: 60
        unloadTimeout: 0
        macros: {inherited: -1}
        models:
          a: {cmd: 's ${PORT}', ttl: -1, concurrencyLimit: 0, unloadTimeout: 0}
          b: {cmd: 's ${PORT}', ttl: '${inherited}'}
          c: {cmd: 's ${PORT}', ttl: 0}
        """
    )
    assert list_warnings(loaded) == []
    a, b, c = (loaded.settings.resolve_scheduling(loaded.settings.models[id]) for id in "abc")
    assert (a.ttl, b.ttl, c.ttl, a.concurrency_limit) == (60, 60, 0, 10)
    assert (loaded.settings.unload_timeout, loaded.settings.models["a"].unload_timeout) == (10, 10)


@pytest.mark.parametrize(
    ("name", "same"), [("max_requests", True), ("max_concurrency", True), ("at_once", False), ("batch", False)]
)
def test_a_zero_of_earlier_versions_is_as_if_left_out(read_config: Reader, name: str, same: bool) -> None:
    loaded = read_config(f"models: {{a: {{source: tiny, {name}: 0}}}}")
    model = loaded.settings.models["a"]
    assert (model.max_requests, model.max_concurrency, model.batch_size) == (None, None, None)
    (warning,) = list_warnings(loaded)
    assert ("is the same as leaving the setting out" in warning) is same


def test_priorities_of_llama_swap_are_the_models_own(read_config: Reader) -> None:
    routing = "routing: {scheduler: {settings: {fifo: {priority: {alias: 3}}}}}\n"
    settings = read_config(routing + "models: {a: {cmd: 's ${PORT}', aliases: [alias]}, b: {source: tiny, priority: 7}}").settings
    assert {id: settings.resolve_scheduling(model).priority for id, model in settings.models.items()} == {"a": 3, "b": 7}


def test_every_name_in_the_reference_is_accepted(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `([\w.]+)`(?: \(`(\w+)`\))? \| (?!`)", REFERENCE.read_text(), re.MULTILINE)
    former = re.findall(r"^\| `([\w.]+)` \| `[\w.]+` \|$", REFERENCE.read_text(), re.MULTILINE)
    theirs = [f"{path.rpartition('.')[0]}.{name}".lstrip(".") for path, name in rows if name]
    settings = [path for path in [*(path for path, _ in rows), *theirs, *former] if path != path.upper()]
    assert (len(settings) > 150, len(theirs) > 25, "globalTTL" in theirs, "start_seconds" in settings) == (True,) * 4
    file = tmp_path / "config.yaml"
    for path in settings:
        *above, name = path.split(".")
        file.write_text(
            "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(above)) + f"{'  ' * len(above)}{name}: x\n"
        )
        loaded = config.examine_config(file, environment={})
        assert not [found for found in (*loaded.errors, *loaded.warnings) if "Unknown setting" in found.message], path
