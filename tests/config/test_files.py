"""The environment inside files, and several files as one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eardrum import config
from eardrum.config import PortReservations
from eardrum.errors import ConfigError
from tests.config.conftest import Reader, list_warnings


def write_files(folder: Path, **files: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.yaml" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    return paths


def get_refusal(*files: Path, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load_config(files, environment={}, folder=folder)
    return caught.value.message.replace(f"{folder or files[0].parent}/", "")


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("default_model: ${env.V}", "x", "x"),
        ("default_model: a-${env.V}-${env.V}", "x", "a-x-x"),
        ('default_model: "${env.V}"', r'C:\dir "a"', r'C:\dir "a"'),
        ("default_model: ${env.V}", r"a\b", r"a\\b"),
        ("default_model: ${env.V}", "", ""),
        ("default_model: ${env.V} # ${env.UNSET}", "x", "x"),
        ("# ${env.UNSET}\ndefault_model: '${env.V}'", "${env.UNSET}", "${env.UNSET}"),
        ("default_model: ${env.V}", "no", "no"),
        ("default_model: ${env.V}", "012", "012"),
    ],
)
def test_the_environment_inside_a_file(read_config: Reader, text: str, value: str, expected: str) -> None:
    assert read_config(text, V=value).settings.default_model == expected


def test_the_environment_has_types_where_it_is_not_quoted(read_config: Reader) -> None:
    assert read_config("port: ${env.P}", P="5").settings.port == 5
    assert read_config("apiKeys: [${env.A}, ${env.B}]", A="a", B="b").settings.api_keys[1].key == "b"


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_a_line_break_from_the_environment_is_refused(read_config: Reader, value: str) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml:1: The environment variable V holds a line break"):
        read_config("default_model: ${env.V}", V=value)


def test_files_are_joined(tmp_path: Path) -> None:
    files = write_files(
        tmp_path,
        one="port: 1\nmacros: {m: x}\nmodels: {a: {proxy: 'http://${n}'}}\napiKeys: [k]\nhooks:\nlimits: {fields: 5}\n",
        two="port: 1\nmacros: {n: '${m}y'}\nmodels: {b: {proxy: 'http://b'}}\n"
        "apiKeys: [l]\nhooks: {on_startup: {preload: [a]}}\n",
        three="",
        four="limits: {requests: 6}\nmodels:\n",
    )
    loaded = config.load_config(files, environment={})
    settings = loaded.settings
    assert list(settings.models) == ["a", "b"]
    assert settings.models["a"].proxy == "http://xy"
    assert [key.key for key in settings.api_keys] == ["k", "l"]
    assert settings.hooks.on_startup.preload == ("a",)
    assert (settings.port, settings.limits.fields, settings.limits.requests) == (1, 5, 6)
    assert (loaded.files, loaded.warnings) == (tuple(files), ())
    assert config.load_settings(files, environment={}) == settings


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        ("port: 1", "\nport: 2", "two.yaml:2: port is set to something else at one.yaml:1: set it in one file."),
        ("port: 1", "port: '1'", "port is set to something else"),
        ("port: 1", "port: true", "port is set to something else"),
        ("limits: {fields: 1}", "limits: {fields: 2}", "limits.fields is set to something else"),
        ("apiKeys: [a]", "apiKeys: b", "apiKeys is set to something else"),
        ("models: {a: }", "\n\nmodels: {a: }", "two.yaml:3: models.a is described at one.yaml:1 too"),
        ("groups: {a: }", "groups: {a: }", "groups.a is described at"),
        ("profiles: {a: }", "profiles: {a: }", "profiles.a is described at"),
        ("selectors: {a: }", "selectors: {a: }", "selectors.a is described at"),
        ("peers: {a: }", "peers: {a: }", "peers.a is described at"),
        ("matrix: {sets: {a: x}}", "matrix: {sets: {b: x}}", "matrix.sets is described at"),
        ("macros: {m: 1}", "macros: {m: 2}", "macros.m is set to something else"),
        ("port: 1", "hosts: ''\napiKeys: [a, b c]", "two.yaml:2: apiKeys[1] holds a space"),
        ("apiKeys: [a]", "host: ''\napiKeys:\n- b\n- c d", "two.yaml:4: apiKeys[2] holds a space"),
    ],
)
def test_files_that_contradict_each_other(tmp_path: Path, one: str, two: str, says: str) -> None:
    assert says in get_refusal(*write_files(tmp_path, one=one, two=two))


def test_numbers_in_lists_of_several_files_stay_as_they_are_written(tmp_path: Path) -> None:
    files = write_files(
        tmp_path,
        one="api_keys: [{key: first}]\ntingwu_hotwords: [one]\n",
        two="api_keys: [{key: 0123456}, {key: 654321}]\ntingwu_hotwords: [007, 8]\n",
        three="api_keys:\n  - key: 'a b'\n",
    )
    settings = config.load_settings(files[:2], environment={})
    assert [key.key for key in settings.api_keys] == ["first", "0123456", "654321"]
    assert settings.tingwu_hotwords == ("one", "007", "8")
    assert get_refusal(*files).startswith("three.yaml:2: api_keys[3] holds a space")


def test_warnings_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = write_files(tmp_path, z="\nzzzzzz: 1", a="zzzzzz: 1\nyyyyyy: 1")
    assert [warning[:9] for warning in list_warnings(config.load_config(files, environment={}))] == ["z.yaml:2:", "a.yaml:2:"]


def test_a_folder(tmp_path: Path) -> None:
    (first,) = write_files(tmp_path, main="port: 5")
    inside = tmp_path / "conf.d"
    write_files(inside, b="models: {b: }", a="models: {a: }")
    (inside / "c.yml").write_text("models: {c: }")
    (inside / "d.txt").write_text("models: {d: }")
    (inside / "e.yaml").mkdir()
    found = config.load_config(first, environment={}, folder=inside)
    assert [path.name for path in found.files] == ["main.yaml", "a.yaml", "b.yaml", "c.yml"]
    assert list(found.settings.models) == ["a", "b", "c"]
    environment = {"EARDRUM_CONFIG_DIR": str(inside), "EARDRUM_CONFIG": str(first)}
    assert config.load_config(environment=environment).files == found.files
    assert config.load_config(first, environment=environment).files == (first,), "who names files means these"
    assert "is also in the config folder" in get_refusal(inside / "a.yaml", folder=inside)
    assert "No such file" in get_refusal(folder=tmp_path / "nowhere")


def test_several_files_in_the_environment(tmp_path: Path) -> None:
    files = write_files(tmp_path, one="port: 1", two="host: h")
    settings = config.load_settings(environment={"EARDRUM_CONFIG": os.pathsep.join(map(str, files))})
    assert (settings.port, settings.host) == (1, "h")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "--config-dir" in get_refusal(tmp_path)


TWO = "models: {b: {cmd: 's ${PORT}'}, d: {cmd: 's ${PORT}'}}"
FOUR = "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}, c: {cmd: s, proxy: 'http://c'}, d: {cmd: 's ${PORT}'}}"


def test_ports_stay_when_models_come(read_config: Reader) -> None:
    before = read_config(TWO).ports
    assert before == {"b": 5800, "d": 5801}
    after = read_config(FOUR, ports=PortReservations(before))
    assert after.ports == {"a": 5802, "b": 5800, "d": 5801}
    assert after.settings.models["b"] == read_config(TWO).settings.models["b"]
    assert read_config(TWO, ports=PortReservations({"gone": 5800}, excluded=[5800, 5802])).ports == {"b": 5801, "d": 5803}


def test_macros_of_what_the_environment_and_flags_set(read_config: Reader) -> None:
    loaded = read_config("macros: {m: 5}", "models.a.cmd=s ${PORT} ${m}", EARDRUM_MODELS__B__PROXY="http://${m}")
    assert (loaded.settings.models["a"].cmd, loaded.settings.models["b"].proxy) == ("s 5800 5", "http://5")
    assert read_config("models: {a: {proxy: 'http://x', ttl: 5}}", "models.a.ttl=6").settings.models["a"].ttl == 6
    assert read_config("models: {a: {proxy: 'http://x', ttl: 5}}", EARDRUM_MODELS__a__TTL="7").settings.models["a"].ttl == 7


def test_names_in_the_environment_may_be_in_capitals(read_config: Reader) -> None:
    settings = read_config(
        "models: {a: {cmd: 's ${PORT}'}}",
        EARDRUM_MODELS__a__CHECKENDPOINT="/x",
        EARDRUM_MODELS__a__COMPAT__IGNOREWEBSOCKETS="true",
        EARDRUM_UPSTREAM__IGNOREPATHS='["x"]',
        EARDRUM_GLOBALTTL="7",
    ).settings
    assert (settings.models["a"].check_endpoint, settings.models["a"].compat.ignore_websockets) == ("/x", True)
    assert (settings.upstream.ignore_paths, settings.default_ttl) == (("x",), 7)


def test_what_a_flag_sets_is_in_no_line(read_config: Reader) -> None:
    text = "models:\n  a: {proxy: 'http://x', ttl: 5}"
    for assignment in ("models.a.ttl=x", "models.a.batch_size=x", "models.a.tll=5"):
        with pytest.raises(ConfigError) as caught:
            read_config(text, assignment)
        assert "config.yaml" not in caught.value.message
    with pytest.raises(ConfigError, match=r"config\.yaml:2: The setting models\.a\.ttl"):
        read_config(text.replace("5", "x"), "models.a.batch_size=5")
