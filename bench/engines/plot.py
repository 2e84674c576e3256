"""Throughput against clients and batch size, and errors against speed, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # before pyplot looks for a screen

from matplotlib import pyplot as plt

from bench.engines.report import ModelReport


def draw_reports(reports: Sequence[ModelReport], stem: Path) -> list[Path]:
    """Write the picture as PNG and SVG beside each other; the files."""
    figure, (clients, batches, errors) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for report in reports:
        _plot_by_clients(clients, report)
        _plot_by_batch(batches, report)
        (point,) = errors.plot([report.fastest], [100 * report.errors.served], "o")
        errors.annotate(
            report.model, (report.fastest, 100 * report.errors.served), (5, 5), textcoords="offset points", fontsize=8
        )
        point.set_label(report.model)
    _finish(clients, "clients at a time", "seconds of audio per second")
    _finish(batches, "batch size", "seconds of audio per second, most clients")
    _finish(errors, "seconds of audio per second, at best", "word error rate, %", legend=False)
    errors.margins(x=0.25)
    errors.set_ylim(0, max(1.0, *(120 * report.errors.served for report in reports)))
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _plot_by_clients(axes: Any, report: ModelReport) -> None:
    for batch in dict.fromkeys(one.batch for one in report.served.throughput):
        line = [one for one in report.served.throughput if one.batch == batch]
        label = f"{report.model}, batch {batch}"
        axes.plot([one.clients for one in line], [one.speed for one in line], "o-", label=label)


def _plot_by_batch(axes: Any, report: ModelReport) -> None:
    most = max(one.clients for one in report.served.throughput)
    line = sorted((one.batch, one.speed) for one in report.served.throughput if one.clients == most)
    axes.plot(*zip(*line, strict=True), "o-", label=report.model)


def _finish(axes: Any, x: str, y: str, *, legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if legend:
        axes.legend(fontsize=8)
