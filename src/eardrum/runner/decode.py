"""Decodes any audio or video to 16 kHz mono float32, as a stream and with bounded memory.

PyAV carries FFmpeg's libraries, so no ffmpeg binary is needed. The source is read as a pipe while it is
still being uploaded; only containers whose index lies behind the media wait for the last byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, cast

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.error import FFmpegError

from eardrum.engines.base import Audio
from eardrum.errors import AudioError
from eardrum.runner.downmix import Downmix
from eardrum.runner.inlet import Inlet
from eardrum.types import SAMPLE_RATE

GROUP = 80_000
"""Samples gathered before they are resampled: frame by frame costs 1.4 times as much."""

HEAD = 64 * 1024

LIVE_HEAD = 256
"""Bytes that tell the container of a live stream: nobody waits for more of it, as it cannot have its index at the end."""

CONTAINERS = (
    "aac,ac3,adts,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,gsm,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp2,mp3,mpeg,mpegts,ogg,rm,tta,voc,w64,wav,wv"
)
"""Formats worth opening. Playlists and other formats that make FFmpeg open further files stay out."""

AV_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}

LIVE_OPTIONS = {"probesize": "2048", "analyzeduration": "0", "fflags": "nobuffer"}
"""Begin to decode with the first bytes that allow it."""

EMPTY = "The file is empty (0 bytes)."

UNDECODABLE = (
    "The file cannot be decoded as audio. Send wav, mp3, m4a, flac, ogg, opus, webm or a video with sound; "
    "if it is one of these, it is damaged."
)


class Decoder:
    """One recording on its way in. Iterate once over its blocks of samples; `duration` is the header's claim."""

    def __init__(self, inlet: Inlet, *, raw_pcm: bool, max_seconds: float, live: bool = False):
        self._inlet = inlet
        self._live = live  # samples are wanted as soon as their bytes are here
        self._raw_pcm = raw_pcm
        self._limit = int(max_seconds * SAMPLE_RATE)
        self.duration: float | None = None
        """Seconds, as the container's header claims once it is open; None when it does not say."""
        self.samples = 0
        """Samples decoded so far."""

    def __iter__(self) -> Iterator[Audio]:
        """Blocks of samples of any length.

        Raises:
            AudioError: empty, undecodable, without sound, or longer than allowed.
        """
        for block in self._decode_pcm() if self._raw_pcm else self._decode_container():
            self.samples += len(block)
            if self.samples > self._limit:
                raise AudioError(
                    f"The audio is longer than {self._limit / SAMPLE_RATE:,.0f} s, the limit of this server: "
                    "send it in parts or raise limits.audio_seconds."
                )
            yield block

    def _decode_pcm(self) -> Iterator[Audio]:
        if not self._inlet.peek(1):
            raise AudioError(EMPTY)
        rest = b""
        while chunk := self._inlet.read(2 * GROUP):
            chunk = rest + chunk
            rest = chunk[len(chunk) & ~1 :]
            yield np.frombuffer(chunk[: len(chunk) & ~1], "<i2").astype(np.float32) / np.float32(32768)

    def _decode_container(self) -> Iterator[Audio]:
        head = self._inlet.peek(LIVE_HEAD if self._live else HEAD)
        if not head:
            raise AudioError(EMPTY)
        with ExitStack() as closing:
            source: IO[bytes] | Inlet = self._inlet
            if index_follows_media(head):
                source = closing.enter_context(self._inlet.to_file())
            try:
                options = AV_OPTIONS | LIVE_OPTIONS if self._live else AV_OPTIONS
                container = av.open(source, "r", options=options)
            except (FFmpegError, ValueError) as error:
                raise AudioError(UNDECODABLE) from error
            closing.callback(container.close)
            yield from self._resample(container)

    def _resample(self, container: InputContainer) -> Iterator[Audio]:
        if not container.streams.audio:
            raise AudioError("The file has no audio track.")
        stream = container.streams.audio[0]
        if container.duration and container.duration > 0:
            self.duration = container.duration / 1_000_000
        mix: Downmix | None = None
        resampler: AudioResampler | None = None
        for group in _grouped(_frames(container, stream), 1 if self._live else GROUP):
            if isinstance(group, Break):
                if resampler:
                    yield from _arrays(resampler.resample(None))
                mix = resampler = None
                continue
            if mix is None or resampler is None:
                mix, resampler = Downmix.of(group), AudioResampler("flt", "mono", SAMPLE_RATE)
            yield from _arrays(resampler.resample(mix.frame(group)))
        if resampler:
            yield from _arrays(resampler.resample(None))
        elif self.duration:
            raise AudioError(UNDECODABLE)  # the header promised sound and none came


class Break:
    """Marks a change of the sample format in mid-stream: what follows needs a fresh resampler."""


def index_follows_media(head: bytes) -> bool:
    """Whether this is an MP4 family file whose `moov` box comes after `mdat`, so that one must seek."""
    at = 0
    while at + 8 <= len(head):
        size, kind = int.from_bytes(head[at : at + 4]), head[at + 4 : at + 8]
        if at == 0 and kind not in (b"ftyp", b"wide", b"free", b"skip", b"mdat", b"moov"):
            return False
        if kind in (b"moov", b"mdat"):
            return kind == b"mdat"
        if size < 8:
            return False
        at += size
    return False


def _frames(container: InputContainer, stream: Any) -> Iterator[AudioFrame]:
    """Decoded frames; damaged packets are skipped, a file without a single good frame is refused."""
    decoded = damaged = 0
    try:
        for packet in container.demux(stream):
            try:
                frames = cast(list[AudioFrame], packet.decode())
            except FFmpegError:
                damaged += 1
                continue
            decoded += len(frames)
            yield from frames
    except FFmpegError:
        # The container breaks off: a truncated recording is worth what was in it.
        damaged += 1
    if damaged and not decoded:
        raise AudioError(UNDECODABLE)


def _grouped(frames: Iterator[AudioFrame], size: int) -> Iterator[AudioFrame | Break]:
    """Frames joined to groups of at least `size` samples, with a `Break` where the format changes."""
    for number, (_, run) in enumerate(itertools.groupby(frames, key=_format)):
        if number:
            yield Break()
        fifo = AudioFifo()
        for frame in run:
            frame.pts = None  # gaps and repeats in the timestamps are no reason to refuse the samples
            fifo.write(frame)
            if fifo.samples >= size and (group := fifo.read()):
                yield group
        if fifo.samples and (group := fifo.read()):
            yield group


def _format(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _arrays(frames: list[AudioFrame]) -> Iterator[Audio]:
    for frame in frames:
        yield cast(Audio, frame.to_ndarray()[0])
