"""Reads the settings: a YAML file is overridden by the environment, that by `--set a.b=c`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from eardrum.config.settings import PREFIX, Limits, Log, Model, Settings
from eardrum.errors import ConfigError

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


NESTED = {"models", "limits", "log", "hooks", "upstream", "groups", "profiles", "selectors", "peers", "memory"}
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
