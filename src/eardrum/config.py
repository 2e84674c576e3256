"""Every setting, once. A YAML file is overridden by the environment, that by `--set a.b=c`.

Each setting is one field with a description; the reference page and the JSON schema are generated from it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from eardrum.errors import ConfigError, EardrumError
from eardrum.languages import language_code

PREFIX = "EARDRUM_"
CONFIG_VARIABLE = "EARDRUM_CONFIG"

ENVIRONMENT_ALIASES = {
    "STT_DEFAULT_MODEL": "default_model",
    "STT_DEFAULT_BACKEND": "default_engine",
    "STT_DEVICE": "device",
    "STT_COMPUTE_TYPE": "compute_type",
    "STT_MODEL_DIR": "model_dir",
    "ASR_BACKEND": "default_engine",
    "WHISPER_MODEL": "default_model",
    "WHISPER_LANGUAGE": "default_language",
    "WHISPER_DOWNLOAD_ROOT": "model_dir",
    "DEVICE": "device",
}
"""Names that other servers use for the same settings. The first one that is set wins, `EARDRUM_...` over all."""


class Yaml(yaml.SafeLoader):
    """YAML with the plain words of version 1.2: `no` is Norwegian and not false, `on` is a word."""


Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))


class Section(BaseModel):
    """A part of the settings. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """One model: what runs it, where its weights are, and under which names clients find it."""

    engine: str = Field("", description="Engine that runs the model; empty finds the one that fits the files or the name.")
    source: str = Field(
        "", description="Directory or file of the weights, or a name as for `eardrum pull`; empty takes the model's own name."
    )
    aliases: tuple[str, ...] = Field((), description="Further names clients may use.")
    options: dict[str, Any] = Field({}, description="The engine's own options; see `eardrum engines`.")
    python: str = Field("", description="Interpreter that runs the engine, for libraries with an environment of their own.")
    fallback: tuple[str, ...] = Field((), description="Models to ask, in this order, when this one fails or is too busy.")
    batch: int = Field(0, ge=0, description="Windows decoded at once; 0 measures at load what is worth it.")
    max_requests: int = Field(0, ge=0, description="Requests at a time, waiting ones included; 0 is `limits.requests`.")
    ttl: float = Field(
        -1, ge=-1, description="Seconds without a request after which it is unloaded; 0 is never, -1 is `globalTTL`."
    )


class Limits(Section):
    """What one client may ask of the server."""

    upload_bytes: int = Field(4 << 30, gt=0, description="Largest body, counted as it arrives; past it 413.")
    json_bytes: int = Field(64 << 20, gt=0, description="Largest JSON body (`input_audio` in base64); past it 413.")
    fields: int = Field(100, gt=0, description="Most fields in a form; past it 400.")
    field_bytes: int = Field(64 << 10, gt=0, description="Largest text field in a form; past it 400.")
    audio_seconds: float = Field(24 * 3600, gt=0, description="Longest audio, counted as it is decoded; past it 400.")
    requests: int = Field(64, gt=0, description="Requests a model holds at a time, waiting ones included; past it 503.")
    stall_seconds: float = Field(60, gt=0, description="A client silent for so long in mid-upload is given up with 408.")


class Log(Section):
    """What the server says about itself."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level that is shown.")
    format: Literal["text", "json"] = Field("text", description="`text` for people, `json` for machines.")


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", nested_model_default_partial_update=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens the server to the network.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    default_model: str = Field(
        "", description="Model behind `whisper-1` and behind requests that name none; empty takes the best one present."
    )
    default_engine: str = Field(
        "", description="Take the default model among this engine's models, and let it run what several engines could."
    )
    default_language: str = Field("", description="Language assumed when a client names none; empty lets the model decide.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run, for models that do not set their own.")
    compute_type: str = Field("auto", description="Number format of the weights, for models that do not set their own.")
    model_dir: Path | None = Field(None, description="Folder searched for models; empty is the Hugging Face cache.")
    pull_missing: bool = Field(False, description="Fetch a model that an engine knows when a client first asks for it.")
    spool_dir: Path | None = Field(None, description="Folder for uploads in progress; empty is the system's.")
    globalTTL: float = Field(  # noqa: N815 -- llama-swap's name
        0, ge=0, description="Seconds without a request after which a model is unloaded; 0 is never."
    )
    start_seconds: float = Field(300, gt=0, description="A model that is not ready after so long has failed to load.")
    stop_seconds: int = Field(10, ge=0, description="Time that requests in progress have to finish when the server is stopped.")
    models: dict[str, Model] = Field({}, description="Models by the name clients use.")
    limits: Limits = Field(Limits(), description="What one client may ask of the server.")
    log: Log = Field(Log(), description="What the server says about itself.")

    @field_validator("default_language")
    @classmethod
    def _is_a_language(cls, spelled: str) -> str:
        try:
            return language_code(spelled) or ""
        except EardrumError as error:
            raise ValueError(error.message) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes in: it has merged the sources already."""
        return (init_settings,)


NESTED = {"models", "limits", "log"}
"""Settings that hold further ones."""


def load(
    file: Path | None = None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the file, then the environment, then `a.b=c` assignments; each overrides those before it.

    `overrides` (top-level settings, from flags such as --port) come last. Without a file, the one that
    EARDRUM_CONFIG names is read.

    Raises:
        ConfigError: an unknown setting, a wrong value or an unreadable file; the message names it.
    """
    environment = os.environ if environment is None else environment
    file = file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    tree = _read(file) if file else {}
    for source in (_from_aliases(environment), _from_environment(environment), _from_assignments(assignments)):
        tree = _merged(tree, source)
    tree = _merged(tree, {k: v for k, v in (overrides or {}).items() if v is not None})
    tree = {name: value for name, value in tree.items() if value is not None or name not in NESTED}  # `limits:` left empty
    if isinstance(models := tree.get("models"), dict):  # of `large-v3:` its name says all
        tree["models"] = {name: {} if entry is None else entry for name, entry in models.items()}
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise ConfigError(_worded(error)) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Yaml)  # noqa: S506 -- a SafeLoader
    except OSError as error:
        raise ConfigError(f"Cannot read the config file {file}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {file} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"The config file {file} must hold settings by name, as in `port: 8100`.")
    return tree


def _from_aliases(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, setting in ENVIRONMENT_ALIASES.items():
        if environment.get(variable):
            found.setdefault(setting, environment[variable])
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE and environment[name]:
            tree = _merged(tree, _from_variable(name, environment[name]))
    return tree


def _from_variable(name: str, value: str) -> dict[str, Any]:
    top, _, below = name.removeprefix(PREFIX).lower().partition("__")
    if top not in {field.lower() for field in Settings.model_fields} or (below and top not in NESTED):
        raise ConfigError(f"Unknown environment variable {name}.{_nearest(top)}")
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value}
    try:
        return source()
    except SettingsError:
        raise ConfigError(f"The environment variable {name} must be JSON, not {value!r}.") from None


def _from_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment!r} is not of the form a.b=c.")
        try:
            leaf: Any = yaml.load(value, Yaml)  # noqa: S506 -- a SafeLoader
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment!r}: the value of {path} is not valid YAML; put it in quotes.") from None
        for key in reversed(path.split(".")):
            leaf = {key: leaf}
        tree = _merged(tree, leaf)
    return tree


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _worded(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"Unknown setting {path}.{_nearest(str(first['loc'][-1]))}"
    if first["type"] == "missing":
        return f"The setting {path} is missing."
    return f"The setting {path} is wrong: {first['msg']} (it is {first['input']!r})."


def _nearest(name: str) -> str:
    names = [*Settings.model_fields, *Limits.model_fields, *Log.model_fields, *Model.model_fields]
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]}?" if close else " `docs/config.md` lists all settings."
