"""Measure models on a folder of recordings: `python -m bench engines FOLDER --models a,b`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import ask_child, run_child
from bench.engines.folder import Recording, read_folder
from bench.engines.report import ErrorRates, ModelReport, format_tables
from bench.engines.served import ServedModel, measure_target
from bench.errors import BenchError
from eardrum import config
from eardrum.config import Settings
from eardrum.errors import EardrumError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model

RESULTS = Path(__file__).parent.parent / "results"


def main(words: Sequence[str]) -> None:
    """Measure, print, and write the table, the numbers and the picture. The exit code is 1 when a model could not be measured."""
    arguments = _parse_arguments(words)
    try:
        # Told now, not after the measuring.
        from bench.engines.errors_in_text import compute_word_error_rate  # noqa: PLC0415
        from bench.engines.plot import draw_reports  # noqa: PLC0415
    except ImportError as error:
        sys.exit(f"bench: {error.name} is missing: run `pip install -e '.[bench]'`.")
    try:
        settings = config.load_settings(arguments.config)
        models = [_find_model(settings, name) for name in arguments.models]
        recordings = read_folder(arguments.folder, arguments.language)[: 8 if arguments.quick else None]
    except (BenchError, EardrumError) as error:
        sys.exit(f"bench: {error}")
    reports, failed = [], []
    for model in models:
        print(f"{model.id} ...", file=sys.stderr, flush=True)
        try:
            target = ServedModel(model.id, {batch: _build_settings(settings, model, batch) for batch in arguments.batch})
            served = measure_target(target, recordings, arguments.clients, arguments.long_seconds)
            errors, notes = _measure_errors(model, recordings, served.texts, compute_word_error_rate)
            reports.append(ModelReport(model.id, model.engine, errors, served, notes))
        except Exception as error:  # noqa: BLE001 -- one that fails must not cost the results of the others
            failed.append(f"{model.id} could not be measured: {'; '.join([repr(error), *getattr(error, '__notes__', [])])}")
            print(failed[-1], file=sys.stderr, flush=True)
    machine = _describe_machine()
    length = f"{len(recordings)} recordings of {sum(r.seconds for r in recordings):.0f} s in all"
    text = "\n".join([format_tables(reports) if reports else "", *failed, f"{length}, on {machine}."])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / arguments.name
    stem.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    numbers = {"machine": machine, "recordings": length, "models": [report.to_json() for report in reports], "failed": failed}
    stem.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    pictures = draw_reports(reports, stem) if reports else []
    print(f"Written: {', '.join(str(path) for path in (stem.with_suffix('.md'), stem.with_suffix('.json'), *pictures))}")
    sys.exit(1 if failed else 0)


def _parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(prog="bench engines", description=__doc__)
    parser.add_argument("folder", type=Path, help="recordings with their texts: x.wav and x.txt, or references.tsv")
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=[""], help="names, by commas; else the default one"
    )
    parser.add_argument("--batch", type=numbers, default=[0], help="batch sizes for throughput; 0 is the runner's choice")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 8], help="how many send at a time")
    parser.add_argument("--config", type=Path, help="the server's config file, which may name models and remote ones")
    parser.add_argument("--language", default="", help="of recordings for which none is given")
    parser.add_argument(
        "--long-seconds", type=float, help="length of the files beside which clips are timed; 300, or 30 if quick"
    )
    parser.add_argument("--quick", action="store_true", help="eight recordings: does it run")
    parser.add_argument("--name", default="engines", help="of the files in bench/results")
    arguments = parser.parse_args(words)
    arguments.long_seconds = arguments.long_seconds or (30.0 if arguments.quick else 300.0)
    return arguments


def _find_model(settings: Settings, name: str) -> Model:
    model = ModelCatalog(settings).find_model(name)
    if model.needs_download:
        raise BenchError(f"{model.id} is not on this machine: run `eardrum pull {model.id}`. Fetching it is not to be timed.")
    return model


def _build_settings(settings: Settings, model: Model, batch: int) -> dict[str, Any]:
    """The user's settings with this one model and batch size; without the fallback, which would answer in its place."""
    entry = {"engine": model.engine, "options": model.options, "python": model.python, "batch_size": batch or model.batch_size}
    source = {"source": str(model.source)} if model.source else {}
    tree = settings.model_dump(mode="json", exclude_none=True, exclude={"host", "port", "default_engine"})
    return tree | {"models": {model.id: entry | source}, "default_model": model.id}


def _measure_errors(
    model: Model, recordings: Sequence[Recording], texts: Sequence[str], rate: Any
) -> tuple[ErrorRates, list[str]]:
    """Of the server, and of the engine alone where a recording fits its window, so that nobody has to cut."""
    overall = rate(recordings, texts)
    command = ["-m", "bench.engine_alone", "--engine", model.engine, "--source", str(model.source or "")]
    options = {"EARDRUM_RUNNER_OPTIONS": json.dumps(model.options)}
    try:
        with run_child(command, environment=options, pipes=True, python=model.python or sys.executable) as process:
            alone = [ask_child(process, f"{recording.path.resolve()}\t{recording.language}")["text"] for recording in recordings]
    except RuntimeError as error:
        return ErrorRates(overall), [f"the engine alone was not measured: {error}, {' '.join(getattr(error, '__notes__', []))}"]
    whole = [number for number, text in enumerate(alone) if text is not None]
    if not whole:
        return ErrorRates(overall), ["no recording fits one window, so the engine alone was not measured"]
    kept = [recordings[number] for number in whole]
    served = rate(kept, [texts[number] for number in whole])
    return ErrorRates(overall, len(whole), served, rate(kept, [alone[number] for number in whole])), []


def _describe_machine() -> str:
    gpu = ""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = ", " + subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip().replace(
            "\n", ", "
        )
    return f"{os.cpu_count()} cores ({platform.machine()}){gpu}"
