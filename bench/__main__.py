"""Runs the benchmarks: `python -m bench [names...] [--quick]`. The table goes to stdout and into bench/results/.

`python -m bench engines FOLDER --models a,b` measures models of one's own; see `--help` behind `engines`.
`python -m bench peers` measures this server against others on real weights; see `--help` behind `peers`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from bench.figure import BenchFigure, format_table

NAMES = (
    *("idle", "front_end", "overhead", "first_segment", "hangup", "clips", "memory"),
    *("live", "live_crowd", "health", "speech", "speakers"),
    *("batching", "whisper_window", "whisper_memory", "whisper_clips", "mixed_eight", "unload", "swaps", "proxy", "keys"),
)
ONLY_NAMED = ("soak", "gpu", "scale", "libraries")
"""Measured when they are named, and not as part of everything: half an hour; a machine with an NVIDIA GPU; a quarter of an hour;
real weights of Whisper base."""

HELP = f"what to measure: {', '.join(NAMES)}; by default all of these. Only if named: {', '.join(ONLY_NAMED)}"

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure what was named, `NAMES` by default. The exit code is 1 when something could not be measured."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    if sys.argv[1:2] in (["engines"], ["peers"]):
        importlib.import_module(f"bench.{sys.argv[1]}.command").main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=HELP)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: does it run, not what does it say")
    arguments = parser.parse_args()
    known = (*NAMES, *ONLY_NAMED)
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    figures: list[BenchFigure] = []
    failed: list[str] = []
    text = ""
    for name in arguments.names or NAMES:
        try:
            figures += _measure_named(name, arguments.quick)
        except Exception as error:  # noqa: BLE001 -- one that fails must not cost the results of the others
            failed.append(f"{name} could not be measured: {'; '.join([repr(error), *getattr(error, '__notes__', [])])}")
            print(failed[-1], file=sys.stderr, flush=True)
        text = _write_results(figures, failed, quick=arguments.quick, names=arguments.names)
    print(text)
    sys.exit(1 if failed else 0)


def _leave(number: int, _: object) -> None:
    """Unwind, so that no process or file is left; a second signal must not interrupt that."""
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)
    sys.exit(128 + number)


def _measure_named(name: str, quick: bool) -> list[BenchFigure]:
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    began = time.monotonic()
    figures: list[BenchFigure] = importlib.import_module(f"bench.{name}").measure(quick)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return figures


def _write_results(figures: list[BenchFigure], failed: list[str], *, quick: bool, names: list[str]) -> str:
    machine = {
        "cores": os.cpu_count(),
        "processor": next(_read_processor(), platform.machine()),
        "python": platform.python_version(),
        **{package: version(package) for package in ("eardrum", "onnxruntime", "av", "faster-whisper")},
        "load_average": os.getloadavg()[0],
    }
    kind = "a quick run: sizes too small to mean much" if quick else "a full run"
    text = "\n".join([format_table(figures), *failed, f"Seen on {machine['cores']} cores ({machine['processor']}), {kind}."])
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / "-".join(["quick" if quick else "full", *names])
    stem.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    report = {"quick": quick, "machine": machine, "figures": [figure.to_json() for figure in figures], "failed": failed}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return text


def _read_processor() -> Iterator[str]:
    information = Path("/proc/cpuinfo")
    for line in information.read_text(encoding="utf-8").splitlines() if information.exists() else ():
        if line.startswith("model name"):
            yield line.partition(":")[2].strip()


if __name__ == "__main__":
    main()
