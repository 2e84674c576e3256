"""What of a recording could not be decoded, in sentences for whoever sent it."""

from __future__ import annotations

from eardrum.runner.media_clock import Gap

SHORTER_S = 0.5
"""Less than this is missing at the end of many a sound file."""

MOST_TOLD = 8
"""Sentences that are kept: a chain of many files may be damaged in many places."""

TAIL_S = 0.06
"""Sound that the last packet of a file may hold."""

SHORTER = 0.01
"""The same as a part of it: some headers only estimate."""


class Damage:
    """Collects what goes wrong while one recording is decoded. Times are seconds since it began."""

    def __init__(self) -> None:
        self._packets = 0
        self._first = self._last = 0.0  # where packets were lost
        self._in_row = 0  # of those that were lost at the last of these places
        self._gaps = 0
        self._gap = Gap(0.0, 0.0)  # the first one
        self._missing = 0.0
        self._told: list[str] = []
        self._untold = 0
        self._broken_off = False

    def __bool__(self) -> bool:
        return self._packets > 0 or self._broken_off

    def packet(self, at: float) -> None:
        """A packet could not be decoded."""
        self._first = self._first if self._packets else at
        self._in_row = self._in_row + 1 if at == self._last else 1
        self._last = at
        self._packets += 1

    def gap(self, gap: Gap) -> None:
        """The timestamps say that there is no audio."""
        self._gap = self._gap if self._gaps else gap
        self._gaps += 1
        self._missing += gap.end - gap.start

    def doubted(self, gap: Gap) -> None:
        """The timestamps say so, and it cannot be."""
        self._tell(
            f"At {gap.start:.1f} s the timestamps leap to {gap.end:,.0f} s, which is not believed: times after it count on "
            "as if there were no leap."
        )

    def broken_off(self, at: float) -> None:
        """The container cannot be read beyond this."""
        self._broken_off = True
        self._tell(f"The file cannot be read beyond {at:.1f} s: what follows is damaged.")

    def pages_lost(self, count: int) -> None:
        """Parts of an Ogg file are missing."""
        self._tell(
            "A page of the file is missing or damaged." if count == 1 else f"{count:,} pages of the file are missing or damaged."
        )

    def cut_off(self, at: float) -> None:
        """The end is missing, and nobody knows how much."""
        self._breaks_off(f"at {at:.1f} s: its end is missing")

    def compare(self, seconds: float, claimed: float) -> None:
        """Compare what there was with what the header said. If it is all there, what follows was no sound."""
        if self._packets and self._last >= seconds and seconds >= claimed - TAIL_S:
            self._packets -= self._in_row
        if claimed - seconds > max(SHORTER_S, SHORTER * claimed):
            self._breaks_off(f"at {seconds:.1f} s: its header promises {claimed:.1f} s")

    def short_of_bytes(self, at: float, size: int, claimed: int) -> None:
        """There were fewer bytes than the header said."""
        if size < claimed - 1:  # padding to an even size is forgotten by many
            self._breaks_off(f"at {at:.1f} s: {size:,} of the {claimed:,} bytes came that its header promises")

    def _breaks_off(self, where: str) -> None:
        if not self._broken_off:
            self._broken_off = True
            self._tell(f"The file breaks off {where}.")

    def _tell(self, sentence: str) -> None:
        if len(self._told) < MOST_TOLD:
            self._told.append(sentence)
        else:
            self._untold += 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """All of it, worded."""
        told = list(self._told)
        if self._untold:
            told.append(f"And so on, {self._untold:,} more times.")
        if self._gaps:
            more = f", and in {self._gaps - 1:,} more places, {self._missing:.1f} s in all" if self._gaps > 1 else ""
            told.insert(
                0, f"There is no audio from {self._gap.start:.1f} to {self._gap.end:.1f} s by the file's own clock{more}."
            )
        if self._packets:
            packets = "A packet" if self._packets == 1 else f"{self._packets:,} packets, the first"
            told.insert(0, f"{packets} at {self._first:.1f} s could not be decoded.")
        return tuple(told)
