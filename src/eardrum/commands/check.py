"""`check`: a look at a config without running it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer

from eardrum.commands import examine
from eardrum.commands.examine import Report
from eardrum.commands.options import Assignments, ConfigFolder
from eardrum.units import size_in_words

WIDTH = 110
INDENT = "    "


def check(
    files: Annotated[list[Path] | None, typer.Argument(help="YAML files with settings.", metavar="FILES...")] = None,
    config_folder: ConfigFolder = None,
    assignments: Assignments = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors do.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show what a config amounts to, and all that is wrong with it. The exit code is 1 if the server would not start."""
    report = examine.examined(files or (), config_folder, assignments or ())
    ok = not (report.errors or (strict and report.warnings))
    if as_json:
        print(json.dumps({"ok": ok, **asdict(report)}, indent=2, ensure_ascii=False))
    else:
        for line in lines(report):
            print(line)
    if not ok:
        raise typer.Exit(1)


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    for model in report.models:
        yield from _model(model)
        yield ""
    if report.pools:
        yield "Pools of memory"
        for pool in report.pools:
            yield from _wrapped(_pool(pool))
        yield ""
    for title, findings in (("Errors", report.errors), ("Warnings", report.warnings)):
        if findings:
            yield title
            yield from (f"{INDENT}{finding}" for finding in findings)
            yield ""
    counted = [_count(len(report.models), "model"), _count(len(report.errors), "error"), _count(len(report.warnings), "warning")]
    yield f"{', '.join(report.files)}: {', '.join(counted)}." if report.files else f"{', '.join(counted)}."


def _pool(pool: dict[str, Any]) -> str:
    taken = [f"{id} {size_in_words(bytes)}" for id, bytes in pool["models"].items()]
    return f"{pool['name']} has {size_in_words(pool['bytes'])}; models take {', '.join(taken) or 'nothing that is known'}"


def _model(model: dict[str, Any]) -> Iterator[str]:
    port = f", port {model['port']}" if "port" in model else ""
    ttl = f", unloaded after {model['ttl']:g} s" if model.get("ttl", 0) > 0 else ""
    yield f"{model['id']}  ({model['kind']}{port}{ttl})"
    for label, name in (("", "command"), ("stopped by ", "stop")):
        if name in model:
            yield from _wrapped(label + shlex.join(model[name]))
    for label, name in (("at", "proxy"), ("from", "source")):
        if name in model:
            yield f"{INDENT}{label} {model[name]}"
    for label, name in (("environment", "environment"), ("also called", "aliases")):
        if name in model:
            yield from _wrapped(f"{label}: {', '.join(model[name])}")
    yield from _wrapped(f"may be loaded beside: {', '.join(model['beside']) or 'nothing'}")


def _wrapped(text: str) -> Iterator[str]:
    yield from wrap(
        text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT * 2, break_long_words=False, break_on_hyphens=False
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


COMMANDS: dict[str, Callable[..., None]] = {"check": check}
