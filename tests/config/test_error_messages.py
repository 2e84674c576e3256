"""What is wrong is worded alike wherever it is set, and all of it is told at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eardrum import config
from eardrum.errors import ConfigError
from tests.config.conftest import Reader, Refuser, list_warnings


def get_setting_refusal(assignment: str = "", **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load_config(assignments=[assignment] if assignment else [], environment=environment)
    return caught.value.message


WRONG = [
    ("port", "high", "The setting port is wrong: it must be a whole number (it is 'high')."),
    ("globalTTL", "soon", "The setting globalTTL is wrong: it must be a number or a time such as 10m (it is 'soon')."),
    (
        "limits.upload_bytes",
        "big",
        "The setting limits.upload_bytes is wrong: it must be a number or a size such as 50M (it is 'big').",
    ),
    ("pull_missing", "perhaps", "The setting pull_missing is wrong: it must be true or false (it is 'perhaps')."),
    ("device", "cudda", "Did you mean cuda?"),
    ("wyoming.prot", "1", "Unknown setting wyoming.prot. Did you mean port?"),
    ("limits.uplod_bytes", "1", "Unknown setting limits.uplod_bytes. Did you mean upload_bytes?"),
    ("models.a.ttll", "1", "Unknown setting models.a.ttll. Did you mean ttl?"),
    ("models.a.batch", "many", "The setting models.a.batch is wrong: it must be a whole number (it is 'many')."),
]


@pytest.mark.parametrize(("setting", "value", "says"), WRONG, ids=[setting for setting, *_ in WRONG])
def test_a_mistake_has_the_same_words_everywhere(get_refusal: Refuser, setting: str, value: str, says: str) -> None:
    names = setting.split(".")
    text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(names))[:-1] + f" {value}\n"
    if not says.startswith("Unknown"):  # which llama-swap's files may have
        assert says in get_refusal(text)
    assert get_setting_refusal(f"{setting}={value}").startswith(f"--set {setting}: ")
    assert says in get_setting_refusal(f"{setting}={value}")
    variable = "EARDRUM_" + "__".join(names).upper()
    assert get_setting_refusal(**{variable: value}).startswith(f"{variable}: ")
    assert says in get_setting_refusal(**{variable: value})


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("EARDRUM_PROT", "Did you mean EARDRUM_PORT?"),
        ("EARDRUM_WYOMNG__PORT", "Did you mean EARDRUM_WYOMING__PORT?"),
        ("EARDRUM_API_KEES", "Did you mean EARDRUM_API_KEYS?"),
        ("EARDRUM_TTL", "There is a models.NAME.ttl: is it in the right place?"),
    ],
)
def test_a_variable_that_is_none(variable: str, says: str) -> None:
    assert get_setting_refusal(**{variable: "1"}) == f"Unknown environment variable {variable}. {says}"


def test_a_setting_in_the_wrong_place() -> None:
    assert get_setting_refusal("ttl=5") == "--set ttl: Unknown setting ttl. There is a models.NAME.ttl: is it in the right place?"


def test_no_secret_is_shown() -> None:
    assert (
        get_setting_refusal(EARDRUM_APIKEYS="hush") == 'EARDRUM_APIKEYS: The setting apiKeys must be JSON here, as in ["a", "b"].'
    )
    assert "hush" not in get_setting_refusal("apiKeys=hush")
    assert "hush" not in get_setting_refusal("apiKeys=[hush")


def test_all_of_it_is_told_at_once(get_refusal: Refuser) -> None:
    text = """\
port: high
macros: {bad: [1]}
models:
  a: {cmd: 's ${PORT} ${nothing} ${neither} ${bad}', ttl: soon}
  b: {cmd: 's ${PORT}', aliases: [x, "${env.NOTHING}"]}
  c: {cmd: 's ${PORT}', aliases: [x]}
  a: {}
groups:
  g: {members: [a, nobody]}
limits: {fields: 0}
"""
    message = get_refusal(text, "limits.fieldz=1", "globalTTL=soon", EARDRUM_PROT="1", EARDRUM_LIMITS__REQUESTS="some")
    for says in (
        "config.yaml:1: The setting port is wrong",
        "config.yaml:2: The macro bad must be",
        "config.yaml:4: models.a.cmd: There is no macro ${nothing}",
        "config.yaml:4: models.a.cmd: There is no macro ${neither}",
        "config.yaml:4: The setting models.a.ttl is wrong",
        "config.yaml:5: The environment variable NOTHING is not set.",
        "config.yaml:6: The alias 'x' of c is already one of b",
        "config.yaml:7: This is not valid YAML: 'a' is here twice, first in line 4.",
        "config.yaml:9: groups.g.members[1]: there is no model 'nobody'",
        "config.yaml:10: The setting limits.fields is wrong",
        "--set limits.fieldz: Unknown setting",
        "--set globalTTL: The setting globalTTL is wrong",
        "Unknown environment variable EARDRUM_PROT.",
        "EARDRUM_LIMITS__REQUESTS: The setting limits.requests is wrong",
    ):
        assert says in message, says
    assert len(message.splitlines()) == 14, "nothing is told that only follows from something else"


def test_files_that_cannot_be_read_do_not_hide_each_other(tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.yaml" for name in ("one", "two", "three"))
    one.write_text("models: {a: [")
    two.write_text("groups: {g: {members: [a]}}\nport: high")
    found = config.examine_config([one, two, three], environment={})
    assert [error.message.split(":")[0] for error in found.errors] == [
        "This is not valid YAML",
        "The setting port is wrong",
        f"Cannot read the config file {three}",
    ], "whether a is a model cannot be known"


def test_errors_hide_no_warnings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("globalTtl: 5\nport: high\nmodels: {a: {cmd: 's ${PORT}', env: [X]}}\n")
    found = config.examine_config(file, environment={})
    assert len(found.errors) == 1
    assert [warning.message.split(".")[0] for warning in found.warnings] == ["Unknown setting globalTtl", "models"]


def test_matrix_mistakes_are_told_at_once(get_refusal: Refuser) -> None:
    text = "models: {a: {cmd: 's ${PORT}'}}\nmatrix:\n  vars:\n    x: b\n  sets:\n    g: a &\n    h: x & c\n    i: a"
    assert [line.split(": ")[0] for line in get_refusal(text).splitlines()] == ["config.yaml:4", "config.yaml:6", "config.yaml:7"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("1.5h", 5400), ("2 hours", 7200), ("1d", 86400), ("-1", None)],
)
def test_times(read_config: Reader, written: str, seconds: float | None) -> None:
    for found in (
        read_config(f"models:\n  a: {{proxy: 'http://x', ttl: {written}}}").settings,
        read_config("models: {a: {proxy: 'http://x'}}", f"models.a.ttl={written}").settings,
        read_config("models: {a: {proxy: 'http://x'}}", EARDRUM_MODELS__A__TTL=written).settings,
        read_config(
            "", EARDRUM_MODELS=json.dumps({"a": {"proxy": "http://x", "ttl": float(written) if written.isdigit() else written}})
        ).settings
        if not written.startswith("-")
        else read_config("models: {a: {proxy: 'http://x', ttl: -1}}").settings,
    ):
        assert found.models["a"].ttl == seconds


@pytest.mark.parametrize(
    ("written", "bytes"), [("4096", 4096), ("50M", 50_000_000), ("50MB", 50_000_000), ("2.5G", 2_500_000_000), ("1GiB", 1 << 30)]
)
def test_sizes(read_config: Reader, written: str, bytes: int) -> None:
    for found in (
        read_config(f"limits: {{upload_bytes: {written}}}"),
        read_config("", f"limits.upload_bytes={written}"),
        read_config("", EARDRUM_LIMITS__UPLOAD_BYTES=written),
    ):
        assert found.settings.limits.upload_bytes == bytes


def test_every_time_and_size_may_have_a_unit(read_config: Reader) -> None:
    text = """\
globalTTL: 10m
unloadTimeout: 1m
healthCheckTimeout: 2m
start_timeout: 5m
shutdown_timeout: 500ms
patience: 1m
limits: {audio_duration: 2h, stall_timeout: 1m, json_bytes: 1M, field_bytes: 1K}
live: {idle_timeout: 2m}
macros: {t: 3m}
models: {a: {proxy: 'http://x', ttl: "${t}", timeouts: {connect: 5s, responseHeader: 1m}}}
"""
    found = read_config(text).settings
    assert (found.default_ttl, found.unload_timeout, found.health_check_timeout) == (600, 60, 120)
    assert (found.start_timeout, found.shutdown_timeout, found.patience) == (300, 0.5, 60)
    assert (found.limits.audio_duration, found.limits.stall_timeout) == (7200, 60)
    assert (found.limits.json_bytes, found.limits.field_bytes) == (1_000_000, 1000)
    assert (found.live.idle_timeout, found.models["a"].ttl, found.models["a"].timeouts.connect) == (120, 180, 5)


def test_words_of_the_environment() -> None:
    for word, value in (("1", True), ("true", True), ("yes", True), ("on", True), ("0", False), ("False", False), ("no", False)):
        assert config.load_settings(environment={"EARDRUM_PULL_MISSING": word}).pull_missing is value


def test_names_with_dots() -> None:
    found = config.load_settings(assignments=['models."tiny.en".ttl=5', "models.'base.en'.ttl=6"], environment={})
    assert {id: model.ttl for id, model in found.models.items()} == {"tiny.en": 5, "base.en": 6}


def test_a_selector_may_have_the_name_of_a_peers_model(read_config: Reader) -> None:
    text = "peers: {p: {proxy: 'http://x', models: [m]}}\nmodels: {a: {proxy: 'http://y'}}\nselectors:\n  m: {targets: [p/m, a]}"
    loaded = read_config(text)
    assert list_warnings(loaded) == ["config.yaml:4: The selector m has the name of a peer's model; the one of the peer is p/m."]


def test_ports_of_commands_are_not_the_servers_own(read_config: Reader) -> None:
    loaded = read_config("startPort: 8100\nmodels: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}")
    assert dict(loaded.ports) == {"a": 8101, "b": 8102}


@pytest.mark.parametrize(
    "text",
    [
        "port: 9000\nwyoming: {port: 9000, enabled: false}",
        "port: 9000\nwyoming: {port: 9000}\napiKeys: [k]",
        "port: 0\nwyoming: {port: 0}\nmodels: {a: {cmd: s, proxy: 'http://localhost'}}",
        "host: 127.0.0.1\nport: 9000\nwyoming: {host: 192.168.1.5, port: 9000}",
    ],
)
def test_one_port_where_there_are_not_two(read_config: Reader, text: str) -> None:
    assert read_config(text).settings
