"""Builds the responses of whisper-asr-webservice: transcripts in five formats, languages, and errors in a line of text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.responses import JSONResponse, PlainTextResponse, Response

from eardrum.api import asgi, transcript_formats
from eardrum.api.asr.params import AsrParams
from eardrum.errors import EardrumError
from eardrum.languages import get_language_name
from eardrum.transcription import Segment, Transcript

MAX_FILE_NAME = 255
"""Characters of a file name in a header: longer ones no file system has, and clients refuse long headers."""


def build_response(transcript: Transcript, params: AsrParams, engine: str) -> Response:
    """Build the response with the whole transcript. Its type is always plain text, for JSON too, as the original's is."""
    return PlainTextResponse(
        format_output(transcript, params), headers={"asr-engine": engine, "content-disposition": _name_file(params)}
    )


def _name_file(params: AsrParams) -> str:
    """Suggest the name of a file for the response: as the original does, and as RFC 5987 requires."""
    name = f"{params.file_name[:MAX_FILE_NAME] or 'audio'}.{params.output}"
    return f"attachment; filename=\"{quote(name, errors='replace')}\"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"


def format_output(transcript: Transcript, params: AsrParams) -> str:
    """Format the transcript."""
    segments, duration = transcript.segments, transcript.summary.duration
    match params.output:
        case "srt":
            return transcript_formats.format_srt(segments, params.shape, duration=duration)
        case "vtt":
            return transcript_formats.format_vtt(segments, params.shape, duration=duration)
        case "tsv":
            return _format_tsv(segments)
        case "json":
            return _format_json(transcript, words=params.request.words_if_any)
    return "".join(f"{_join_line(segment.text)}\n" for segment in segments)


def _format_tsv(segments: Sequence[Segment]) -> str:
    """Format a table with times in whole milliseconds."""
    rows = (f"{round(s.start * 1000)}\t{round(s.end * 1000)}\t{_join_line(s.text)}\n" for s in segments)
    return "start\tend\ttext\n" + "".join(rows)


def _join_line(text: str) -> str:
    """Return the text in one line, without tabs."""
    return " ".join(text.split())


def _format_json(transcript: Transcript, *, words: bool) -> str:
    """Format the object that the original's engine faster_whisper gives."""
    body = {
        "language": transcript.summary.language,
        "segments": [_describe_segment(number, segment, words=words) for number, segment in enumerate(transcript.segments, 1)],
        "text": transcript_formats.format_text(transcript.segments),
    }
    return json.dumps(body)


def _describe_segment(number: int, segment: Segment, *, words: bool) -> dict[str, Any]:
    speaker = {"speaker": segment.speaker} if segment.speaker else {}
    spoken = [
        {"start": round(word.start, 3), "end": round(word.end, 3), "word": word.word, "probability": word.probability} | speaker
        for word in segment.words
    ]
    return {
        "id": number,
        "seek": int(segment.start * 100),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": f" {segment.text.strip()}",
        "tokens": segment.tokens,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
        "words": spoken if words and spoken else None,
        "temperature": segment.temperature,
    } | speaker


UNDETERMINED = "und", "undetermined"
"""ISO 639's code and name of a language that is unknown. Bazarr continues with them, and stops at a missing key."""


def build_detection(transcript: Transcript | None) -> Response:
    """Build the response with the detected language; without speech, or without a transcript, it is undetermined."""
    heard = bool(transcript and transcript.segments and transcript.summary.language)
    code, name = UNDETERMINED
    if transcript and heard:
        code, name = transcript.summary.language, get_language_name(transcript.summary.language)
    confidence = round(transcript.summary.language_probability, 4) if transcript and heard else 0.0
    return JSONResponse({"detected_language": name, "language_code": code, "confidence": confidence})


TIME = re.compile(r"\d+(?::\d+)+[:.,]\d+")
"""A time, as subtitles write it."""


def build_error_response(error: EardrumError) -> Response:
    """Build an error as a line of text. Bazarr takes everything that it can read as the subtitle, and a message may repeat words
    of the client: so it holds no arrow, and times without colons."""
    line = " ".join(error.message.split()).replace("-->", "→")
    line = TIME.sub(lambda found: found[0].replace(":", "."), line)
    return PlainTextResponse(f"Error: {line}\n", error.status, asgi.build_error_headers(error))
