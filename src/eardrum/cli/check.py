"""The command `check`: examines a config without running it.

The report lists every model with its command, the models that may be loaded with it, and all errors and warnings. It loads no
model. Engines check options and devices in a separate process, because they import what the gateway must not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer
from msgspec.structs import replace

from eardrum import config, tls
from eardrum.api.wyoming.discovery import ZeroconfAnnouncement
from eardrum.cli.options import AssignmentsOption, ConfigFolderOption
from eardrum.config import ConfigDiagnostic, LoadedConfig, Settings
from eardrum.config.diagnostics import KeyPath
from eardrum.config.macros import split_command
from eardrum.engines import cuda, registry
from eardrum.errors import HIDDEN, ConfigError, EardrumError, ModelNotFoundError, remove_logins
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model, ModelInventory
from eardrum.gateway.scheduler.policies import PolicyFactory, find_wrong_sizes
from eardrum.gateway.spool import check_spool_folder
from eardrum.redaction import is_secret, redact_command
from eardrum.units import format_size

WIDTH = 110
INDENT = "    "


def check(
    files: Annotated[list[Path] | None, typer.Argument(help="YAML files with settings.", metavar="FILES")] = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check a config and show its models, errors and warnings. The exit code is 1 if the server would not start."""
    report = build_report(files or (), config_folder, assignments or ())
    ok = not (report.errors or (strict and report.warnings))
    if as_json:
        print(json.dumps({"ok": ok, **asdict(report)}, indent=2, ensure_ascii=False))
    else:
        for line in render_report(report):
            print(line)
    if not ok:
        raise typer.Exit(1)


def render_report(report: ConfigReport) -> Iterator[str]:
    """Render the report as lines of text."""
    for model in report.models:
        yield from _render_model(model)
        yield ""
    if report.pools:
        yield "Pools of memory"
        for pool in report.pools:
            yield from _wrap_line(_render_pool(pool))
        yield ""
    for title, findings in (("Errors", report.errors), ("Warnings", report.warnings)):
        if findings:
            yield title
            yield from (f"{INDENT}{finding}" for finding in findings)
            yield ""
    counted = [
        _format_count(len(report.models), "model"),
        _format_count(len(report.errors), "error"),
        _format_count(len(report.warnings), "warning"),
    ]
    yield f"{', '.join(report.files)}: {', '.join(counted)}." if report.files else f"{', '.join(counted)}."


def _render_pool(pool: dict[str, Any]) -> str:
    taken = [f"{id} {format_size(bytes)}" for id, bytes in pool["models"].items()]
    return f"{pool['name']} has {format_size(pool['bytes'])}; models take {', '.join(taken) or 'an unknown part'}"


def _render_model(model: dict[str, Any]) -> Iterator[str]:
    port = f", port {model['port']}" if "port" in model else ""
    ttl = f", unloaded after {model['ttl']:g} s" if model.get("ttl", 0) > 0 else ""
    yield f"{model['id']}  ({model['kind']}{port}{ttl})"
    for label, name in (("", "command"), ("stopped by ", "stop")):
        if name in model:
            yield from _wrap_line(label + shlex.join(model[name]))
    for label, name in (("at", "proxy"), ("from", "source")):
        if name in model:
            yield f"{INDENT}{label} {model[name]}"
    for label, name in (("environment", "environment"), ("also called", "aliases")):
        if name in model:
            yield from _wrap_line(f"{label}: {', '.join(model[name])}")
    yield from _wrap_line(f"may be loaded with: {', '.join(model['beside']) or 'nothing'}")


def _wrap_line(text: str) -> Iterator[str]:
    yield from wrap(
        text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT * 2, break_long_words=False, break_on_hyphens=False
    )


def _format_count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


COMMANDS: dict[str, Callable[..., None]] = {"check": check}


OPTIONS_S = 60
"""Time limit for engines to check options: they import numpy, but none of their own libraries."""


@dataclass(slots=True)
class ConfigFinding:
    """An error or a warning, and its place in the config."""

    message: str
    file: str = ""
    line: int = 0
    setting: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" if place else self.message


@dataclass(slots=True)
class ConfigReport:
    """The result of checking a config. It holds no secrets, so it can be shown."""

    files: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    pools: list[dict[str, Any]] = field(default_factory=list)
    """Each has a name, its bytes, and the bytes that each model takes, where known."""
    errors: list[ConfigFinding] = field(default_factory=list)
    warnings: list[ConfigFinding] = field(default_factory=list)

    def get_sort_key(self, finding: ConfigFinding) -> tuple[int, int]:
        """Return a key that sorts by file and line, findings without a file last."""
        return (self.files.index(finding.file) if finding.file in self.files else len(self.files), finding.line)


def build_report(files: Sequence[Path], folder: Path | None, assignments: Sequence[str]) -> ConfigReport:
    """Read a config and check it as far as possible without loading a model. An error does not hide the rest."""
    loaded = config.examine_config(files, assignments, folder=folder)
    look = _ConfigExaminer(loaded)
    look.examine_all()
    for findings in (look.report.errors, look.report.warnings):
        findings.sort(key=look.report.get_sort_key)
    return look.report


class _ConfigExaminer:
    """Checks one config and fills `report`."""

    def __init__(self, loaded: LoadedConfig):
        self._loaded = loaded
        self._settings = loaded.settings
        self.report = ConfigReport(
            files=[str(file) for file in loaded.files],
            errors=[_build_finding(error) for error in loaded.errors],
            warnings=[_build_finding(warning) for warning in loaded.warnings],
        )

    def examine_all(self) -> None:
        """Run all checks."""
        self._check_machine()
        found = self._check_models()
        book = self._build_rulebook(found)
        for id, entry in self._settings.models.items():
            beside = [other for other in self._settings.models if other != id and book.policy.allows((id, other))]
            self.report.models.append(_describe_entry(id, entry, found.get(id), self._loaded) | {"beside": beside})
        for name, bytes in book.pools.items():
            taken = {id: round(need[name]) for id, need in book.needs.items() if name in need}
            self.report.pools.append({"name": name, "bytes": round(bytes), "models": taken})
        self.report.warnings += _find_missing_programs(self._loaded)
        self._check_options(found)
        catalog = self._check_names(found)
        default = [catalog.default] if catalog and catalog.default.id not in found else []
        self._check_devices([*found.values(), *default])

    def _check_machine(self) -> None:
        """Check folders, certificates, addresses and engines; settings that fail are left out of the later checks."""
        settings = self._settings
        self.report.warnings += [ConfigFinding(str(failed)) for failed in registry.list_broken()]
        self._record_failure(lambda: check_spool_folder(settings.spool_dir))
        self._record_failure(lambda: tls.create_server_context(settings.tls_certificate, settings.tls_key))
        wyoming = settings.wyoming
        if wyoming.supervisor and wyoming.is_enabled(settings.api_keys):
            from eardrum.api.wyoming.supervisor import SupervisorAnnouncement

            self._record_failure(lambda: SupervisorAnnouncement(wyoming.port))
        if wyoming.zeroconf and wyoming.is_enabled(settings.api_keys):
            with suppress(ValueError):  # a host name, whose address is known when the server listens
                self._record_failure(
                    lambda: ZeroconfAnnouncement(
                        wyoming.zeroconf, wyoming.find_host(settings.host, settings.api_keys), wyoming.port
                    )
                )
        for name, without in (("model_dir", None), ("default_engine", "")):
            alone = Settings().model_copy(update={name: getattr(settings, name)})
            if self._record_failure(partial(ModelInventory, alone)):
                self._settings = self._settings.model_copy(update={name: without})

    def _check_models(self) -> dict[str, Model]:
        """Build the config's models as the server does; those that fail become errors."""
        inventory = ModelInventory(self._keep_models(self._settings.models))
        found = {}
        for id, entry in self._settings.models.items():
            try:
                model = inventory.find_configured(id)
            except EardrumError as error:
                self._add_error(error.message, ("models", id))
                continue
            if model:
                model = model if model.is_external else replace(model, options=model.options | entry.options)
                found[id] = model
                self.report.warnings += [
                    _build_finding_at(message, ("models", id), self._loaded) for message in _find_unready(model)
                ]
        return found

    def _keep_models(self, models: Iterable[str]) -> Settings:
        """Return the settings with these models only, without the parts that are checked separately."""
        entries = {id: self._settings.models[id].model_copy(update={"fallback": ()}) for id in models}
        ours = {id: entry.model_copy(update={"options": {}}) for id, entry in entries.items() if not (entry.cmd or entry.proxy)}
        return self._settings.model_copy(update={"models": entries | ours})

    def _build_rulebook(self, found: Mapping[str, Model]) -> PolicyFactory:
        """Build the policy by which the server unloads models for others."""
        for path, message in list(find_wrong_sizes(self._settings)):
            self._add_error(message, path)
            self._settings = _remove_size(self._settings, path)
        book = PolicyFactory(self._settings)
        for id, model in found.items():
            book.add_model(replace(model, entry=self._settings.models[id]))
        return book

    def _check_options(self, found: Mapping[str, Model]) -> None:
        """Let the engines check options, in a separate process: they import libraries that the gateway must not."""
        ours = [model for model in found.values() if not model.is_external]
        for model, problems in zip(ours, _check_engine_options(ours), strict=True):
            for problem in problems:
                self._add_error(f"models.{model.id}: {problem['message']}", ("models", model.id, "options", *problem["path"]))

    def _check_devices(self, models: Iterable[Model]) -> None:
        """Check for each model meant for a GPU whether its engine's library can use one. Equal questions run once."""
        answers: dict[str, dict[str, str]] = {}
        for model in models:
            is_elsewhere = model.is_external or model.is_replicated or model.card.remote
            if is_elsewhere or model.needs_download or not model.is_runnable or not _wants_gpu(model):
                continue
            question = json.dumps({"engine": model.engine, "options": _select_device_options(model)}, sort_keys=True)
            answer = answers.get(f"{model.python} {question}") or probe_device(model.engine, question, model.python)
            answers[f"{model.python} {question}"] = answer
            path: KeyPath = ("models", model.id, "options", "device")
            path = path if path in self._loaded.locations else ("device",)
            if answer["wrong"]:
                self._add_error(f"{model.id}: {answer['wrong']}", path)
            elif answer["reason"]:
                self.report.warnings.append(
                    _build_finding_at(f"{model.id} would run on the CPU: {answer['reason']}", path, self._loaded)
                )

    def _check_names(self, found: Mapping[str, Model]) -> ModelCatalog | None:
        """Check the names that refer to models; returns the catalog of all models."""
        settings = self._keep_models(found)
        catalog = self._build_catalog(settings)
        if not catalog:
            return None
        for id in found:
            for position, name in enumerate(self._settings.models[id].fallback):
                if not self._is_configured(name):
                    self._check_doubt(partial(catalog.find_fallback_problem, id, name), ("models", id, "fallback", position))
        for position, name in enumerate(settings.hooks.on_startup.preload):
            if name in settings.selectors or self._is_configured(name):
                continue
            try:
                catalog.find_model(name)
            except ModelNotFoundError as error:
                path = ("hooks", "on_startup", "preload", position)
                self.report.warnings.append(_build_finding_at(f"{name} cannot be preloaded. {error.message}", path, self._loaded))
        return catalog

    def _build_catalog(self, settings: Settings) -> ModelCatalog | None:
        """Build the catalog, without the default model if that is wrong."""
        if self._is_configured(settings.default_model) and not any(
            settings.default_model in (id, *entry.aliases) for id, entry in settings.models.items()
        ):
            settings = settings.model_copy(update={"default_model": ""})  # its model is wrong, which is reported already
        for update in ({}, {"default_model": ""}, {"default_model": "", "default_engine": ""}):
            try:
                return ModelCatalog(settings.model_copy(update=update))
            except ConfigError as error:
                self.report.errors.append(_build_setting_finding(error.message, self._loaded))
        return None

    def _is_configured(self, name: str) -> bool:
        return any(name in (id, *entry.aliases) for id, entry in self._settings.models.items())

    def _check_doubt(self, look: Callable[[], str], path: KeyPath) -> None:
        try:
            if doubt := look():
                self.report.warnings.append(_build_finding_at(doubt, path, self._loaded))
        except ConfigError as error:
            self._add_error(error.message, path)

    def _record_failure(self, attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except ConfigError as error:
            self.report.errors.append(_build_setting_finding(error.message, self._loaded))
            return True
        return False

    def _add_error(self, message: str, path: KeyPath) -> None:
        self.report.errors.append(_build_finding_at(message, path, self._loaded))


def _remove_size(settings: Settings, path: KeyPath) -> Settings:
    """Return the settings without one size that cannot be parsed."""
    if path[0] == "memory":
        return settings.model_copy(update={"memory": {name: size for name, size in settings.memory.items() if name != path[1]}})
    id = str(path[1])
    models = settings.models | {id: settings.models[id].model_copy(update={"memory": ""})}
    return settings.model_copy(update={"models": models})


def _find_unready(model: Model) -> Iterator[str]:
    if model.is_external:
        return
    if not model.is_runnable:
        yield f"{model.id} cannot run yet. {model.card.install_hint_here}"
    if model.needs_download:
        yield f"{model.id} is not on this machine: run `{model.format_pull_command()}`."
    if (model.batch_size or 0) > model.card.capabilities.max_batch:
        most = model.card.capabilities.max_batch
        yield f"batch_size is {model.batch_size}, but {model.engine} decodes at most {most} windows at once."


def _describe_entry(id: str, entry: config.ModelSettings, model: Model | None, loaded: LoadedConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": id,
        "kind": model.engine if model else "unknown",
        "command": hide_secrets(split_command(entry.cmd)),
        "stop": hide_secrets(split_command(entry.cmd_stop)),
        "port": loaded.ports.get(id),
        "proxy": remove_logins(entry.proxy),
        "replicas": entry.replicas.summary if entry.replicas.runs_on_ray else list(entry.replicas.addresses),
        "source": str(model.source or "") if model else "",
        "environment": [variable.partition("=")[0] for variable in entry.env],
        "aliases": list(entry.aliases),
        "ttl": model.ttl if model else entry.ttl,
    }
    return {name: value for name, value in facts.items() if value not in ("", None, [])}


def hide_secrets(arguments: Sequence[str]) -> list[str]:
    """Replace the values of options whose name means a secret."""
    shown: list[str] = []
    secret_follows = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if secret_follows and not argument.startswith("-"):
            shown.append(HIDDEN)
        elif equals and value and is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact_command(argument))
        secret_follows = argument.startswith("-") and not equals and is_secret(name)
    return shown


def _find_missing_programs(loaded: LoadedConfig) -> Iterator[ConfigFinding]:
    for id, entry in loaded.settings.models.items():
        variables = dict(variable.split("=", 1) for variable in entry.env if "=" in variable)
        for name, line in (("cmd", entry.cmd), ("cmd_stop", entry.cmd_stop)):
            program = next(iter(split_command(line)), "")
            if program and not shutil.which(program, path=variables.get("PATH", os.environ.get("PATH"))):
                path: KeyPath = ("models", id, name)
                written = loaded.locations.get_name(path)
                yield _build_finding_at(
                    f"The program {program} in the `{written}` of {id} is not on this machine: install it, or check the path.",
                    path,
                    loaded,
                )


def _wants_gpu(model: Model) -> bool:
    """Whether the model is meant for a GPU, or may use the GPU of this machine."""
    device = model.options.get("device", "auto")
    return device == "cuda" or (device == "auto" and cuda.is_gpu_present())


def _select_device_options(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.options.items() if name in ("device", "device_index")}


def probe_device(engine: str, question: str, python: str = "") -> dict[str, str]:
    """Find the device on which the engine's library would load a model. A library that crashes ends only the process asked."""
    command = [python or sys.executable, "-m", "eardrum.runner.options", "--device"]
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=OPTIONS_S, check=False)  # noqa: S603
        answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        wrong = f"the process that checks whether {engine} can use its device failed or took too long ({type(error).__name__})."
        return {"device": "", "reason": "", "wrong": wrong}
    return answer


def _check_engine_options(models: Sequence[Model]) -> list[list[dict[str, Any]]]:
    """Return the engines' objections to the options of each model."""
    if not models:
        return []
    question = json.dumps([{"engine": model.engine, "options": model.options} for model in models])
    command = [sys.executable, "-m", "eardrum.runner.options"]
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=OPTIONS_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        reason = f"the process did not answer within {OPTIONS_S:g} s."
    else:
        if not done.returncode:
            problems: list[list[dict[str, Any]]] = json.loads(done.stdout)
            return problems
        reason = (done.stderr.strip().splitlines() or [f"the process ended with exit code {done.returncode}"])[-1]
    return [[{"path": [], "message": f"The options cannot be checked: {reason}"}] for _ in models]


def _build_finding_at(message: str, path: KeyPath, loaded: LoadedConfig) -> ConfigFinding:
    return _build_finding(loaded.locations.build_diagnostic(path, message))


def _build_setting_finding(message: str, loaded: LoadedConfig) -> ConfigFinding:
    """Build a finding from a message that begins with the name of the setting."""
    setting = re.split(r"[: ]", message)[0]
    for id in loaded.settings.models:
        if setting.startswith(f"models.{id}."):
            return _build_finding_at(message, ("models", id, setting.removeprefix(f"models.{id}.")), loaded)
    path = tuple(setting.split("."))
    return _build_finding_at(message, path, loaded) if loaded.locations.find(path) else ConfigFinding(message)


def _build_finding(remark: ConfigDiagnostic) -> ConfigFinding:
    place = remark.location
    return ConfigFinding(remark.message, place.file if place else "", place.line if place else 0, remark.path)
