"""What a config amounts to: every model with what it runs, what may be loaded together, and all that is wrong or odd."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from eardrum import config, tls
from eardrum.api.wyoming.announcement import Announcement
from eardrum.config import Loaded, Remark, Settings, words
from eardrum.config.places import KeyPath
from eardrum.engines import cuda, registry
from eardrum.errors import HIDDEN, ConfigError, EardrumError, ModelNotFoundError, without_login
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Inventory, Model
from eardrum.gateway.rulebook import Rulebook, wrong_sizes
from eardrum.gateway.spool import check_folder
from eardrum.redaction import hide_in_command, is_secret

OPTIONS_S = 60
"""Time for engines to look at options: they import numpy, but none of their own libraries."""


@dataclass(slots=True)
class Finding:
    """Something wrong or odd, and where."""

    message: str
    file: str = ""
    line: int = 0
    setting: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" if place else self.message


@dataclass(slots=True)
class Report:
    """The outcome of a look at a config. It holds no secrets: it is meant to be shown."""

    files: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    pools: list[dict[str, Any]] = field(default_factory=list)
    """Each with its name, its bytes, and the bytes that models are known to take of it."""
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    def position(self, finding: Finding) -> tuple[int, int]:
        """Sorts by file and line, with what has no line at the end."""
        return (self.files.index(finding.file) if finding.file in self.files else len(self.files), finding.line)


def examined(files: Sequence[Path], folder: Path | None, assignments: Sequence[str]) -> Report:
    """Read a config and look at everything that can be looked at without loading a model. No error hides the rest."""
    loaded = config.examine(files, assignments, folder=folder)
    look = _Look(loaded)
    look.at_everything()
    for findings in (look.report.errors, look.report.warnings):
        findings.sort(key=look.report.position)
    return look.report


class _Look:
    """A look at one config. `report` fills as it goes."""

    def __init__(self, loaded: Loaded):
        self._loaded = loaded
        self._settings = loaded.settings
        self.report = Report(
            files=[str(file) for file in loaded.files],
            errors=[_finding(error) for error in loaded.errors],
            warnings=[_finding(warning) for warning in loaded.warnings],
        )

    def at_everything(self) -> None:
        """All there is to look at."""
        self._look_at_places()
        found = self._models()
        book = self._rulebook(found)
        for id, entry in self._settings.models.items():
            beside = [other for other in self._settings.models if other != id and book.rules.allows((id, other))]
            self.report.models.append(_entry(id, entry, found.get(id), self._loaded) | {"beside": beside})
        for name, bytes in book.pools.items():
            taken = {id: round(need[name]) for id, need in book.needs.items() if name in need}
            self.report.pools.append({"name": name, "bytes": round(bytes), "models": taken})
        self.report.warnings += _missing_programs(self._loaded)
        self._look_at_options(found)
        catalog = self._look_at_names(found)
        default = [catalog.default] if catalog and catalog.default.id not in found else []
        self._look_at_devices([*found.values(), *default])

    def _look_at_places(self) -> None:
        """What of the machine the settings name, models aside; what is not there is left out from here on."""
        settings = self._settings
        self.report.warnings += [Finding(str(failed)) for failed in registry.broken()]
        self._fails(lambda: check_folder(settings.spool_dir))
        self._fails(lambda: tls.serving(settings.tls_certificate, settings.tls_key))
        wyoming = settings.wyoming
        if wyoming.zeroconf and wyoming.serves(settings.apiKeys):
            with suppress(ValueError):  # a host by its name, whose address shows when the server listens
                self._fails(lambda: Announcement(wyoming.zeroconf, wyoming.host or settings.host, wyoming.port))
        for name, without in (("model_dir", None), ("default_engine", "")):
            alone = Settings().model_copy(update={name: getattr(settings, name)})
            if self._fails(partial(Inventory, alone)):
                self._settings = self._settings.model_copy(update={name: without})

    def _models(self) -> dict[str, Model]:
        """The config's models as the server would have them; those that it could not have become errors."""
        inventory = Inventory(self._with_models(self._settings.models))
        found = {}
        for id, entry in self._settings.models.items():
            try:
                model = inventory.configured(id)
            except EardrumError as error:
                self._wrong(error.message, ("models", id))
                continue
            if model:
                model = model if model.foreign else replace(model, options=model.options | entry.options)
                found[id] = model
                self.report.warnings += [_at(message, ("models", id), self._loaded) for message in _unready(model)]
        return found

    def _with_models(self, models: Iterable[str]) -> Settings:
        """The settings with these models, without what of them is looked at by itself."""
        entries = {id: self._settings.models[id].model_copy(update={"fallback": ()}) for id in models}
        ours = {id: entry.model_copy(update={"options": {}}) for id, entry in entries.items() if not (entry.cmd or entry.proxy)}
        return self._settings.model_copy(update={"models": entries | ours})

    def _rulebook(self, found: Mapping[str, Model]) -> Rulebook:
        """The rules by which the server would unload models for one another."""
        for path, message in list(wrong_sizes(self._settings)):
            self._wrong(message, path)
            self._settings = _without_size(self._settings, path)
        book = Rulebook(self._settings)
        for id, model in found.items():
            book.learn(replace(model, entry=self._settings.models[id]))
        return book

    def _look_at_options(self, found: Mapping[str, Model]) -> None:
        """Ask the engines, in a process of their own, since they import what the gateway must not."""
        ours = [model for model in found.values() if not model.foreign]
        for model, problems in zip(ours, _problems_of_options(ours), strict=True):
            for problem in problems:
                self._wrong(f"models.{model.id}: {problem['message']}", ("models", model.id, "options", *problem["path"]))

    def _look_at_devices(self, models: Iterable[Model]) -> None:
        """Ask the libraries of those that are to be on a GPU whether they can use one; the same question is asked once."""
        told: dict[str, dict[str, str]] = {}
        for model in models:
            if model.foreign or model.absent or not model.runnable or model.card.remote or not _wants_a_gpu(model):
                continue
            asked = json.dumps({"engine": model.engine, "options": _about_devices(model)}, sort_keys=True)
            answer = told.get(f"{model.python} {asked}") or _device_of(model, asked)
            told[f"{model.python} {asked}"] = answer
            path: KeyPath = ("models", model.id, "options", "device")
            path = path if path in self._loaded.places else ("device",)
            if answer["wrong"]:
                self._wrong(f"{model.id}: {answer['wrong']}", path)
            elif answer["reason"]:
                self.report.warnings.append(_at(f"{model.id} would run on the CPU: {answer['reason']}", path, self._loaded))

    def _look_at_names(self, found: Mapping[str, Model]) -> Catalog | None:
        """Whatever refers to models; returns all there are."""
        settings = self._with_models(found)
        catalog = self._catalog(settings)
        if not catalog:
            return None
        for id in found:
            for position, name in enumerate(self._settings.models[id].fallback):
                if not self._is_of_the_config(name):
                    self._doubt(partial(catalog.doubt_of_fallback, id, name), ("models", id, "fallback", position))
        for position, name in enumerate(settings.hooks.on_startup.preload):
            if name in settings.selectors or self._is_of_the_config(name):
                continue
            try:
                catalog.find(name)
            except ModelNotFoundError as error:
                path = ("hooks", "on_startup", "preload", position)
                self.report.warnings.append(_at(f"{name} will not be preloaded. {error.message}", path, self._loaded))
        return catalog

    def _catalog(self, settings: Settings) -> Catalog | None:
        """The names there are, whatever there is to say about the default model."""
        if self._is_of_the_config(settings.default_model) and not any(
            settings.default_model in (id, *entry.aliases) for id, entry in settings.models.items()
        ):
            settings = settings.model_copy(update={"default_model": ""})  # it is wrong itself, which has been told
        for update in ({}, {"default_model": ""}, {"default_model": "", "default_engine": ""}):
            try:
                return Catalog(settings.model_copy(update=update))
            except ConfigError as error:
                self.report.errors.append(_of_setting(error.message, self._loaded))
        return None

    def _is_of_the_config(self, name: str) -> bool:
        return any(name in (id, *entry.aliases) for id, entry in self._settings.models.items())

    def _doubt(self, look: Callable[[], str], path: KeyPath) -> None:
        try:
            if doubt := look():
                self.report.warnings.append(_at(doubt, path, self._loaded))
        except ConfigError as error:
            self._wrong(error.message, path)

    def _fails(self, attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except ConfigError as error:
            self.report.errors.append(_of_setting(error.message, self._loaded))
            return True
        return False

    def _wrong(self, message: str, path: KeyPath) -> None:
        self.report.errors.append(_at(message, path, self._loaded))


def _without_size(settings: Settings, path: KeyPath) -> Settings:
    """The settings without one size that cannot be read."""
    if path[0] == "memory":
        return settings.model_copy(update={"memory": {name: size for name, size in settings.memory.items() if name != path[1]}})
    id = str(path[1])
    models = settings.models | {id: settings.models[id].model_copy(update={"memory": ""})}
    return settings.model_copy(update={"models": models})


def _unready(model: Model) -> Iterator[str]:
    if model.foreign:
        return
    if not model.runnable:
        yield f"{model.id} cannot run yet. {model.card.how_to_install_here}"
    if model.absent:
        yield f"{model.id} is not on this machine: `{model.pull_command()}`."
    if model.batch > model.card.capabilities.max_batch:
        yield f"batch is {model.batch}, but {model.engine} decodes at most {model.card.capabilities.max_batch} windows at once."


def _entry(id: str, entry: config.Model, model: Model | None, loaded: Loaded) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": id,
        "kind": model.engine if model else "unknown",
        "command": hidden(words.split(entry.cmd)),
        "stop": hidden(words.split(entry.cmdStop)),
        "port": loaded.ports.get(id),
        "proxy": without_login(entry.proxy),
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
        elif equals and value and is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(hide_in_command(argument))
        secret_follows = argument.startswith("-") and not equals and is_secret(name)
    return shown


def _missing_programs(loaded: Loaded) -> Iterator[Finding]:
    for id, entry in loaded.settings.models.items():
        variables = dict(variable.split("=", 1) for variable in entry.env if "=" in variable)
        for name, line in (("cmd", entry.cmd), ("cmdStop", entry.cmdStop)):
            program = next(iter(words.split(line)), "")
            if program and not shutil.which(program, path=variables.get("PATH", os.environ.get("PATH"))):
                yield _at(f"There is no program {program} for the `{name}` of {id}.", ("models", id, name), loaded)


def _wants_a_gpu(model: Model) -> bool:
    """Whether it is to be loaded on one, or would be if it can be used."""
    device = model.options.get("device", "auto")
    return device == "cuda" or (device == "auto" and cuda.seems_present())


def _about_devices(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.options.items() if name in ("device", "device_index")}


def _device_of(model: Model, asked: str) -> dict[str, str]:
    """Where the engine's library would load the model. A library that cannot bear the question costs a process and no more."""
    command = [model.python or sys.executable, "-m", "eardrum.runner.options", "--device"]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=OPTIONS_S, check=False)  # noqa: S603
        answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        why = f"the process that asked its library died or did not answer ({type(error).__name__})"
        return {"device": "", "reason": "", "wrong": f"whether {model.engine} can use a GPU cannot be found out: {why}."}
    return answer


def _problems_of_options(models: Sequence[Model]) -> list[list[dict[str, Any]]]:
    """What the engines have against the options of each model."""
    if not models:
        return []
    asked = json.dumps([{"engine": model.engine, "options": model.options} for model in models])
    command = [sys.executable, "-m", "eardrum.runner.options"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=OPTIONS_S, check=False)  # noqa: S603
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return [[{"path": [], "message": f"The options cannot be checked: {why}"}] for _ in models]
    problems: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return problems


def _at(message: str, path: KeyPath, loaded: Loaded) -> Finding:
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
