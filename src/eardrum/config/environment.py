"""Settings from the environment and from `--set a.b=c`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic_settings import EnvSettingsSource, SettingsError

from eardrum.config import dialect, known
from eardrum.config.settings import PREFIX, Settings
from eardrum.errors import ConfigError

CONFIG_VARIABLE, FOLDER_VARIABLE = "EARDRUM_CONFIG", "EARDRUM_CONFIG_DIR"

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
    top, _, below = name.removeprefix(PREFIX).lower().partition("__")
    settings = {field.lower(): field for field in Settings.model_fields}
    if top not in settings or (below and not known.has_names(settings[top])):
        raise ConfigError(f"Unknown environment variable {name}.{known.hint(top)}")
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value}
    try:
        return {top: _cased(inner, Settings.model_fields[top].annotation) for top, inner in source().items()}
    except SettingsError:
        raise ConfigError(f"The environment variable {name} must be JSON, not {value!r}.") from None


def _cased(value: Any, kind: Any) -> Any:
    """With the names of settings as they are written in files: those of variables are read in small letters."""
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
