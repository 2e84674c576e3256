"""Settings from the environment and from `--set a.b=c`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from eardrum.config import dialect, known
from eardrum.config.settings import PREFIX, Settings
from eardrum.errors import ConfigError

CONFIG_VARIABLE, FOLDER_VARIABLE = "EARDRUM_CONFIG", "EARDRUM_CONFIG_DIR"

BELOW = "__"
"""Between the name of a setting and one below it."""

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


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the environment sets.

    Raises:
        ConfigError: a variable of ours that is none, or one that must be JSON and is not.
    """
    tree: dict[str, Any] = {}
    for variable, setting in ENVIRONMENT_ALIASES.items():
        if environment.get(variable):
            tree.setdefault(setting, environment[variable])
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in (CONFIG_VARIABLE, FOLDER_VARIABLE) and environment[name]:
            tree = merged(tree, _from_variable(name, environment[name]))
    return tree


def _from_variable(name: str, value: str) -> dict[str, Any]:
    top, *below = name.removeprefix(PREFIX).lower().split(BELOW)
    settings = {field.lower(): field for field in Settings.model_fields}
    if top not in settings or (below and not known.has_names(settings[top])):
        raise ConfigError(f"Unknown environment variable {name}.{known.hint(top)}")
    try:
        return {settings[top]: _placed(value, Settings.model_fields[settings[top]].annotation, below)}
    except ValueError:
        raise ConfigError(f"The environment variable {name} must be JSON, not {value!r}.") from None


def _placed(value: str, kind: Any, below: Sequence[str]) -> Any:
    """The value as it is meant for a setting of this kind, or for one so many names below it."""
    kind = known.sole(kind)
    if not below:
        return _cased(_read(value, kind), kind)
    inner: Any = Any
    if get_origin(kind) is dict:
        inner = get_args(kind)[1]
    elif known.is_section(kind):
        fields = known.fields(kind)
        spelled = {name.lower(): name for name in fields}.get(below[0])
        inner = fields[spelled].annotation if spelled else Any
        below = [spelled or below[0], *below[1:]]
    return {below[0]: _placed(value, inner, below[1:])}


def _read(value: str, kind: Any) -> Any:
    """Text, unless a setting of this kind is a section, a list or a mapping.

    Raises:
        ValueError: then it must be JSON, and is not.
    """
    return json.loads(value) if known.is_section(kind) or get_origin(kind) in (dict, list, tuple) else value


def _cased(value: Any, kind: Any) -> Any:
    """With the names of settings as they are written in files: in variables they may be in small letters."""
    kind = known.sole(kind)
    if not isinstance(value, dict):
        return value
    if get_origin(kind) is dict:
        return {name: _cased(inner, get_args(kind)[1]) for name, inner in value.items()}
    if not known.is_section(kind):
        return value
    fields = known.fields(kind)
    cased = {name.lower(): name for name in fields}
    spelled = {cased.get(name.lower(), name): inner for name, inner in value.items()}
    return {name: _cased(inner, fields[name].annotation) if name in fields else inner for name, inner in spelled.items()}


def from_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """What `--set a.b=c` sets; the value is YAML.

    Raises:
        ConfigError: it is not of that form.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment!r} is not of the form a.b=c.")
        try:
            leaf = dialect.value(value)
        except ConfigError:
            raise ConfigError(f"--set {assignment!r}: the value of {path} is not valid YAML; put it in quotes.") from None
        for key in reversed(path.split(".")):
            leaf = {key: leaf}
        tree = merged(tree, leaf)
    return tree


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with `above` winning where they differ."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both
