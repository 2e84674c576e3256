"""One utterance: its windows and what was heard in them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from eardrum.engines.base import Hearing, Window
from eardrum.errors import EardrumError
from eardrum.live import Committed, Failed, Final, Partial
from eardrum.runner.hallucination import judged
from eardrum.runner.live.agreement import Agreement
from eardrum.runner.placing import placed
from eardrum.text import bare, counterpart, glued, joined, units
from eardrum.types import Request, Segment, Word


@dataclass(slots=True, eq=False)
class Part:
    """A finished window of an utterance."""

    stable: str
    """What was promised of its text before it was finished."""
    segments: list[Segment] | None = None
    error: EardrumError | None = None

    @property
    def done(self) -> bool:
        """Whether it was decoded, or the model has failed on it."""
        return self.segments is not None or self.error is not None

    @property
    def text(self) -> str:
        """What was said in it."""
        return joined(segment.text for segment in self.segments or ())


@dataclass(slots=True, eq=False)
class Utterance:
    """What is said between two ends, in windows; the last one may still be open."""

    number: int
    request: Request
    start: float
    announced: bool
    """Whether `SpeechStarted` was told."""
    parts: list[Part] = field(default_factory=list)
    open: Agreement = field(default_factory=Agreement)
    """What is believed about the window that is still open."""
    words: list[Word] = field(default_factory=list)
    """Of the open window's last hypothesis, on the session's clock."""
    told_to: float | None = None
    """Where the last stable word of the open window ends, if that is known."""
    committed: Committed | None = None
    language: str = ""

    @property
    def complete(self) -> bool:
        """Whether all is known that its end needs."""
        return self.committed is not None and all(part.done for part in self.parts)

    def close_window(self) -> Part:
        """The open window is finished."""
        part = Part(self.open.stable)
        self.parts.append(part)
        self.open, self.words, self.told_to = Agreement(), [], None
        return part

    def hear(self, segments: list[Segment], at: float, told_to: float | None = None) -> None:
        """Take a hypothesis on the open window up to second `at`: on all of it, or on what follows the words up to `told_to`."""
        words = [word for segment in segments for word in segment.words]
        text = joined(segment.text for segment in segments)
        if told_to is not None:
            known = [word for word in self.words if word.end <= told_to]
            words = known + [word for word in words if (word.start + word.end) / 2 > told_to]
            text = joined(word.word for word in words)
        self.open.hear(text, at)
        self.words = words
        self.told_to = self._end_of_stable(text)

    def _end_of_stable(self, text: str) -> float | None:
        """Where the stable words end, if the engine has told each word of the text with its times."""
        if not self.open.stable or [unit.strip() for unit in units(text)] != [word.word.strip() for word in self.words]:
            return None
        return self.words[len(units(self.open.stable)) - 1].end if text.startswith(self.open.stable) else None

    def partial(self, end: float) -> Partial:
        """The text so far. All finished windows must have been decoded."""
        before = joined(part.text for part in self.parts)
        stable = glued(before, self.open.stable)
        tentative = glued(stable, self.open.tentative)[len(stable) :]
        words = [word for part in self.parts for segment in part.segments or () for word in segment.words]
        words += words_in(self.open.stable, self.words)
        return Partial(self.number, stable, tentative, self.start, end, tuple(words))

    def end(self) -> Final | Failed:
        """Its text, or why there is none."""
        assert self.committed is not None
        for part in self.parts:
            if part.error:
                return Failed(self.number, part.error)
        text = joined(part.text for part in self.parts)
        segments = tuple(segment for part in self.parts for segment in part.segments or ())
        return Final(self.number, self.committed.start, self.committed.end, text, segments, self.language)


def heard_in(window: Window, hearing: Hearing) -> list[Segment]:
    """The segments of a window on the session's clock, less those that nobody said."""
    segments = [segment for relative in hearing.segments for segment in placed(relative, window)]
    for segment in segments:
        segment.no_speech_prob = segment.no_speech_prob or 1 - window.speech
    kept = [judged(segment, window.speech).segment for segment in segments if segment.text.strip()]
    return [segment for segment in kept if segment]


def words_in(text: str, words: list[Word]) -> list[Word]:
    """The words of a text that is the beginning of what they say, however they are spelled."""
    left = len(bare(text))
    found = []
    for word in words:
        left -= len(bare(word.word))
        if left < 0:
            break
        found.append(word)
    return found


def kept(stable: str, segments: list[Segment], window: Window) -> list[Segment]:
    """The segments such that their text begins with what is stable: its words stand where the final hearing has others."""
    text = joined(segment.text for segment in segments)
    if text.startswith(stable):
        return segments
    if not segments:
        begin, end = window.speech_span
        return [Segment(window.clock(begin), window.clock(end, ending=True), stable)]
    said = [(unit, number) for number, segment in enumerate(segments) for unit in units(segment.text.strip())]
    promised = units(stable)
    count = counterpart(promised, [unit for unit, _ in said])
    owners = [said[max(min(at, count - 1), 0)][1] for at in range(len(promised))]
    fixed = []
    for number, segment in enumerate(segments):
        mine = [unit for unit, owner in zip(promised, owners, strict=True) if owner == number]
        rest = [unit for unit, owner in said[count:] if owner == number]
        changed = glued("".join(mine), "".join(rest)).strip()
        if changed:
            fixed.append(replace(segment, text=changed, words=_reworded(segment.words, units(changed))))
    return fixed


def _reworded(words: list[Word], said: list[str]) -> list[Word]:
    """Word times for a text that differs from the one they belong to: counted from the end, where both are the same."""
    if not words:
        return []
    late = [words[max(len(words) - len(said) + at, 0)] for at in range(len(said))]
    return [replace(word, word=unit) for word, unit in zip(late, said, strict=True)]
