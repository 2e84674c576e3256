"""Builds requests for transcripts at external servers: route, response format, and the form with the audio.

`RequestStrategy` decides what to try after a refusal; it sends nothing. The form is sent while the file still arrives. The
file's type is detected by its first bytes, since names and content types cannot be trusted.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from eardrum.errors import ConfigError
from eardrum.gateway.spool import AudioSource
from eardrum.openai_replies import UpstreamReply
from eardrum.transcription import SAMPLE_RATE, SpeechTask, TranscriptionRequest, has_container_signature
from eardrum.wav import build_wav_header

TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
INFERENCE = "/inference"
"""whisper-server's default route."""

ROUTE_OPTIONS = ("transcriptions", "translations")
"""Options of models with a command or an address."""

VERBOSE, PLAIN = "verbose_json", "json"

GUESSES_NEEDED = 3
"""So many times in a row another plan must work, after refusals without a reason, before it becomes the first plan. So a short
failure of the server does not cost the times of later transcripts."""


class TranscriptionRoute(Struct, frozen=True):
    """A route that may serve a task."""

    path: str
    translate: bool = False
    """Whether a form field requests the translation, as at whisper-server."""
    certain: bool = True
    """Whether the server is known to obey that field, from the config or its responses; else the response must confirm it."""


class RequestPlan(Struct, frozen=True):
    """Route and form of one attempt."""

    routes: tuple[TranscriptionRoute, ...]
    """The first one is used; the others follow if its path does not exist."""
    format: str
    stream: bool
    tried: tuple[tuple[str, bool], ...] = ()
    """Refused formats, each with streaming or without."""
    guessed: bool = False
    """Whether this plan follows a refusal without a reason."""
    words: bool = False
    """Whether word times are requested although they are optional."""

    @property
    def route(self) -> TranscriptionRoute:
        """The route of the request."""
        return self.routes[0]


@dataclass(slots=True)
class RequestStrategy:
    """Decides how one server is asked. It learns from successful requests, and lives as long as the model is loaded."""

    transcription_routes: tuple[TranscriptionRoute, ...]
    translation_routes: tuple[TranscriptionRoute, ...]
    supports_streaming: bool = True
    formats: dict[bool, str] = field(default_factory=lambda: {False: VERBOSE, True: VERBOSE})
    """Response format for requests with times, without streaming and with it."""
    has_verbose_text: bool = False
    """Whether verbose_json has ever contained text: an empty one then means silence."""
    guesses: int = 0
    """Number of guessed plans in a row that worked."""
    supports_words: bool = True
    """Whether optional word times are requested; not after the server has refused them."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RequestStrategy:
        """Create a strategy from a model's options, which are paths. An empty `translations`: a form field requests them.

        Raises:
            ConfigError: an option is unknown, or not a path.
        """
        for name, value in options.items():
            if name not in ROUTE_OPTIONS:
                raise ConfigError(
                    f"the option {name} is not one of {', '.join(ROUTE_OPTIONS)}, which models with `cmd` or `proxy` have."
                )
            if not isinstance(value, str) or not (value.startswith("/") or (name == "translations" and not value)):
                raise ConfigError(f"the option {name} must be a path such as {INFERENCE}, not {value!r}.")
        transcriptions, translations = options.get("transcriptions"), options.get("translations")
        paths = (transcriptions,) if transcriptions else (TRANSCRIPTIONS, INFERENCE)
        by_field = tuple(TranscriptionRoute(path, translate=True, certain=translations == "") for path in paths)
        if translations:
            by_route: tuple[TranscriptionRoute, ...] = (TranscriptionRoute(translations),)
        else:
            by_route = by_field if translations == "" else (TranscriptionRoute(TRANSLATIONS), *by_field)
        return cls(tuple(map(TranscriptionRoute, paths)), by_route)

    def plan_first(self, request: TranscriptionRequest) -> RequestPlan | None:
        """Plan the first attempt. It requests no more than needed, since servers may fail on the rest."""
        return self._build_plan(
            self.translation_routes if request.task is SpeechTask.TRANSLATE else self.transcription_routes, request
        )

    def plan_after_refusal(self, plan: RequestPlan, refusal: UpstreamReply, request: TranscriptionRequest) -> RequestPlan | None:
        """Plan the attempt after a refusal; None if no other plan can help."""
        other = PLAIN if plan.format == VERBOSE else VERBOSE
        if is_route_missing(refusal):
            return self._build_plan(plan.routes[1:], request)
        if plan.words and (refusal.is_about_format or refusal.is_ambiguous):
            self.supports_words = self.supports_words and not refusal.is_about_format
            return replace(plan, words=False)
        if refusal.is_about_format:
            return _pick_untried(plan, (other, plan.stream), (other, False))
        if not refusal.is_ambiguous:
            return None
        unstreamed = ((self._choose_format(plan.route, request, stream=False), False), (PLAIN, False)) if plan.stream else ()
        if plan.stream and "stream" in refusal.text.lower():
            return _pick_untried(plan, *unstreamed)
        found = _pick_untried(plan, *unstreamed, *_list_json_formats(plan.route, request), guessed=True)
        return found or (self._build_plan(plan.routes[1:], request) if refusal.status == 501 else None)

    def plan_alternative(self, plan: RequestPlan, request: TranscriptionRequest) -> RequestPlan | None:
        """Plan the attempt after a response that cannot be parsed or has no text; None if no plan is left."""
        return _pick_untried(plan, *_list_json_formats(plan.route, request), guessed=True)

    def doubts_silence(self, plan: RequestPlan) -> bool:
        """Whether the plan may be the reason of an empty transcript: some servers send text in json only."""
        return plan.format == VERBOSE and not self.has_verbose_text

    def record_success(self, plan: RequestPlan, request: TranscriptionRequest, *, silent: bool = False) -> None:
        """Record that a plan worked; `silent` if the transcript was empty."""
        if request.task is SpeechTask.TRANSLATE:
            self.translation_routes = plan.routes
        else:
            self.transcription_routes = plan.routes
        if plan.guessed:
            self.guesses += not silent
            if silent or self.guesses < GUESSES_NEEDED:
                return
        elif plan.format == VERBOSE:
            self.guesses = 0
            self.has_verbose_text = self.has_verbose_text or not silent
        if request.times or request.words:
            self.formats[plan.stream] = plan.format
        self.supports_streaming = self.supports_streaming and (plan.stream or not request.partial or not plan.route.certain)

    def _build_plan(self, ways: tuple[TranscriptionRoute, ...], request: TranscriptionRequest) -> RequestPlan | None:
        if not ways:
            return None
        stream = request.partial and self.supports_streaming and ways[0].certain
        form = self._choose_format(ways[0], request, stream=stream)
        return RequestPlan(ways, form, stream, words=request.words_if_any and self.supports_words and form == VERBOSE)

    def _choose_format(self, way: TranscriptionRoute, request: TranscriptionRequest, *, stream: bool) -> str:
        if not way.certain:
            return VERBOSE  # the format in which servers report the task
        return self.formats[stream] if request.times or request.words else PLAIN


def _pick_untried(plan: RequestPlan, *others: tuple[str, bool], guessed: bool = False) -> RequestPlan | None:
    """Return the plan with the first of the other formats that was not tried yet."""
    tried = (*plan.tried, (plan.format, plan.stream))
    for form, stream in others:
        if (form, stream) not in tried:
            return replace(plan, format=form, stream=stream, tried=tried, guessed=guessed or plan.guessed)
    return None


def _list_json_formats(way: TranscriptionRoute, request: TranscriptionRequest) -> tuple[tuple[str, bool], ...]:
    """List the formats without verbose_json, unless it is needed for word times or to confirm the task."""
    return () if request.words or not way.certain else ((PLAIN, False),)


def is_route_missing(reply: UpstreamReply) -> bool:
    """Whether the server has no such route. A message about a missing model does not count."""
    return reply.status in (404, 405) and "model" not in reply.message.lower()


def build_fields(plan: RequestPlan, request: TranscriptionRequest, model: str) -> list[FormField]:
    """Build the form's fields besides the file: the known ones, and the client's other ones unchanged."""
    words = (request.words or plan.words) and plan.format == VERBOSE
    asked: list[FormField] = [
        ("model", model),
        ("response_format", plan.format),
        ("language", request.language or ""),
        ("prompt", request.prompt),
        ("temperature", f"{request.temperature:g}" if request.temperature else ""),
        ("audio_track", str(request.audio_track or "")),
        ("translate", "true" if plan.route.translate else ""),
        ("stream", "true" if plan.stream else ""),
        *(("timestamp_granularities[]", value) for value in ("word", "segment") if words),
    ]
    given = {name for name, _ in request.extra}
    if not given & {"hotwords", "keywords", "keywords[]"}:
        asked.append(("hotwords", ", ".join(request.hotwords)))
    ours = {name for name, value in asked if value}
    return [(name, value) for name, value in asked if value] + [item for item in request.extra if item[0] not in ours]


FormField = tuple[str, str]


class FormRecording(Struct, frozen=True):
    """Audio for a form: its first bytes, and the rest as it arrives."""

    head: bytes
    rest: AsyncIterator[bytes]
    size: int | None
    """Total bytes; None if unknown."""
    file_type: AudioFileType


async def open_recording(audio: AudioSource, *, raw_pcm: bool) -> FormRecording:
    """Open the audio once enough of it has arrived to detect its type. Raw samples become a WAV file."""
    if raw_pcm:
        return await _open_pcm(audio)
    chunks, head = audio.read(), b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= SNIFF_BYTES:
            return FormRecording(head, chunks, None, detect_file_type(head))
    return FormRecording(head, chunks, len(head), detect_file_type(head))


async def _open_pcm(audio: AudioSource) -> FormRecording:
    """Open raw samples as a WAV file. It begins with its size, so all of it must have arrived before it is sent."""
    size, head = 0, b""
    async for chunk in audio.read():
        head += chunk[: SNIFF_BYTES - len(head)]
        size += len(chunk)
    if has_container_signature(head):
        return FormRecording(b"", audio.read(), size, detect_file_type(head))
    head = build_wav_header(size, SAMPLE_RATE)
    return FormRecording(head, audio.read(), len(head) + size, detect_file_type(head))


class TranscriptionForm:
    """A multipart/form-data body: the fields, then the file."""

    def __init__(self, fields: Sequence[FormField], file: FormRecording):
        boundary = uuid.uuid4().hex
        parts = [
            *(_build_part_header(boundary, name) + value for name, value in fields),
            _build_part_header(boundary, "file", file.file_type),
        ]
        self._before = "\r\n".join(parts).encode(errors="replace")
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.size = None if file.size is None else len(self._before) + file.size + len(self._after)
        """Total bytes; None if unknown."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._before + self._file.head
        async for chunk in self._file.rest:
            yield chunk
        yield self._after


def _build_part_header(boundary: str, name: str, file: AudioFileType | None = None) -> str:
    """Build the header of a part."""
    quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted}"'
    if file:
        head += f'; filename="{file.file_name}"\r\nContent-Type: {file.media_type}'
    return head + "\r\n\r\n"


SNIFF_BYTES = 64 << 10
"""Bytes of a file from which its type is detected."""

UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)
"""Data sizes in the header of a WAV file that was written as a stream."""


class AudioFileType(Struct, frozen=True):
    """A file's type. Servers go by the extension, or by the content type, or by neither."""

    extension: str
    media_type: str
    seconds: float = 0.0
    """0 if the first bytes do not contain it."""

    @property
    def file_name(self) -> str:
        """A file name."""
        return f"audio.{self.extension}" if self.extension else "audio"


SIGNATURES = (
    (8, b"WAVE", "wav", "audio/wav"),
    (0, b"fLaC", "flac", "audio/flac"),
    (0, b"OggS", "ogg", "audio/ogg"),
    (0, b"ID3", "mp3", "audio/mpeg"),
    (4, b"ftypM4A", "m4a", "audio/mp4"),
    (4, b"ftyp", "mp4", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "webm", "audio/webm"),
    *((0, bytes((0xFF, second)), "aac", "audio/aac") for second in (0xF0, 0xF1, 0xF8, 0xF9)),
    *((0, bytes((0xFF, second)), "mp3", "audio/mpeg") for second in range(0xE0, 0x100)),
)
"""Offsets, signatures, extensions and media types; the first match counts."""


def detect_file_type(head: bytes) -> AudioFileType:
    """Detect the type of a file by its first bytes."""
    for at, mark, ending, media_type in SIGNATURES:
        if head.startswith(mark, at):
            read_duration = {"wav": _read_wav_duration, "flac": _read_flac_duration}.get(ending)
            return AudioFileType(ending, media_type, read_duration(head) if read_duration else 0.0)
    return AudioFileType("", "application/octet-stream")


def _read_wav_duration(head: bytes) -> float:
    at, byte_rate = 12, 0
    while at + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt " and at + 20 <= len(head):
            (byte_rate,) = struct.unpack_from("<I", head, at + 16)
        if name == b"data":
            return size / byte_rate if byte_rate and size not in UNKNOWN_SIZES else 0.0
        at += 8 + size + size % 2
    return 0.0


def _read_flac_duration(head: bytes) -> float:
    if len(head) < 26:
        return 0.0
    packed = int.from_bytes(head[18:26], "big")  # 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples / rate if rate else 0.0
