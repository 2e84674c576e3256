"""Every setting, from every place it can come from."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from eardrum.config import ENVIRONMENT_ALIASES, Settings, load_settings
from eardrum.errors import ConfigError

SCHEMA = Path(__file__).parent.parent / "docs" / "reference" / "config.schema.json"

EXAMPLE = """
host: 0.0.0.0
port: 8200
default_model: mine
models:
  mine:
    source: /models/mine
    aliases: [whisper-1, Org/mine]
    options: {threads: 2}
    batch_size: 4
limits:
  upload_bytes: 1000000
log:
  level: debug
  format: json
"""


def write_config(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def get_error(file: Path | None = None, assignments: tuple[str, ...] = (), **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, assignments, environment)
    return caught.value.message


def test_defaults() -> None:
    assert load_settings(environment={}) == Settings()
    assert (Settings().host, Settings().port) == ("127.0.0.1", 8100), "nothing is open to the network unasked"


def test_a_file(tmp_path: Path) -> None:
    found = load_settings(write_config(tmp_path, EXAMPLE), environment={})
    assert (found.host, found.port, found.default_model) == ("0.0.0.0", 8200, "mine")
    mine = found.models["mine"]
    assert (mine.source, mine.aliases, mine.options, mine.batch_size) == (
        "/models/mine",
        ("whisper-1", "Org/mine"),
        {"threads": 2},
        4,
    )
    assert (found.limits.upload_bytes, found.limits.fields) == (1_000_000, 100)
    assert (found.log.level, found.log.format) == ("debug", "json")


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    assert load_settings(write_config(tmp_path, text), environment={}) == Settings()


def test_each_place_overrides_those_before_it(tmp_path: Path) -> None:
    file = write_config(tmp_path, "port: 1\nhost: file\ndefault_model: file\nlimits: {fields: 1, requests: 1, json_bytes: 1}")
    environment = {
        "WHISPER_MODEL": "alias",
        "EARDRUM_HOST": "environment",
        "EARDRUM_PORT": "2",
        "EARDRUM_LIMITS__REQUESTS": "2",
        "EARDRUM_LIMITS__FIELDS": "2",
    }
    found = load_settings(file, ["port=3", "limits.fields=3"], environment)
    assert (found.port, found.host, found.default_model) == (3, "environment", "alias")
    assert (found.limits.fields, found.limits.requests, found.limits.json_bytes) == (3, 2, 1)
    assert load_settings(file, ["port=3"], environment, {"port": 4, "host": None}).port == 4
    assert load_settings(file, [], environment, {"port": None, "host": None}).host == "environment"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    environment = {"EARDRUM_CONFIG": str(write_config(tmp_path, "port: 5"))}
    assert load_settings(environment=environment).port == 5
    other = tmp_path / "other.yaml"
    other.write_text("port: 6")
    assert load_settings(other, environment=environment).port == 6


@pytest.mark.parametrize(("variable", "setting"), ENVIRONMENT_ALIASES.items())
def test_names_that_other_servers_use(variable: str, setting: str) -> None:
    pairs = {"device": ("cpu", "cuda"), "default_language": ("de", "fr"), "subtitles.highlight_words": ("True", "False")}
    theirs, ours = pairs.get(setting, ("30", "20") if setting.startswith("subtitles.") else ("theirs", "ours"))
    value = attrgetter(setting)
    assert str(value(load_settings(environment={variable: theirs}))) == theirs
    both = {f"EARDRUM_{setting.replace('.', '__').upper()}": ours, variable: theirs}
    assert str(value(load_settings(environment=both))) == ours
    assert value(load_settings(environment={variable: ""})) == value(Settings())


def test_the_first_of_several_aliases_wins() -> None:
    assert load_settings(environment={"WHISPER_MODEL": "b", "STT_DEFAULT_MODEL": "a"}).default_model == "a"


def test_models_in_the_environment() -> None:
    found = load_settings(environment={"EARDRUM_MODELS__tiny__SOURCE": "/x", "EARDRUM_MODELS__tiny__BATCH_SIZE": "2"})
    assert (found.models["tiny"].source, found.models["tiny"].batch_size) == ("/x", 2)
    found = load_settings(environment={"EARDRUM_MODELS": json.dumps({"Org/tiny": {"source": "/y", "aliases": ["a"]}})})
    assert found.models["Org/tiny"].aliases == ("a",)


def test_models_by_assignment(tmp_path: Path) -> None:
    file = write_config(tmp_path, EXAMPLE)
    found = load_settings(file, ["models.mine.batch_size=8", "models.other.source=/x", "models.mine.options={threads: 4}"], {})
    assert (found.models["mine"].batch_size, found.models["mine"].source) == (8, "/models/mine")
    assert found.models["mine"].options == {"threads": 4}
    assert found.models["other"].source == "/x"


def test_other_programs_variables_are_none_of_ours() -> None:
    assert load_settings(environment={"PATH": "/bin", "PORT": "1", "HOST": "x", "MODELS": "[", "LOG": "x"}) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port: high", "port is wrong"),
        ("port: 70000", "port is wrong"),
        ("limits: {fields: 0}", "limits.fields is wrong"),
        ("log: {level: loud}", "'debug', 'info', 'warning' or 'error'"),
        ("models: [a]", "models is wrong"),
        ("- a\n- b", "settings by name"),
        ("just words", "settings by name"),
        ("port: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, says: str) -> None:
    assert says in get_error(write_config(tmp_path, text))


def test_an_unreadable_file(tmp_path: Path) -> None:
    assert "nowhere.yaml" in get_error(tmp_path / "nowhere.yaml")
    assert "directory" in get_error(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml is not valid YAML" in get_error(binary)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EARDRUM_PROT", "1", "Unknown environment variable EARDRUM_PROT. Did you mean EARDRUM_PORT?"),
        ("EARDRUM_LIMITS_UPLOAD_BYTES", "1", "Did you mean EARDRUM_LIMITS__UPLOAD_BYTES?"),
        ("EARDRUM_ZZZ", "1", "docs/reference/config.md"),
        ("EARDRUM_PORT", "high", "port is wrong"),
        ("EARDRUM_LIMITS__UPLOD_BYTES", "1", "limits.uplod_bytes. Did you mean upload_bytes?"),
        ("EARDRUM_LIMITS__FIELDS", "x", "limits.fields is wrong"),
        ("EARDRUM_LIMITS", "5", "limits is wrong"),
        ("EARDRUM_CONFIG", "/nowhere.yaml", "/nowhere.yaml"),
        pytest.param(*("EARDRUM_MODELS", "{bad", "EARDRUM_MODELS")),
        pytest.param(*("EARDRUM_MODELS__a__ALIASES", "one", "ALIASES")),
        pytest.param(*("EARDRUM_PORT__X", "1", "EARDRUM_PORT__X")),
    ],
)
def test_a_wrong_environment(variable: str, value: str, says: str) -> None:
    assert says in get_error(**{variable: value})


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("port", "a.b=c"),
        ("=1", "a.b=c"),
        ("prot=1", "Did you mean port?"),
        ("port=high", "port is wrong"),
        ("limits.fieldz=1", "limits.fieldz. Did you mean fields?"),
        ("limits=5", "limits is wrong"),
        pytest.param("host=[", "host"),
    ],
)
def test_a_wrong_assignment(assignment: str, says: str) -> None:
    assert says in get_error(None, (assignment,))


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def find_schema(schema: dict[str, Any], whole: dict[str, Any], name: str) -> dict[str, Any]:
    """The schema of one named value inside an object's schema."""
    found = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    assert found, f"the schema does not know {name}"
    reference = found.get("$ref", "")
    return whole["$defs"][reference.rpartition("/")[2]] if reference else found


TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "object": dict,
    "array": list,
}


def check_schema(value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> None:
    """As much of JSON Schema as the document uses: types, enumerations, bounds, unknown names refused."""
    if "type" in schema:
        assert isinstance(value, TYPES[schema["type"]])
    assert value in schema.get("enum", [value])
    assert not isinstance(value, int) or value >= schema.get("minimum", value)
    for name, inner in value.items() if isinstance(value, dict) else ():
        if schema.get("additionalProperties") is not True:
            check_schema(inner, find_schema(schema, whole, name), whole)


def test_the_schema_accepts_an_example_and_refuses_what_is_wrong() -> None:
    schema = json.loads(SCHEMA.read_text())
    example = yaml.safe_load(EXAMPLE)
    check_schema(example, schema, schema)
    for wrong_part in ({"prot": 1}, {"port": "high"}, {"port": -1}, {"log": {"level": "loud"}}, {"limits": {"x": 1}}):
        with pytest.raises(AssertionError):
            check_schema(example | wrong_part, schema, schema)


def test_the_schema_knows_every_setting() -> None:
    schema = json.loads(SCHEMA.read_text())
    assert set(schema["properties"]) == set(Settings.model_fields)
    for name, definition in schema["$defs"].items():
        assert all(field.get("description") for field in definition.get("properties", {}).values()), name


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    assert load_settings(None, ("default_language=no",), {}).default_language == "no"
    assert load_settings(write_config(tmp_path, "default_language: no"), (), {}).default_language == "no"


def test_values_that_cannot_be_are_refused_at_the_start() -> None:
    assert "device is wrong" in get_error(None, ("device=gpu",))
    assert "Unknown language 'klingon'" in get_error(None, ("default_language=klingon",))


def test_a_section_left_empty_is_its_default(tmp_path: Path) -> None:
    assert load_settings(write_config(tmp_path, "limits:"), (), {}).limits == Settings().limits
