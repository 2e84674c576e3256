"""What a config amounts to: every model with what it runs, what may be loaded together, and all that is wrong or odd."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eardrum import config
from eardrum.config import Loaded, Remark, words
from eardrum.errors import ConfigError, EardrumError, ModelNotFoundError
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Inventory, Model
from eardrum.gateway.rulebook import Rulebook
from eardrum.gateway.rules import Nothing, Rules

OPTIONS_S = 60
"""Time for engines to look at options: they import numpy, but none of their own libraries."""

HIDDEN = "***"
SECRET_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "auth"}
BEARER = re.compile(r"(bearer\s+)\S+", re.IGNORECASE)


@dataclass(slots=True)
class Finding:
    """Something wrong or odd, and where."""

    message: str
    file: str = ""
    line: int = 0
    setting: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.file else self.message


@dataclass(slots=True)
class Report:
    """The outcome of a look at a config. It holds no secrets: it is meant to be shown."""

    files: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)


def examined(files: Sequence[Path], folder: Path | None, assignments: Sequence[str]) -> Report:
    """Read a config and look at everything that can be looked at without loading a model."""
    report = Report([str(file) for file in files])
    try:
        loaded = config.read(files, assignments, folder=folder)
    except ConfigError as error:
        report.errors += [_located(message) for message in error.message.splitlines()]
        return report
    report.files = [str(file) for file in loaded.files]
    report.warnings += [_finding(warning) for warning in loaded.warnings]
    found = _models(loaded, report)
    rules = _rules(found, loaded, report)
    for id, entry in loaded.settings.models.items():
        beside = [other for other in loaded.settings.models if other != id and rules.allows((id, other))]
        report.models.append(_entry(id, entry, found.get(id), loaded) | {"beside": beside})
    report.warnings += _missing_programs(loaded)
    report.errors += _wrong_options(found, loaded)
    if not report.errors:
        _look_at_names(loaded, report)
    return report


def _models(loaded: Loaded, report: Report) -> dict[str, Model]:
    """The config's models as the server would have them; those that it could not have become errors."""
    found = {}
    try:
        inventory = Inventory(loaded.settings)
    except ConfigError as error:
        report.errors.append(_of_setting(error.message, loaded))
        return {}
    for id in loaded.settings.models:
        try:
            model = inventory.configured(id)
        except EardrumError as error:
            report.errors.append(_at(error.message, ("models", id), loaded))
            continue
        if model:
            found[id] = model
            report.warnings += [_at(message, ("models", id), loaded) for message in _unready(model)]
    return found


def _unready(model: Model) -> Iterator[str]:
    if model.foreign:
        return
    if not model.runnable:
        yield f"{model.id} cannot run yet. {model.card.how_to_install}"
    if model.absent:
        yield f"{model.id} is not on this machine: `eardrum pull {model.id}`."
    if model.batch > model.card.capabilities.max_batch:
        yield f"batch is {model.batch}, but {model.engine} decodes at most {model.card.capabilities.max_batch} windows at once."


def _rules(found: Mapping[str, Model], loaded: Loaded, report: Report) -> Rules:
    """The rules by which the server would unload models for one another."""
    try:
        book = Rulebook(loaded.settings)
    except ConfigError as error:
        report.errors.append(_of_setting(error.message, loaded))
        return Nothing()
    for model in found.values():
        book.learn(model)
    return book.rules


def _look_at_names(loaded: Loaded, report: Report) -> None:
    try:
        catalog = Catalog(loaded.settings)
    except ConfigError as error:
        report.errors.append(_of_setting(error.message, loaded))
        return
    for position, name in enumerate(loaded.settings.hooks.on_startup.preload):
        if name in loaded.settings.selectors:
            continue
        try:
            catalog.find(name)
        except ModelNotFoundError as error:
            path = ("hooks", "on_startup", "preload", position)
            report.warnings.append(_at(f"{name} will not be preloaded. {error.message}", path, loaded))


def _entry(id: str, entry: config.Model, model: Model | None, loaded: Loaded) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": id,
        "kind": model.engine if model else "unknown",
        "command": hidden(words.split(entry.cmd)),
        "stop": hidden(words.split(entry.cmdStop)),
        "port": loaded.ports.get(id),
        "proxy": _without_login(entry.proxy),
        "source": str(model.source or "") if model else "",
        "environment": [variable.partition("=")[0] for variable in entry.env],
        "aliases": list(entry.aliases),
        "ttl": model.ttl if model else entry.ttl,
    }
    return {name: value for name, value in told.items() if value not in ("", None, [])}


def hidden(arguments: Sequence[str]) -> list[str]:
    """Arguments without the values that are secrets by the name of their option."""
    shown: list[str] = []
    secret_follows = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if secret_follows and not argument.startswith("-"):
            shown.append(HIDDEN)
        elif equals and value and _is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(BEARER.sub(rf"\1{HIDDEN}", argument))
        secret_follows = argument.startswith("-") and not equals and _is_secret(name)
    return shown


def _is_secret(name: str) -> bool:
    parts = re.split(r"[-_.]+", name.lower().strip("-"))
    return bool(SECRET_WORDS & set(parts)) and parts[-1] not in ("file", "path")


def _without_login(address: str) -> str:
    login, at, _ = urlsplit(address).netloc.rpartition("@")
    return address.replace(f"{login}{at}", f"{HIDDEN}@", 1) if at else address


def _missing_programs(loaded: Loaded) -> Iterator[Finding]:
    for id, entry in loaded.settings.models.items():
        variables = dict(variable.split("=", 1) for variable in entry.env if "=" in variable)
        for name, line in (("cmd", entry.cmd), ("cmdStop", entry.cmdStop)):
            program = next(iter(words.split(line)), "")
            if program and not shutil.which(program, path=variables.get("PATH", os.environ.get("PATH"))):
                yield _at(f"There is no program {program} for the `{name}` of {id}.", ("models", id, name), loaded)


def _wrong_options(found: Mapping[str, Model], loaded: Loaded) -> Iterator[Finding]:
    """Ask the engines, in a process of their own, since they import what the gateway must not."""
    ours = [model for model in found.values() if not model.foreign]
    if not ours:
        return
    asked = json.dumps([{"engine": model.engine, "options": model.options} for model in ours])
    command = [sys.executable, "-m", "eardrum.runner.options"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=OPTIONS_S, check=False)  # noqa: S603
    if done.returncode:
        yield Finding(f"The options of engines cannot be checked: {done.stderr.strip().splitlines()[-1]}")
        return
    for model, problem in zip(ours, json.loads(done.stdout), strict=True):
        if problem:
            yield _at(f"models.{model.id}: {problem}", ("models", model.id, "options"), loaded)


def _at(message: str, path: tuple[str | int, ...], loaded: Loaded) -> Finding:
    return _finding(loaded.places.remark(path, message))


def _of_setting(message: str, loaded: Loaded) -> Finding:
    """A message that begins with the setting at fault, as most about the config do."""
    setting = re.split(r"[: ]", message)[0]
    for id in loaded.settings.models:
        if setting.startswith(f"models.{id}."):
            return _at(message, ("models", id, setting.removeprefix(f"models.{id}.")), loaded)
    path = tuple(setting.split("."))
    return _at(message, path, loaded) if loaded.places.of(path) else Finding(message)


def _finding(remark: Remark) -> Finding:
    place = remark.place
    return Finding(remark.message, place.file if place else "", place.line if place else 0, remark.path)


def _located(message: str) -> Finding:
    match = re.fullmatch(r"(.+?):(\d+): (.*)", message)
    return Finding(match[3], match[1], int(match[2])) if match else Finding(message)
