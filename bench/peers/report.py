"""From what was measured to ratios, word errors and tables."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.peers.contenders import KINDS, OURS
from bench.peers.measuring import HeardText, PeerLog
from bench.peers.speech import SpeechSizes

Series = Mapping[int, float]
"""A value for each round."""

ALL = "all"


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A row of the tables. `targets` are the most that the ratio may be, by peer; ALL is each of them."""

    name: str
    what: str
    unit: str
    targets: Mapping[str, float] = field(default_factory=dict)

    def get_target(self, peer: str) -> float | None:
        """The most that Eardrum's share of this peer's value may be."""
        return self.targets.get(peer, self.targets.get(ALL))


BATCHED, PLAIN = "batched", "faster-whisper"

ROWS = (
    PeerRow("clips-cpu", "short recordings one by one, CPU", "s", {ALL: 0.70}),
    PeerRow("clip-p50", "a short recording alone, median latency", "s", {ALL: 0.90}),
    PeerRow("beside-p50", "the same beside two long files", "s", {BATCHED: 0.15, PLAIN: 0.35}),
    PeerRow("beside-files", "until those two files are done", "s"),
    PeerRow("eight-wall", "{at_once} at once, until the last answer", "s"),
    PeerRow("eight-cpu", "the same, CPU", "s"),
    PeerRow("joined-cpu", "joined prompts, CPU", "s", {BATCHED: 0.95}),
    PeerRow("joined-wall", "the same, wall", "s", {BATCHED: 0.95}),
    PeerRow("repeated-cpu", "prompts said four times in a row, CPU", "s", {BATCHED: 0.95}),
    PeerRow("repeated-wall", "the same, wall", "s", {BATCHED: 0.95}),
    PeerRow("shorter-cpu", "{shorter} of speech, CPU", "s", {BATCHED: 0.85}),
    PeerRow("shorter-wall", "the same, wall", "s", {BATCHED: 0.85}),
    PeerRow("longer-cpu", "{longer} of speech, CPU", "s", {BATCHED: 0.85}),
    PeerRow("longer-wall", "the same, wall", "s", {BATCHED: 0.85}),
    PeerRow("longer-first", "its first event", "s"),
    PeerRow("start", "process start to the first answer", "s", {ALL: 0.80}),
    PeerRow("start-script", "the same, against a script that ends", "s"),
    PeerRow("first-start", "the very first start, once, before Eardrum has timed the model", "s"),
    PeerRow("rest-clip", "memory at rest after the first clip", "MB", {ALL: 1.0}),
    PeerRow("joined-rest", "memory at rest after joined prompts", "MB", {ALL: 1.0}),
    PeerRow("joined-peak", "peak memory until then", "MB", {ALL: 0.60}),
    PeerRow("file-rest", "memory at rest after {longer} of speech", "MB", {ALL: 1.0}),
    PeerRow("file-peak", "peak memory until then", "MB", {ALL: 0.60}),
)


def compute_ratios(ours: Series, peers: Series) -> list[float]:
    """Ours as a share of the peer's, of each round that both finished."""
    return [ours[turn] / peers[turn] for turn in sorted(ours.keys() & peers.keys()) if peers[turn] > 0]


@dataclass(frozen=True, slots=True)
class ErrorComparison:
    """Word errors of ours and of a peer in the same files: how many, of how many words, and the peer's surplus of error rate."""

    words: int
    ours: int
    peer: int
    low: float
    """Of the difference ours less peer in percentage points, the lower end of what chance leaves open in 95 of 100 cases."""
    high: float

    @property
    def worse(self) -> bool:
        """Whether ours has more errors, beyond chance."""
        return self.low > 0


Counter = Callable[[str, str, str], tuple[int, int]]
"""From what was said, what was heard and the language to errors and words."""


def compare_errors(
    heard: Sequence[HeardText], peer: str, count: Counter, language: str | None = None, *, repeats: bool = False
) -> ErrorComparison | None:
    """Compare errors in the files that both heard, of one language or of all; in those that repeat prompts or the others.

    None if there are no such files.
    """
    texts = {(one.contender, one.file): one for one in heard if language in (None, one.language) and one.repeats == repeats}
    files = sorted({file for name, file in texts if name == OURS} & {file for name, file in texts if name == peer})
    counted = []
    for file in files:
        said, spoken = texts[OURS, file].said, texts[OURS, file].language
        ours, words = count(said, texts[OURS, file].heard, spoken)
        counted.append((words, ours, count(said, texts[peer, file].heard, spoken)[0]))
    if not sum(words for words, _, _ in counted):
        return None
    words, ours, theirs = (sum(column) for column in zip(*counted, strict=True))
    low, high = _resample(counted)
    return ErrorComparison(words, ours, theirs, low, high)


def _resample(counted: Sequence[tuple[int, int, int]], times: int = 1000) -> tuple[float, float]:
    """Draw as many files anew, again and again: the middle 95 % of the differences, in percentage points."""
    dice = random.Random(0)
    drawn = []
    for _ in range(times):
        some = dice.choices(counted, k=len(counted))
        drawn.append(100 * sum(ours - theirs for _, ours, theirs in some) / max(sum(words for words, _, _ in some), 1))
    drawn.sort()
    return drawn[int(0.025 * times)], drawn[int(0.975 * times)]


def format_report(log: PeerLog, peers: Sequence[str], count: Counter | None, sizes: SpeechSizes) -> str:
    """The tables: ratios, word errors, what was measured; and the notes below them."""
    named = {"shorter": _format_length(sizes.long_s[0]), "longer": _format_length(sizes.long_s[1]), "at_once": str(sizes.at_once)}
    rows = [row for row in ROWS if OURS in log.values.get(row.name, {})]
    parts = [
        "Eardrum ÷ peer, medians of the rounds (range). Below 1 Eardrum takes less. **Bold** is over its target.",
        _format_ratios(log, rows, peers, named),
        _format_errors(log, peers, count),
        "What was measured, medians.",
        _format_values(log, rows, [OURS, *peers], named),
        *_list_notes(log),
    ]
    return "\n\n".join(part for part in parts if part)


def _format_length(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds % 60 == 0 else f"{seconds:g} s"


def _format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_ratios(log: PeerLog, rows: Sequence[PeerRow], peers: Sequence[str], named: Mapping[str, str]) -> str:
    head = ["figure", *(KINDS[peer].label for peer in peers), "target", "met"]
    lines = []
    for row in rows:
        cells, met = [], []
        for peer in peers:
            ratios = compute_ratios(log.values[row.name][OURS], log.values[row.name].get(peer, {}))
            target = row.get_target(peer)
            over = bool(ratios) and target is not None and median(ratios) > target
            if ratios and target is not None:
                met.append(not over)
            cells.append(_format_ratio(ratios, over=over))
        if any(cells):
            verdict = "" if not met else "yes" if all(met) else "**no**"
            lines.append([row.what.format(**named), *cells, _format_targets(row), verdict])
    return _format_table(head, lines) if lines else ""


def _format_ratio(ratios: Sequence[float], *, over: bool) -> str:
    if not ratios:
        return ""
    value = f"**{median(ratios):.2f}**" if over else f"{median(ratios):.2f}"
    return value if len(ratios) == 1 else f"{value} ({min(ratios):.2f} to {max(ratios):.2f})"


def _format_targets(row: PeerRow) -> str:
    named = {ALL: "each", BATCHED: "batched", PLAIN: "faster-whisper"}
    return ", ".join(f"≤ {target:.2f} of {named[peer]}" for peer, target in row.targets.items())


def _format_values(log: PeerLog, rows: Sequence[PeerRow], names: Sequence[str], named: Mapping[str, str]) -> str:
    lines = []
    for row in rows:
        values = [list(log.values[row.name].get(name, {}).values()) for name in names]
        lines.append([row.what.format(**named), *(f"{median(some):.3g} {row.unit}" if some else "" for some in values)])
    return _format_table(["figure", *(KINDS[name].label for name in names)], lines) if lines else ""


def _format_errors(log: PeerLog, peers: Sequence[str], count: Counter | None) -> str:
    if count is None:
        return "Word errors were not counted: run `pip install -e '.[bench]'`."
    languages = sorted({one.language for one in log.heard if one.contender == OURS}, key=lambda one: (one != "en", one))
    lines = []
    for peer in peers:
        cells = [_format_comparison(compare_errors(log.heard, peer, count, language)) for language in languages]
        overall = compare_errors(log.heard, peer, count)
        cells.append(_format_comparison(compare_errors(log.heard, peer, count, repeats=True)))
        if overall:
            points = f"{100 * (overall.ours - overall.peer) / overall.words:+.2f} ({overall.low:+.2f} to {overall.high:+.2f})"
            lines.append(
                [KINDS[peer].label, *cells, _format_comparison(overall), points, "**worse**" if overall.worse else "no worse"]
            )
    if not lines:
        return ""
    said = (
        "Word errors in the same files: Eardrum's, the peer's, and how many words were said; the difference in percentage points "
        "with the range that chance leaves open (files drawn anew a thousand times)."
    )
    named = [language or "unknown" for language in languages]
    return f"{said}\n\n" + _format_table(["against", *named, "repeated (not in all)", "all", "difference", ""], lines)


def _format_comparison(found: ErrorComparison | None) -> str:
    if not found:
        return ""
    shares = (f"{errors} ({100 * errors / found.words:.1f} %)" for errors in (found.ours, found.peer))
    return f"{' : '.join(shares)} of {found.words}"


def _list_notes(log: PeerLog) -> list[str]:
    notes = []
    if log.others:
        loads = ", ".join(f"{figure} {median(cores):.2f} (at most {max(cores):.2f})" for figure, cores in log.others.items())
        notes.append(
            f"- Cores that other processes took meanwhile, median: {loads}. Beside more than a tenth, "
            "believe CPU and not the clock."
        )
    if log.words:
        totals: dict[str, list[float]] = {}
        for heard in log.words.values():
            if ours := heard.get(OURS):
                for name in heard.keys() - {OURS}:
                    totals.setdefault(name, []).append(ours / max(heard[name], 1))
        shares = ", ".join(f"{KINDS[name].label} {median(ratios):.2f}" for name, ratios in totals.items())
        if shares:
            notes.append(
                f"- Words in files of which nobody wrote down what is said, Eardrum ÷ peer: {shares}. "
                "Far from 1 somebody leaves out speech."
            )
    if log.seconds:
        notes.append(f"- Rounds took {', '.join(f'{seconds:.0f}' for seconds in log.seconds)} s.")
    notes += [f"- Failed: {failure}" for failure in log.failed]
    return ["\n".join(notes)] if notes else []


def build_json(log: PeerLog) -> dict[str, Any]:
    """Everything, the single rounds included."""
    return {
        "values": log.values,
        "ratios": {
            row: {name: compute_ratios(found[OURS], series) for name, series in found.items() if name != OURS}
            for row, found in log.values.items()
            if OURS in found
        },
        "heard": [[one.contender, one.file, one.language, one.said, one.heard] for one in log.heard],
        "words": log.words,
        "others": log.others,
        "round_seconds": log.seconds,
        "failed": log.failed,
    }
