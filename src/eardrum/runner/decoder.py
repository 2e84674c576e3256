"""Decodes any audio or video to 16 kHz mono float32, as a stream and with bounded memory.

PyAV carries FFmpeg's libraries, so no ffmpeg binary is needed. The source is read as a pipe while it is still being uploaded.
Containers that cannot be read as a pipe (an index behind the media, for example) wait for the last byte: the bytes read before
the first sample are kept, and read again as a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import cast

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from eardrum.engines.base import Audio
from eardrum.errors import AudioError
from eardrum.runner import tracks
from eardrum.runner.byte_pipe import BytePipe, ByteSource, ReplayableStream, ScratchFile
from eardrum.runner.integrity import DamageReport, Gap, MediaClock, read_claimed_bytes, read_claimed_seconds
from eardrum.runner.ogg import CAPTURE_PATTERN, OggChain
from eardrum.runner.tracks import MAX_HELD_S, MAX_LIVE_HELD_S, MonoDownmix, TrackSelector
from eardrum.transcription import SAMPLE_RATE, SIGNATURE_BYTES, has_container_signature

GROUP_SAMPLES = 80_000
"""Samples gathered before they are resampled: frame by frame costs 1.4 times as much."""

MAX_GROUP_VALUES, MAX_GROUP_S = 16 * GROUP_SAMPLES, 60.0
"""No group has more samples, those of all channels counted, nor lasts longer: what is mixed and resampled takes a few MB then."""

MAX_FRAME_VALUES = 1 << 21
"""The same for a frame. Recorders write some thousand; a file of a hundred MB may be a single one."""

MIN_RATE, MAX_RATE = 1_000, 1_000_000
"""Rates in Hz. Nothing is understood below, and a header of one Hz makes days of a few kB."""

INITIAL_BYTES = 64 * 1024
"""Bytes that are waited for before a file is decoded: most short clips are here as a whole then, which makes them cheaper."""

MAX_FAILURES = 8
"""Errors in a row after which a container counts as truncated."""

SILENT_GROUP = np.zeros(GROUP_SAMPLES, np.float32)

PROBE_BYTES = 1 << 20
"""Bytes after which FFmpeg gives up if no demuxer recognises the format."""

SEEK_SIGNATURES = (b"caff", b"FORM")
"""How containers begin that FFmpeg refuses at once, without reading to the end, where it has to seek in them."""

MP3_HEAD_BYTES = 1 << 20
"""Bytes in which the header of an MP3 is looked for, behind its pictures."""

MAX_LIVE_GAP_S = 3600.0
"""Longest gap in the timestamps of a live stream that is filled with silence: decoding that much takes a second."""

MAX_QUIET_GAP_S = 0.15
CODEC_QUIET_GAPS_S = {"opus": 0.5, "libopus": 0.5, "libspeex": 0.5}
"""Gaps up to this are no loss: recorders drift, and some codecs send little or nothing in silence."""

HEAD_BYTES = 64
"""Bytes at the start of other files that hold their length."""

ZERO_BASED_FORMATS = ("matroska", "mov", "flv", "ogg", "asf")
"""Containers whose timestamps count from the beginning of the recording, unless it was cut out of a longer one."""

MAX_START_S = 60.0
"""Timestamps that begin later than this count from somewhere else."""

MAX_VIDEO_DELAY_S = 1.0
"""Beside pictures timestamps may begin later than at 0 because these are not shown in the order in which they are stored."""

UNTIMED_FORMATS = ("avi",)
"""Containers whose timestamps are the number of packets, empty ones included or not."""

CONTAINERS = (
    "aac,ac3,adts,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dts,dtshd,eac3,flac,flv,gsm,iff,ircam,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp2,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,qcp,rm,sox,tak,truehd,tta,voc,w64,wav,wtv,wv"
)
"""Formats worth opening. Playlists and other formats that make FFmpeg open further files stay out."""

AV_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}

LIVE_OPTIONS = {"probesize": "2048", "analyzeduration": "0"}
"""Begin to decode with the first bytes that allow it. (`fflags=nobuffer` would drop those that were looked at.)"""

UNSAFE = {"mpc7": "Musepack 7", "adpcm_adx": "ADX", "apac": "APAC"}
"""Decoders of FFmpeg's that are known to go past their samples, and of what: CVE-2026-125171, CVE-2026-64835, CVE-2026-125267."""

EMPTY_MESSAGE = "The file is empty (0 bytes)."

UNDECODABLE_MESSAGE = (
    "The file cannot be decoded as audio. Send wav, mp3, m4a, flac, ogg, opus, webm or a video with sound; "
    "if it is one of these, it is damaged."
)


class AudioDecoder:
    """One recording on its way in. Iterate once over its blocks of samples; `duration` is the header's claim."""

    def __init__(self, inlet: BytePipe, *, raw_pcm: bool, max_seconds: float, live: bool = False, audio_track: int | None = None):
        self._pipe = inlet
        self._wanted = audio_track
        self._live = live  # give samples as soon as their bytes have arrived
        self._raw_pcm = raw_pcm
        self._limit = int(max_seconds * SAMPLE_RATE)
        self.duration: float | None = None
        """Length in seconds according to the container's header, once it is open; None if the header has none."""
        self.samples = 0
        """Samples decoded so far, with those of gaps."""
        self.audio_track, self.audio_tracks = 1, 1
        """The decoded audio track, counted from 1, and the number of tracks; known with the first samples."""
        self._damage = DamageReport()
        self._is_too_long = False
        self._head = b""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Descriptions of the audio that could not be decoded so far."""
        return self._damage.warnings

    def __iter__(self) -> Iterator[Audio]:
        """Blocks of samples of any length.

        Raises:
            AudioError: empty, undecodable, without sound, or longer than allowed.
            InvalidRequestError: there is no such audio track.
            StorageFullError: the audio has to be read from a disk that is full.
        """
        for block in self._decode_pcm() if self._is_headerless() else self._decode_containers():
            self._check_length(len(block))
            self.samples += len(block)
            yield block

    def _check_length(self, more: int) -> None:
        """See that there may be so many more samples."""
        if self.samples + more > self._limit:
            self._is_too_long = True
            raise AudioError(
                f"The audio is longer than {self._limit / SAMPLE_RATE:,.0f} s, the limit of this server: "
                "send it in parts or raise limits.audio_duration."
            )

    @property
    def _position_s(self) -> float:
        """Seconds that came out so far."""
        return self.samples / SAMPLE_RATE

    def _is_headerless(self) -> bool:
        """Whether the audio is raw samples. Clients declare containers as raw, too, which would be decoded as noise."""
        return self._raw_pcm and not has_container_signature(self._pipe.peek(SIGNATURE_BYTES))

    def _decode_pcm(self) -> Iterator[Audio]:
        tracks.check_track(self._wanted, 1)
        if not self._pipe.peek(1):
            raise AudioError(EMPTY_MESSAGE)
        rest = b""
        while chunk := self._pipe.read(2 * GROUP_SAMPLES):
            chunk = rest + chunk
            rest = chunk[len(chunk) & ~1 :]
            yield np.frombuffer(chunk[: len(chunk) & ~1], "<i2").astype(np.float32) / np.float32(32768)

    def _decode_containers(self) -> Iterator[Audio]:
        head = self._pipe.peek(len(CAPTURE_PATTERN) if self._live else INITIAL_BYTES)
        if not head:
            raise AudioError(EMPTY_MESSAGE)
        if head.startswith(CAPTURE_PATTERN):
            yield from self._decode_chain(OggChain(self._pipe))
        else:
            yield from self._decode_container(self._pipe)

    def _decode_chain(self, links: OggChain) -> Iterator[Audio]:
        """One Ogg file after the other. Of several those that cannot be decoded cost only themselves."""
        failure: AudioError | None = None
        while True:
            try:
                yield from self._decode_container(links)
            except AudioError as error:
                if self._is_too_long or (self._live and not self.samples):
                    raise
                failure = error
                self._damage.add_unreadable_rest(self._position_s)
            if not links.advance():
                break
        if failure and not self.samples:
            raise failure
        if links.lost_pages:
            self._damage.add_lost_pages(links.lost_pages)
        if links.is_cut_off:
            self._damage.add_missing_end(self._position_s)

    def _decode_container(self, source: ByteSource) -> Iterator[Audio]:
        with ExitStack() as closing:
            kept = ReplayableStream(source)
            closing.callback(kept.close)
            try:
                yield from self._decode_file(kept, kept)
            except SeekNeededError:
                self._damage = DamageReport()
                self._head = kept.read_head(HEAD_BYTES)
                yield from self._decode_file(kept.to_file(), kept)
            except AudioError as error:
                if kept.failure:
                    raise kept.failure from error
                raise

    def _decode_file(self, file: ScratchFile | ReplayableStream, kept: ReplayableStream) -> Iterator[Audio]:
        """Samples of a container that is read as a pipe (`kept` itself) or as a file.

        Raises:
            SeekNeededError: it gives no samples as a pipe, and everything is still kept.
        """
        piped = file is kept
        try:
            container = av.open(file, "r", options=AV_OPTIONS | LIVE_OPTIONS if self._live and piped else AV_OPTIONS)
        except (FFmpegError, ValueError) as error:
            if piped and self._is_worth_seeking(kept):
                raise SeekNeededError from error
            raise AudioError(UNDECODABLE_MESSAGE) from error
        with container, ExitStack() as closing:
            if not container.streams.audio:
                raise AudioError("The file has no audio track.")
            for stream in container.streams.audio:
                if kind := UNSAFE.get(stream.codec_context.name):
                    raise AudioError(f"The sound is {kind}, which is not decoded for safety: send flac, mp3, ogg or wav.")
                stream.codec_context.options = {"max_samples": str(MAX_FRAME_VALUES)}
            choice = TrackSelector(container.streams.audio, self._wanted, held_s=MAX_LIVE_HELD_S if self._live else MAX_HELD_S)
            closing.callback(choice.close)
            if container.duration and container.duration > 0:
                self.duration = container.duration / 1_000_000
            begin = self.samples
            rest = CODEC_QUIET_GAPS_S.get(choice.stream.codec_context.name, MAX_QUIET_GAP_S)
            clock = MediaClock[AudioFrame](_find_origin(container), partial(self._is_gap_plausible, begin / SAMPLE_RATE, rest))
            frames = self._decode_frames(container, choice, kept, partial(_compute_time, clock, begin), piped=piped)
            for samples in self._resample(clock.insert_gaps(frames), begin):
                self.audio_track, self.audio_tracks = choice.number, choice.count
                yield samples
            if self.samples == begin and self.duration:
                raise AudioError(UNDECODABLE_MESSAGE)  # the header promised sound and none came
            self._check_completeness(container, choice.stream, kept, begin, clock.position)

    def _is_worth_seeking(self, kept: ReplayableStream) -> bool:
        """Whether a demuxer recognised the format, or the upload is complete; otherwise the rest is not read."""
        if self._live:
            return kept.is_at_end or kept.read_head(4) in SEEK_SIGNATURES
        return kept.is_at_end or kept.size < PROBE_BYTES

    def _is_gap_plausible(self, begin: float, rest: float, gap: Gap) -> bool:
        """Whether a container that began there can leave such a gap. Gaps longer than a `rest` of its codec are reported."""
        plausible = begin + gap.end <= self._limit / SAMPLE_RATE and not (self._live and gap.end - gap.start > MAX_LIVE_GAP_S)
        gap = Gap(begin + gap.start, begin + gap.end)
        if not plausible:
            self._damage.add_doubtful_leap(gap)
        elif gap.start and gap.end - gap.start > rest:
            self._damage.add_gap(gap)
        return plausible

    def _decode_frames(
        self, container: InputContainer, choice: TrackSelector, kept: ReplayableStream, now: Callable[[], float], *, piped: bool
    ) -> Iterator[AudioFrame]:
        """Decoded frames; damaged packets are skipped, a file without a single good frame is refused."""
        decoded = False
        timed = not container.format.name.startswith(UNTIMED_FORMATS)
        for packet in self._read_packets(container, choice, now):
            try:
                frames = packet.decode()
            except FFmpegError:
                if packet.stream is choice.stream:
                    self._damage.add_lost_packet(now())
                continue
            if frames and not decoded:
                decoded = True
                if piped:
                    self._head = kept.read_head(MP3_HEAD_BYTES if container.format.name == "mp3" else HEAD_BYTES)
                    kept.discard()
            for frame in frames:
                _check_rate(frame.sample_rate)
                if not timed:
                    frame.pts = None
                yield from choice.select_frames(packet.stream, frame)
        yield from choice.flush()
        if not decoded and piped:
            raise SeekNeededError
        if not decoded and self._damage:
            raise AudioError(UNDECODABLE_MESSAGE)

    def _read_packets(
        self, container: InputContainer, choice: TrackSelector, now: Callable[[], float]
    ) -> Iterator[Packet[AudioStream]]:
        """Yield packets up to the end, or to the damage: the intact part of a truncated recording is transcribed."""
        failures = 0
        while True:
            try:
                for packet in cast("Iterator[Packet[AudioStream]]", container.demux(choice.streams)):
                    failures = 0
                    if choice.has_stream(packet.stream):
                        yield packet
            except FFmpegError:
                failures += 1  # most demuxers continue behind what they do not understand
                if failures == 1:
                    self._damage.add_lost_packet(now())
                if failures == MAX_FAILURES:
                    self._damage.add_unreadable_rest(now())
                    return
            else:
                return

    def _resample(self, timed: Iterator[AudioFrame | Gap], begin: int) -> Iterator[Audio]:
        """To 16 kHz mono, with silence for gaps in the clock of a container that begins at sample `begin`."""
        mix: MonoDownmix | None = None
        resampler: AudioResampler | None = None
        for group in _group_frames(timed, 1 if self._live else GROUP_SAMPLES):
            if isinstance(group, ResamplerBreak):
                if resampler:
                    yield from _to_arrays(resampler.resample(None))
                mix = resampler = None
                # Counted from the samples that are out, so that what resampling rounds off does not add up.
                while group.until and (missing := begin + round(group.until * SAMPLE_RATE) - self.samples) > 0:
                    yield SILENT_GROUP[:missing]
                continue
            if mix is None or resampler is None:
                mix, resampler = MonoDownmix.of(group), AudioResampler("flt", "mono", SAMPLE_RATE)
            self._check_length(group.samples * SAMPLE_RATE // group.sample_rate)
            yield from _to_arrays(resampler.resample(mix.mix_frame(group)))
        if resampler:
            yield from _to_arrays(resampler.resample(None))

    def _check_completeness(
        self, container: InputContainer, stream: AudioStream, kept: ReplayableStream, begin: int, seconds: float
    ) -> None:
        """Compare the decoded length with the header's."""
        if claimed := _read_claimed_duration(container, stream) or read_claimed_seconds(self._head):
            self._damage.check_duration(begin / SAMPLE_RATE + seconds, begin / SAMPLE_RATE + claimed)
        elif claimed_size := read_claimed_bytes(self._head):
            kept.drain(claimed_size)  # what stands behind the audio counts
            self._damage.check_size(begin / SAMPLE_RATE + seconds, kept.size, claimed_size)


class SeekNeededError(Exception):
    """The container has no audio when read as a pipe; as a seekable file it may have some."""


class ResamplerBreak:
    """The next frames need a fresh resampler: the sample format changes, or there is no audio until so many seconds."""

    def __init__(self, until: float | None = None):
        self.until = until


def _check_rate(rate: int) -> None:
    """Check that audio of this rate can be decoded.

    Raises:
        AudioError: it cannot, or the header lies.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"The audio's header states {rate:,} samples a second, which is out of range: send {MIN_RATE:,} to {MAX_RATE:,} Hz."
        )


def _compute_time(clock: MediaClock[AudioFrame], begin: int) -> float:
    return begin / SAMPLE_RATE + clock.position


def _find_origin(container: InputContainer) -> float | None:
    """The timestamp at which the recording begins, in seconds; None if the container has none."""
    if container.start_time is None:
        return None
    start = container.start_time / 1_000_000
    if not container.format.name.startswith(ZERO_BASED_FORMATS) or start > MAX_START_S:
        return start
    return start if container.streams.video and start < MAX_VIDEO_DELAY_S else 0.0


def _read_claimed_duration(container: InputContainer, stream: AudioStream) -> float | None:
    """Return the audio's length according to the header, in seconds; None if the header gives only the length with video."""
    if container.format.name.startswith(UNTIMED_FORMATS):
        return None
    if container.format.name.startswith("matroska"):
        with suppress(ValueError):  # written by some programs for each track: "00:00:17.944000000"
            hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    elif stream.duration and stream.time_base and (stream.frames or len(container.streams) == 1):
        return float(stream.duration * stream.time_base)
    if len(container.streams) == 1 and container.duration:
        return container.duration / 1_000_000
    return None


def _group_frames(frames: Iterator[AudioFrame | Gap], size: int) -> Iterator[AudioFrame | ResamplerBreak]:
    """Frames joined to groups of at least `size` samples, with a `ResamplerBreak` where the format changes or there is a gap."""
    for number, (kind, run) in enumerate(itertools.groupby(frames, key=_get_format)):
        if not kind:
            yield from (ResamplerBreak(gap.end) for gap in cast(Iterator[Gap], run))
            continue
        if number:
            yield ResamplerBreak()
        fifo, most = AudioFifo(), 0
        for frame in cast(Iterator[AudioFrame], run):
            frame.pts = None  # they were looked at: repeats and jitter are no reason to refuse the samples
            fifo.write(frame)
            # Once for the run, whose frames are alike: FFmpeg's list of channels takes as long as half of the decoding.
            most = most or max(min(MAX_GROUP_VALUES // len(frame.layout.channels), int(MAX_GROUP_S * frame.sample_rate)), 1)
            yield from _take_groups(fifo, min(size, most), most)
        yield from _take_groups(fifo, 1, most)


def _take_groups(fifo: AudioFifo, least: int, most: int) -> Iterator[AudioFrame]:
    """Groups of these sizes, as many as there are."""
    while fifo.samples >= least and (group := fifo.read(min(fifo.samples, most))):
        yield group


def _get_format(frame: AudioFrame | Gap) -> tuple[str, str, int] | None:
    return None if isinstance(frame, Gap) else (frame.format.name, frame.layout.name, frame.sample_rate)


def _to_arrays(frames: list[AudioFrame]) -> Iterator[Audio]:
    for frame in frames:
        samples = frame.to_ndarray()[0]
        if not np.isfinite(samples).all():  # as files of floats may be: one would silence the voice activity model permanently
            samples = np.nan_to_num(samples, posinf=1.0, neginf=-1.0)
        yield cast(Audio, samples)
