"""Settings from the environment and from `--set a.b=c`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args, get_origin

from eardrum.config import dialect, known
from eardrum.config.places import Errors, KeyPath, Place, Places, Remark, SettingError, dotted
from eardrum.config.sections import Section
from eardrum.config.settings import PREFIX, Settings
from eardrum.config.shape import shown
from eardrum.config.spelling import spellings
from eardrum.errors import ConfigError

CONFIG_VARIABLE, FOLDER_VARIABLE = "EARDRUM_CONFIG", "EARDRUM_CONFIG_DIR"

CLIENT_SERVER_VARIABLE, CLIENT_KEY_VARIABLE, CLIENT_CERTIFICATE_VARIABLE = (
    "EARDRUM_SERVER",
    "EARDRUM_KEY",
    "EARDRUM_CERTIFICATE",
)
"""For commands that ask a running server. They are no settings of one."""

BELOW = "__"
"""Between the name of a setting and one below it."""

NOT_SETTINGS = (CONFIG_VARIABLE, FOLDER_VARIABLE, CLIENT_SERVER_VARIABLE, CLIENT_KEY_VARIABLE, CLIENT_CERTIFICATE_VARIABLE)
"""Variables that begin like those of settings, and are for others to read."""

SET = "--set"
PART = re.compile(r"""(?:^|(?<=\.))(?:("[^"]+"|'[^']+')|([^."'=]+))(?=\.|$)""")
"""One name of the path in front of an assignment's value."""

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
    "SUBTITLE_MAX_LINE_WIDTH": "subtitles.max_line_width",
    "SUBTITLE_MAX_LINE_COUNT": "subtitles.max_line_count",
    "SUBTITLE_HIGHLIGHT_WORDS": "subtitles.highlight_words",
}
"""Names that other servers use for the same settings. The first one that is set wins, `EARDRUM_...` over all."""


def from_environment(environment: Mapping[str, str], errors: Errors) -> tuple[dict[str, Any], Places]:
    """What the environment sets. It is an error to set what is no setting, or no JSON to what must be some."""
    tree: dict[str, Any] = {}
    places = Places()
    for variable, setting in ENVIRONMENT_ALIASES.items():
        path: KeyPath = tuple(setting.split("."))
        if environment.get(variable) and path not in places:
            top, *below = setting.split(".")
            value = environment[variable]
            tree = merged(tree, {top: _placed(value, Settings.model_fields[top].annotation, below) if below else value})
            places[path] = Place(variable)
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in NOT_SETTINGS and environment[name]:
            try:
                found = _from_variable(name, environment[name])
            except ConfigError as error:
                errors.take(error)
                continue
            _note(found, places, name)
            tree = merged(tree, found)
    return tree, places


def _from_variable(name: str, value: str) -> dict[str, Any]:
    top, *below = name.removeprefix(PREFIX).lower().split(BELOW)
    settings = _by_variable(Settings.model_fields)
    if top not in settings or (below and not known.has_names(settings[top])):
        raise SettingError(Remark(f"Unknown environment variable {name}.{_hint(top, below)}"))
    try:
        return {settings[top]: _placed(value, Settings.model_fields[settings[top]].annotation, below)}
    except ValueError as error:
        path = (settings[top], *below)
        message = f"The setting {dotted(path)} must be JSON here, {error}{shown(path, value)}."
        raise SettingError(Remark(message, Place(name), dotted(path))) from None


def _by_variable(fields: Collection[str]) -> dict[str, str]:
    """Settings by their names in small letters, in both spellings."""
    both = {spelled.lower(): name for name in fields for spelled in spellings(name)}
    return both | {name.lower(): name for name in fields}


def _hint(top: str, below: Sequence[str]) -> str:
    """Which variable was meant, else where such a setting is."""
    names = {field.upper(): field for field in Settings.model_fields}
    for section in names if not below else ():
        if top.upper().startswith(f"{section}_") and top[len(section) + 1 :] in known.names_below(names[section]):
            return f" Did you mean {PREFIX}{section}{BELOW}{top[len(section) + 1 :].upper()}?"
    if close := known.nearest(top.upper(), names):
        return f" Did you mean {BELOW.join([PREFIX + close, *map(str.upper, below)])}?"
    return known.hint(top)


def _note(value: Any, places: Places, label: str, path: KeyPath = ()) -> None:
    """Give every setting of a tree this place."""
    if path:
        places[path] = Place(label)
    for name, inner in value.items() if isinstance(value, dict) else ():
        _note(inner, places, label, (*path, name))
    for position, inner in enumerate(value) if isinstance(value, list) else ():
        _note(inner, places, label, (*path, position))


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
        spelled = _by_variable(fields).get(below[0])
        inner = fields[spelled].annotation if spelled else Any
        below = [spelled or below[0], *below[1:]]
    return {below[0]: _placed(value, inner, below[1:])}


def _read(value: str, kind: Any) -> Any:
    """Text, unless a setting of this kind is a section, a list or a mapping, or a number, true or false.

    Raises:
        ValueError: it must be JSON, and is not; how it would be some.
    """
    if isinstance(kind, type) and issubclass(kind, Section) and kind.shorthand and not value.lstrip().startswith("{"):
        return value
    if known.is_section(kind) or get_origin(kind) in (dict, list, tuple):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('as in ["a", "b"]' if get_origin(kind) in (list, tuple) else 'as in {"name": "value"}') from None
    return _scalar(value) if kind in (bool, int, float) else value


def _scalar(text: str) -> Any:
    """The number, or true or false, that a text stands for; itself if none."""
    try:
        found = dialect.value(text)
    except ConfigError:
        return text
    return found if isinstance(found, bool | int | float) else text


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
    cased = _by_variable(fields)
    spelled = {cased.get(name.lower(), name): inner for name, inner in value.items()}
    return {name: _cased(inner, fields[name].annotation) if name in fields else inner for name, inner in spelled.items()}


def from_assignments(assignments: Sequence[str], errors: Errors) -> tuple[dict[str, Any], Places]:
    """What `--set a.b=c` sets; the value is YAML, and a name with dots in it stands in quotes. Any other form is an error."""
    tree: dict[str, Any] = {}
    places = Places()
    for assignment in assignments:
        written, equals, value = assignment.partition("=")
        path = _path(written)
        if not equals or not path:
            errors.take(ConfigError(f"--set {written!r} is not of the form a.b=c."))
            continue
        try:
            document = dialect.parse(value, SET)
        except ConfigError:
            errors.take(ConfigError(f"--set {written}: the value is not valid YAML; put it in quotes."), path)
            continue
        leaf = document.tree
        for key in reversed(path):
            leaf = {key: leaf}
        found = Places()
        _note(leaf, found, f"{SET} {written}")
        found[path] = Place(f"{SET} {written}", text=None if isinstance(document.tree, str) else value.strip())
        for inner, place in document.places.items():
            found[(*path, *inner)] = Place(f"{SET} {written}", text=place.text)
        places.override(leaf, found)
        tree = merged(tree, leaf)
    return tree, places


def _path(written: str) -> tuple[str, ...]:
    """The names of `a."b.c".d`; none if it is not of that form."""
    parts = PART.findall(written)
    whole = ".".join(quoted or plain for quoted, plain in parts)
    return tuple(quoted[1:-1] or plain for quoted, plain in parts) if written and whole == written else ()


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with `above` winning where they differ."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both
