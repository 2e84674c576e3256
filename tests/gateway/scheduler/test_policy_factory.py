"""From a config to who must go."""

from __future__ import annotations

from pathlib import Path

import pytest

from eardrum import config
from eardrum.errors import ConfigError
from eardrum.gateway.models.inventory import Model, ModelInventory
from eardrum.gateway.scheduler.policies import PolicyFactory

COMMANDS = """
models:
  llm: {cmd: "llama-server --port ${PORT}"}
  coder: {cmd: "llama-server --port ${PORT} -c"}
  ears: {cmd: "whisper-server --port ${PORT}"}
  moonshine-tiny-en: {}
  cloud: {proxy: "http://127.0.0.1:9999"}
"""


def create_factory(tmp_path: Path, rules: str = "", models: str = COMMANDS) -> PolicyFactory:
    return PolicyFactory(load_config(tmp_path, rules, models))


def load_config(tmp_path: Path, rules: str = "", models: str = COMMANDS) -> config.Settings:
    file = tmp_path / "config.yaml"
    file.write_text(models + rules)
    return config.load_settings(file, environment={})


def list_evicted(book: PolicyFactory, target: str, *loaded: str) -> set[str]:
    return set(book.policy.find_evictions(target, {model: float(n) for n, model in enumerate(loaded)}))


def create_models(tmp_path: Path, rules: str = "", models: str = COMMANDS) -> dict[str, Model]:
    return {model.id: model for model in ModelInventory(load_config(tmp_path, rules, models))}


def test_without_groups_commands_replace_each_other_and_all_else_is_outside(tmp_path: Path) -> None:
    rules = create_factory(tmp_path)
    everything = ("llm", "coder", "ears", "moonshine-tiny-en", "cloud")
    assert list_evicted(rules, "llm", *everything) == {"coder", "ears"}
    assert list_evicted(rules, "moonshine-tiny-en", *everything) == set()
    assert list_evicted(rules, "cloud", *everything) == set()


def test_commands_in_no_group_are_a_group(tmp_path: Path) -> None:
    rules = create_factory(tmp_path, "groups: {speech: {members: [ears, moonshine-tiny-en], swap: false, exclusive: false}}")
    assert list_evicted(rules, "llm", "coder", "ears", "moonshine-tiny-en", "cloud") == {"coder", "ears", "moonshine-tiny-en"}
    assert list_evicted(rules, "ears", "llm", "moonshine-tiny-en") == set(), "engines and commands mix"


def test_newer_configs_write_groups_elsewhere(tmp_path: Path) -> None:
    rules = create_factory(tmp_path, "routing: {router: {settings: {groups: {g: {members: [llm, coder], swap: false}}}}}")
    assert list_evicted(rules, "llm", "coder", "ears") == {"ears"}


def test_a_matrix_says_what_may_be_together(tmp_path: Path) -> None:
    rules = create_factory(tmp_path, "matrix: {sets: {s: (llm | coder) & ears}, evict_costs: {ears: 5}}")
    assert list_evicted(rules, "llm", "coder", "ears", "moonshine-tiny-en") == {"coder"}


def test_a_command_in_no_set_runs_alone(tmp_path: Path) -> None:
    rules = create_factory(tmp_path, "matrix: {sets: {s: llm & ears}}")
    assert list_evicted(rules, "coder", "llm", "ears", "moonshine-tiny-en") == {"llm", "ears"}


def test_memory_takes_the_place_of_the_default_group(tmp_path: Path) -> None:
    declared = COMMANDS.replace('${PORT}"}', '${PORT}", memory: 6G}')
    rules = create_factory(tmp_path, "memory: {cuda: 10GB}", declared)
    models = create_models(tmp_path, "memory: {cuda: 10GB}", declared)
    assert all(rules.add_model(models[id]) for id in ("llm", "ears", "coder"))
    assert not rules.add_model(models["llm"]), "known"
    assert not rules.add_model(models["cloud"]), "an address has its memory elsewhere"
    assert list_evicted(rules, "llm", "ears") == {"ears"}
    assert list_evicted(rules, "coder", "ears") == {"ears"}, "of which nothing is known is loaded alone"


def test_what_was_measured_counts_then(tmp_path: Path) -> None:
    rules, models = create_factory(tmp_path, "memory: {cpu: 10G}"), create_models(tmp_path)
    rules.add_model(models["llm"])
    rules.add_model(models["coder"])
    assert list_evicted(rules, "coder", "llm") == {"llm"}
    assert rules.record_measurement(models["llm"], {"cpu": 3e9, "cuda": 9e9}), "pools that are not there do not count"
    assert rules.record_measurement(models["coder"], {"cpu": 4e9})
    assert not rules.record_measurement(models["coder"], {"cpu": 2e9}), "the most that was seen"
    assert rules.measured == {"llm": {"cpu": 3e9}, "coder": {"cpu": 4e9}}
    assert list_evicted(rules, "coder", "llm") == set()


def test_a_pool_that_a_new_config_lacks_is_forgotten(tmp_path: Path) -> None:
    before, models = create_factory(tmp_path, "memory: {cpu: 10G, cuda: 20G}"), create_models(tmp_path)
    before.record_measurement(models["llm"], {"cpu": 3e9, "cuda": 9e9})
    before.record_measurement(models["coder"], {"cuda": 9e9})
    rules = PolicyFactory(load_config(tmp_path, "memory: {cpu: 10G}"), before.measured)
    rules.add_model(models["llm"])
    rules.add_model(models["coder"])
    assert rules.needs == {"llm": {"cpu": 3e9}, "coder": {"cpu": 10e9}}, "nothing is known of the second one's memory"
    assert list_evicted(rules, "llm", "coder") == {"coder"}


def test_a_built_in_model_is_guessed_by_its_files(tmp_path: Path) -> None:
    rules, models = create_factory(tmp_path, "memory: {cpu: 10G}"), create_models(tmp_path)
    rules.add_model(models["moonshine-tiny-en"])
    rules.record_measurement(models["llm"], {"cpu": 8e9})
    assert list_evicted(rules, "moonshine-tiny-en", "llm") == set()
    assert rules.needs_measuring(models["moonshine-tiny-en"])


def test_a_model_may_name_its_pools(tmp_path: Path) -> None:
    declared = COMMANDS.replace('${PORT}"}', '${PORT}", memory: "cpu 1G, cuda 9 GB"}')
    pools = "memory: {cuda: 10G, cpu: 10G}"
    rules, models = create_factory(tmp_path, pools, declared), create_models(tmp_path, pools, declared)
    for id in ("llm", "ears"):
        rules.add_model(models[id])
    assert list_evicted(rules, "ears", "llm") == {"llm"}
    assert not rules.needs_measuring(models["llm"])


def test_a_model_on_the_cpu_takes_nothing_of_a_gpus_pool(tmp_path: Path) -> None:
    declared = f"{COMMANDS}  near: {{source: moonshine-tiny-en, memory: 1G, options: {{device: cpu}}}}\n"
    pools = "memory: {cuda: 10G}"
    rules, models = create_factory(tmp_path, pools, declared), create_models(tmp_path, pools, declared)
    for id in ("near", "llm"):
        rules.add_model(models[id])
    assert list_evicted(rules, "near", "llm") == set()
    assert list_evicted(rules, "llm", "near") == set()


def test_groups_and_memory_hold_both_and_persistent_models_stay(tmp_path: Path) -> None:
    declared = COMMANDS.replace('${PORT}"}', '${PORT}", memory: 6G}').replace('${PORT} -c"}', '${PORT} -c", memory: 6G}')
    both = "memory: {cpu: 10G}\ngroups: {speech: {members: [ears], persistent: true, exclusive: false}}"
    rules, models = create_factory(tmp_path, both, declared), create_models(tmp_path, both, declared)
    for id in ("llm", "coder", "ears"):
        rules.add_model(models[id])
    assert list_evicted(rules, "llm", "coder", "ears") == {"coder"}


@pytest.mark.parametrize(
    ("setting", "rules", "memory"),
    [("memory.cuda", "memory: {cuda: lots}", "1G"), ("models.llm.memory", "memory: {cuda: 1G}", "rocm 1G")],
)
def test_a_size_that_is_none_is_named(tmp_path: Path, setting: str, rules: str, memory: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        create_factory(tmp_path, rules, COMMANDS.replace('${PORT}"}', f'${{PORT}}", memory: {memory}}}', 1))


def test_limits_and_priorities_reach_the_model(tmp_path: Path) -> None:
    more = COMMANDS.replace('${PORT} -c"}', '${PORT} -c", max_requests: 7, max_concurrency: 2}')
    models = create_models(tmp_path, "routing: {scheduler: {settings: {fifo: {priority: {coder: 5}}}}}", more)
    llm, coder = models["llm"].scheduling, models["coder"].scheduling
    assert (llm.concurrency_limit, llm.priority) == (10, 0)
    assert (coder.concurrency_limit, coder.max_requests) == (None, 7)
    assert (coder.max_concurrency, coder.priority) == (2, 5)
    assert models["moonshine-tiny-en"].scheduling.concurrency_limit is None
