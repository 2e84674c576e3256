"""Which of several audio tracks is heard: the one that was asked for, else the default one, else the first with sound.

Programs that record mark the first track as the default one, whether anything is on it or not. So as long as the track that comes
first in question is silent, the others are decoded beside it, and what has sound is held back until it is known who speaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.stream import Disposition

from eardrum.engines.base import Audio
from eardrum.errors import InvalidRequestError
from eardrum.runner.downmix import Downmix
from eardrum.runner.scratch import Scratch

SILENT = 5e-5
"""Peak of a track without sound, with the last bit of 16 for noise: -86 dBFS."""

HELD_S = 600.0
"""A track that is silent for so long while another has sound is passed over, even if it should have some later."""

LIVE_HELD_S = 3.0
"""The same in a live stream, where text is waited for."""

IN_MEMORY = 4 << 20
"""Bytes of sound held in memory; more goes to the disk."""

HELD_BACK = "to hold audio back until it is known which track has sound (say which with audio_track)"

JITTER_S = 0.01
"""Timestamps that are off by less count as none."""

ASIDE = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.karaoke
"""Tracks for some, which are not meant by default."""


class Tracks:
    """The audio tracks of one container. Frames of all of them go in, and those of one come out."""

    def __init__(self, streams: Sequence[AudioStream], wanted: int | None, *, held_s: float = HELD_S):
        """Begin, with the number that was asked for, counted from 1.

        Raises:
            InvalidRequestError: there is no such track.
        """
        check(wanted, len(streams))
        self.count = len(streams)
        self._held_s = held_s
        tracks = [Track(number, stream) for number, stream in enumerate(streams, 1)]
        self._left = [tracks[wanted - 1]] if wanted else sorted(tracks, key=_rank)
        """Those in question; the first with sound is meant."""
        self._decided = len(self._left) == 1

    @property
    def number(self) -> int:
        """The track that is heard as far as is known, counted from 1."""
        return self._left[0].number

    @property
    def stream(self) -> AudioStream:
        """The same, as FFmpeg has it."""
        return self._left[0].stream

    @property
    def streams(self) -> list[AudioStream]:
        """Whose packets are wanted."""
        return [track.stream for track in self._left]

    def has(self, stream: AudioStream) -> bool:
        """Whether its packets are wanted still."""
        return stream is self._left[0].stream or any(track.stream is stream for track in self._left[1:])

    def take(self, stream: AudioStream, frame: AudioFrame) -> Iterator[AudioFrame]:
        """The next frame of any track in, and out what is known to be meant.

        Raises:
            StorageFullError, DescriptorsError: there is no room to hold sound back.
        """
        if self._decided:
            if stream is self._left[0].stream:
                yield frame
            return
        at = next((at for at, track in enumerate(self._left) if track.stream is stream), None)
        if at is None:
            return
        track = self._left[at]
        if track.hold(frame):
            for other in self._left[at + 1 :]:
                other.close()
            del self._left[at + 1 :]
            if at == 0 or track.held_s > self._held_s:
                yield from self._decide(track)

    def finish(self) -> Iterator[AudioFrame]:
        """The end of all tracks: what was held back of the one that is meant."""
        if not self._decided:
            sounding = (track for track in self._left if track.held_s)
            yield from self._decide(next(sounding, next((track for track in self._left if track.has_frames), self._left[0])))

    def close(self) -> None:
        """Forget what is held back."""
        for track in self._left:
            track.close()

    def _decide(self, track: Track) -> Iterator[AudioFrame]:
        for other in self._left:
            if other is not track:
                other.close()
        self._left, self._decided = [track], True
        yield from track.release()


def check(wanted: int | None, count: int) -> None:
    """See that there is the track that was asked for.

    Raises:
        InvalidRequestError: there is not.
    """
    if wanted and wanted > count:
        there = f"{count} audio tracks, numbered 1 to {count}" if count > 1 else "one audio track"
        raise InvalidRequestError(f"The file has {there}: audio_track cannot be {wanted}.", param="audio_track")


@dataclass(slots=True)
class Stretch:
    """Frames of one rate that follow each other, as they are held: so many samples, from `pts` on if they are timed."""

    pts: int | None
    time_base: Fraction | None
    rate: int
    sound: bool
    samples: int = 0

    def goes_on(self, frame: AudioFrame, *, sound: bool) -> bool:
        """Whether the frame begins where this ends."""
        if (self.rate, self.sound, self.pts is None) != (frame.sample_rate, sound, frame.pts is None):
            return False
        if self.pts is None or frame.pts is None or not self.time_base:
            return True
        return abs(float((frame.pts - self.pts) * self.time_base) - self.samples / self.rate) < JITTER_S

    def frame(self, at: int, samples: Audio) -> AudioFrame:
        """Those samples of it that begin `at` so many, as a frame."""
        frame = AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = self.rate
        if self.pts is not None and self.time_base:
            frame.pts, frame.time_base = self.pts + round(at / self.rate / self.time_base), self.time_base
        return frame


class Track:
    """One track. While it is not known which one is meant, its silence is counted and its sound held back in mono."""

    def __init__(self, number: int, stream: AudioStream):
        self.number = number
        self.stream = stream
        self.held_s = 0.0
        """Seconds since its first sound."""
        self._stretches: list[Stretch] = []
        self._sound: Scratch | None = None
        self._mix: Downmix | None = None
        self._form = ("", "", 0)

    @property
    def has_frames(self) -> bool:
        """Whether anything of it could be decoded."""
        return bool(self._stretches)

    def hold(self, frame: AudioFrame) -> bool:
        """Hold a frame back. Returns whether the track has had sound.

        Raises:
            StorageFullError, DescriptorsError: there is no room.
        """
        samples = self._mono(frame)
        if self.held_s or np.abs(samples).max(initial=0.0) > SILENT:
            self.held_s += frame.samples / frame.sample_rate
            self._write(samples.tobytes())
        sound = self.held_s > 0
        if not (self._stretches and self._stretches[-1].goes_on(frame, sound=sound)):
            self._stretches.append(Stretch(frame.pts, frame.time_base, frame.sample_rate, sound))
        self._stretches[-1].samples += frame.samples
        return sound

    def release(self) -> Iterator[AudioFrame]:
        """All that was held, once."""
        if self._sound:
            self._sound.seek(0)
        for stretch in self._stretches:
            for at in range(0, stretch.samples, stretch.rate):
                count = min(stretch.rate, stretch.samples - at)
                if stretch.sound and self._sound:
                    yield stretch.frame(at, np.frombuffer(self._sound.read(4 * count), np.float32))
                else:
                    yield stretch.frame(at, np.zeros(count, np.float32))
        self.close()

    def close(self) -> None:
        """Forget what is held."""
        self._stretches = []
        if self._sound:
            self._sound.close()
            self._sound = None

    def _mono(self, frame: AudioFrame) -> Audio:
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if self._mix is None or form != self._form:
            self._mix, self._form = Downmix.of(frame), form
        return self._mix.samples(frame)

    def _write(self, data: bytes) -> None:
        self._sound = self._sound or Scratch(IN_MEMORY, HELD_BACK)
        self._sound.write(data)


def _rank(track: Track) -> tuple[bool, bool, int]:
    disposition = track.stream.disposition
    return not disposition & Disposition.default, bool(disposition & ASIDE), track.number
