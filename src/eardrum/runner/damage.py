"""What of a recording could not be decoded, in sentences for whoever sent it."""

from __future__ import annotations

from eardrum.runner.media_clock import Gap

SHORTER_S = 0.5
"""Less than this is missing at the end of many a sound file."""

TAIL_S = 0.06
"""Sound that the last packet of a file may hold."""

SHORTER = 0.01
"""The same as a part of it: some headers only estimate."""


class Damage:
    """Collects what goes wrong while one recording is decoded. Times are seconds since it began."""

    def __init__(self) -> None:
        self._packets: list[float] = []
        self._gaps: list[Gap] = []
        self._told: list[str] = []
        self._broken_off = False

    def __bool__(self) -> bool:
        return bool(self._packets) or self._broken_off

    def packet(self, at: float) -> None:
        """A packet could not be decoded."""
        self._packets.append(at)

    def gap(self, gap: Gap) -> None:
        """The timestamps say that there is no audio."""
        self._gaps.append(gap)

    def doubted(self, gap: Gap) -> None:
        """The timestamps say so, and it cannot be."""
        self._told.append(
            f"At {gap.start:.1f} s the timestamps leap to {gap.end:,.0f} s, which is not believed: times after it count on "
            "as if there were no leap."
        )

    def broken_off(self, at: float) -> None:
        """The container cannot be read beyond this."""
        self._broken_off = True
        self._told.append(f"The file cannot be read beyond {at:.1f} s: what follows is damaged.")

    def cut_off(self, at: float) -> None:
        """The end is missing, and nobody knows how much."""
        self._breaks_off(f"at {at:.1f} s: its end is missing")

    def compare(self, seconds: float, claimed: float) -> None:
        """Compare what there was with what the header said. If it is all there, what follows was no sound."""
        self._packets = [at for at in self._packets if at < seconds or seconds < claimed - TAIL_S]
        if claimed - seconds > max(SHORTER_S, SHORTER * claimed):
            self._breaks_off(f"at {seconds:.1f} s: its header promises {claimed:.1f} s")

    def short_of_bytes(self, at: float, size: int, claimed: int) -> None:
        """There were fewer bytes than the header said."""
        if size < claimed - 1:  # padding to an even size is forgotten by many
            self._breaks_off(f"at {at:.1f} s: {size:,} of the {claimed:,} bytes came that its header promises")

    def _breaks_off(self, where: str) -> None:
        if not self._broken_off:
            self._broken_off = True
            self._told.append(f"The file breaks off {where}.")

    @property
    def warnings(self) -> tuple[str, ...]:
        """All of it, worded."""
        told = list(self._told)
        if self._gaps:
            first, total = self._gaps[0], sum(gap.end - gap.start for gap in self._gaps)
            more = f", and in {len(self._gaps) - 1:,} more places, {total:.1f} s in all" if len(self._gaps) > 1 else ""
            told.insert(0, f"There is no audio from {first.start:.1f} to {first.end:.1f} s by the file's own clock{more}.")
        if self._packets:
            count = len(self._packets)
            packets = "A packet" if count == 1 else f"{count:,} packets, the first"
            told.insert(0, f"{packets} at {self._packets[0]:.1f} s could not be decoded.")
        return tuple(told)
