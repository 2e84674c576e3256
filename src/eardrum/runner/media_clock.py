"""The clock of a recording: where its timestamps leave a gap there was no audio, and what follows is that much later.

Pure: times and lengths of frames go in, gaps come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

TOLERANCE_S = 0.1
"""Timestamps may be off by so much and mean nothing: the padding of encoders, milliseconds of containers, jitter of recorders."""

LEAP_S = 1.0
"""A leap further than this, or any leap back, counts only if the next frame confirms it: single timestamps may be damaged."""

LONE_S = 60.0
"""A leap before the very last frame, which nothing confirms, counts if it is no further than this."""


class Frame(Protocol):
    """A stretch of decoded samples, as PyAV has it."""

    @property
    def time(self) -> float | None:
        """Seconds, by the container's timestamp."""

    @property
    def samples(self) -> int:
        """Its length."""

    @property
    def sample_rate(self) -> int:
        """In Hz."""


F = TypeVar("F", bound=Frame)


@dataclass(frozen=True, slots=True)
class Gap:
    """There is no audio from `start` to `end`, in seconds since the recording began."""

    start: float
    end: float


class MediaClock(Generic[F]):
    """Follows the timestamps of one container.

    Timestamps that go back begin anew where the audio is: a recorder was started again, or files were joined. So do those that
    leave a gap which is not believed.
    """

    def __init__(self, origin: float | None, believes: Callable[[Gap], bool] = lambda _: True):
        self._origin = origin  # what the container's clock shows when the recording begins; None: whatever it shows first
        self._believes = believes
        self.at = 0.0
        """Seconds since the recording began, behind the last frame."""

    def follow(self, frames: Iterable[F]) -> Iterator[F | Gap]:
        """The frames in order, with the gaps between them."""
        held: F | None = None  # a frame at a leap that is not confirmed yet
        for frame in frames:
            if held is not None:
                yield from self._settle(held, frame)
                held = None
            late = self._lateness(frame)
            if abs(late) <= TOLERANCE_S:
                yield self._pass(frame)
            elif 0 < late <= LEAP_S:
                yield from self._leap(frame, late)
            else:
                held = frame
        if held is not None:
            late = self._lateness(held)
            yield from self._leap(held, late) if late <= LONE_S else iter((self._pass(held),))

    def _settle(self, held: F, following: F) -> Iterator[F | Gap]:
        """The frame at a leap, now that the next one is known: which of the two lines does that continue?"""
        late = self._lateness(held)
        length = held.samples / held.sample_rate
        if following.time is not None:
            assert held.time is not None
            assert self._origin is not None
            off_new = abs(following.time - held.time - length)
            off_old = abs(following.time - self._origin - self.at - length)
            if off_old < off_new:
                yield self._pass(held)
                return
        yield from self._leap(held, late)

    def _leap(self, frame: F, late: float) -> Iterator[F | Gap]:
        assert self._origin is not None
        if late > 0 and self._believes(gap := Gap(self.at, self.at + late)):
            yield gap
            self.at = gap.end
        else:
            self._origin += late
        yield self._pass(frame)

    def _pass(self, frame: F) -> F:
        self.at += frame.samples / frame.sample_rate
        return frame

    def _lateness(self, frame: F) -> float:
        """Seconds by which the frame comes later than where the audio is."""
        time = frame.time
        if time is None:
            return 0.0
        if self._origin is None:
            self._origin = time - self.at
        return time - self._origin - self.at
