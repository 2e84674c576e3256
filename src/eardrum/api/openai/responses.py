"""Formats transcripts and errors in OpenAI's shapes: response bodies and server-sent events."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from eardrum.api import asgi, transcript_formats
from eardrum.api.openai.params import TranscriptionParams
from eardrum.api.transcript_formats import round_time
from eardrum.errors import EardrumError
from eardrum.languages import get_language_name
from eardrum.text import choose_separator
from eardrum.transcription import AudioOpened, Segment, TextDelta, Token, Transcript, TranscriptionSummary

EVENT_STREAM = "text/event-stream; charset=utf-8"

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    431: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def build_response(transcript: Transcript, params: TranscriptionParams) -> Response:
    """Build the response with the whole transcript, in the requested format."""
    body = build_body(transcript, params)
    return PlainTextResponse(body) if isinstance(body, str) else JSONResponse(body)


def build_body(transcript: Transcript, params: TranscriptionParams) -> dict[str, Any] | str:
    """Build the body of the response: an object, or text in the formats that are text."""
    match params.form.response_format:
        case "text":
            return transcript_formats.format_text(transcript.segments) + "\n"
        case "srt" | "vtt" as format:
            return _format_subtitles(format, transcript, params)
        case "verbose_json":
            return _build_verbose_body(transcript, params)
        case "diarized_json":
            return _build_diarized_body(transcript, params)
    body: dict[str, Any] = {"text": transcript_formats.format_text(transcript.segments)}
    if params.request.logprobs:
        body["logprobs"] = [_describe_logprob(t) for segment in transcript.segments for t in segment.token_logprobs]
    return body | _describe_usage(transcript)


async def build_response_in_thread(transcript: Transcript, params: TranscriptionParams) -> Response:
    """Build the response, in a thread if it holds cues with rules: for a long transcript that would block the event loop."""
    return (
        build_response(transcript, params)
        if params.shape.is_unrestricted
        else await asyncio.to_thread(build_response, transcript, params)
    )


def add_track_headers(response: Response, audio: AudioOpened | TranscriptionSummary) -> None:
    """Add headers with the number of the transcribed audio track and of all tracks, if there are several."""
    if audio.audio_tracks:
        response.headers["x-eardrum-audio-track"] = str(audio.audio_track)
        response.headers["x-eardrum-audio-tracks"] = str(audio.audio_tracks)


def encode_delta(segment: Segment, params: TranscriptionParams, *, before: str) -> bytes:
    """Encode the event of a segment that follows the text `before`. All deltas joined are the text of the `done` event.

    The segment's times are an extension: they show how far a recording is decoded.
    """
    text = segment.text.strip()
    text = choose_separator(before.strip(), text) + text
    times = {"start": round_time(segment.start), "end": round_time(segment.end)}
    event: dict[str, Any] = {"type": "transcript.text.delta", "delta": text, **times}
    if params.request.logprobs:
        event["logprobs"] = [_describe_logprob(token) for token in segment.token_logprobs]
    return _encode_event(event)


def encode_partial(part: TextDelta) -> bytes:
    """Encode the event of text that an upstream streams, with times if it gives any."""
    times = {"start": part.start, "end": part.end} if part.start is not None else {}
    return _encode_event({"type": "transcript.text.delta", "delta": part.text, **times})


def encode_segment(segment: Segment, number: int) -> bytes:
    """Encode the event of a segment with its speaker."""
    return _encode_event(_describe_turn(number, segment))


def encode_done(transcript: Transcript, params: TranscriptionParams) -> bytes:
    """Encode the last event. All but the text is an extension: `segments`, from which subtitle editors get times, with their
    words if the request asked for them, and what the headers of a stream come too early for."""
    event: dict[str, Any] = {"type": "transcript.text.done", "text": transcript_formats.format_text(transcript.segments)}
    if params.request.logprobs:
        event["logprobs"] = [_describe_logprob(t) for segment in transcript.segments for t in segment.token_logprobs]
    event["segments"] = [
        {
            "id": number,
            "start": round_time(s.start),
            "end": round_time(s.end),
            "text": s.text.strip(),
            **({"words": _describe_words(s)} if params.request.words else {}),
            **_name_speaker(s),
        }
        for number, s in enumerate(transcript.segments)
    ]
    summary = transcript.summary
    facts = {"language": summary.language, "duration": round(summary.duration, 3), "model": summary.model}
    event |= {name: value for name, value in facts.items() if value}
    if transcript.summary.warnings:
        event["warnings"] = transcript.summary.warnings
    return _encode_event(event)


def encode_error(error: EardrumError) -> bytes:
    """Encode the event of an error after the stream has begun. OpenAI's clients raise it."""
    return asgi.encode_event(json.dumps(build_error_body(error)), event="error")


def build_error_response(error: EardrumError) -> Response:
    """Build an error response, with headers for clients that retry."""
    headers = asgi.build_error_headers(error)
    if error.retry_after is None and error.status >= 500:
        headers["x-should-retry"] = "false"  # OpenAI's clients would repeat the whole upload twice
    return JSONResponse(build_error_body(error), error.status, headers)


def _build_diarized_body(transcript: Transcript, params: TranscriptionParams) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": params.request.task,
        "duration": round(transcript.summary.duration, 3),
        "text": transcript_formats.format_text(transcript.segments),
        "segments": [_describe_turn(number, segment) for number, segment in enumerate(transcript.segments)],
    }
    if transcript.summary.warnings:
        body["warnings"] = transcript.summary.warnings
    return body | _describe_usage(transcript)


def _describe_turn(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": f"seg_{number}",
        "type": "transcript.text.segment",
        "start": round_time(segment.start),
        "end": round_time(segment.end),
        "speaker": segment.speaker,
        "text": segment.text.strip(),
    }


def _name_speaker(segment: Segment) -> dict[str, str]:
    return {"speaker": segment.speaker} if segment.speaker else {}


def _format_subtitles(format: str, transcript: Transcript, params: TranscriptionParams) -> str:
    write = transcript_formats.format_srt if format == "srt" else transcript_formats.format_vtt
    return write(transcript.segments, params.shape, duration=transcript.summary.duration)


def _build_verbose_body(transcript: Transcript, params: TranscriptionParams) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": params.request.task,
        "language": get_language_name(transcript.summary.language),
        "duration": round(transcript.summary.duration, 3),
        "text": transcript_formats.format_text(transcript.segments),
    }
    if params.request.words:
        body["words"] = [word for segment in transcript.segments for word in _describe_words(segment)]
    if params.has_segments:
        body["segments"] = [_describe_segment(number, segment) for number, segment in enumerate(transcript.segments)]
    body |= {format: _format_subtitles(format, transcript, params) for format in params.subtitle_formats}
    if transcript.summary.audio_tracks > 1:
        body |= {"audio_track": transcript.summary.audio_track, "audio_tracks": transcript.summary.audio_tracks}
    if transcript.summary.dropped:
        body["dropped"] = [item.to_json() for item in transcript.summary.dropped]
    if transcript.summary.warnings:
        body["warnings"] = transcript.summary.warnings
    return body | _describe_usage(transcript)


def _describe_segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": int(segment.start * 100),
        "start": round_time(segment.start),
        "end": round_time(segment.end),
        "text": " " + segment.text.strip(),
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    } | _name_speaker(segment)


def _describe_words(segment: Segment) -> list[dict[str, Any]]:
    return [
        {"word": word.word, "start": round_time(word.start), "end": round_time(word.end)} | _name_speaker(segment)
        for word in segment.words
    ]


def _describe_usage(transcript: Transcript) -> dict[str, Any]:
    """Describe the duration of the audio. It is unknown after a request for text alone to an upstream that does not report it."""
    if transcript.segments and not transcript.summary.duration:
        return {}
    return {"usage": {"type": "duration", "seconds": math.ceil(transcript.summary.duration)}}


def _describe_logprob(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}


def build_error_body(error: EardrumError) -> dict[str, Any]:
    """Build an error object in OpenAI's format."""
    kind = ERROR_TYPES.get(error.status, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def _encode_event(event: dict[str, Any]) -> bytes:
    # Both, because some clients read the line `event`, and some the `type` in the data.
    return asgi.encode_event(json.dumps(event), event=event["type"])
