"""The five outputs of `/asr`, its headers, and its errors."""

from __future__ import annotations

import json
from email.message import Message
from urllib.parse import unquote

import pysrt
import pysubs2
import pytest
from babelfish import Language

from eardrum.api.asr import responses
from eardrum.api.asr.params import AsrParams
from eardrum.errors import BusyError, EardrumError, InvalidRequestError
from eardrum.transcription import Segment, Transcript, TranscriptionRequest, TranscriptionSummary, Word

TRANSCRIPT = Transcript(
    [
        Segment(0.256, 3.3, "Guten\tMorgen --> hier.", words=[Word("Guten", 0.256, 0.9, 0.5)], tokens=[1]),
        Segment(3661.0, 3662.0004, "Ja, ich."),
    ],
    TranscriptionSummary(language="de", duration=3663.0, language_probability=0.87654),
)


def make_params(output: str, *, words: bool = False, file_name: str = "film.mkv") -> AsrParams:
    return AsrParams("", TranscriptionRequest(words_if_any=words), output, (), file_name=file_name)


def format_output(output: str, *, words: bool = False) -> str:
    return responses.format_output(TRANSCRIPT, make_params(output, words=words))


def test_a_line_for_each_segment() -> None:
    assert format_output("txt") == "Guten Morgen --> hier.\nJa, ich.\n"


def test_a_table_in_milliseconds() -> None:
    assert format_output("tsv") == "start\tend\ttext\n256\t3300\tGuten Morgen --> hier.\n3661000\t3662000\tJa, ich.\n"


def test_subtitles_as_bazarr_reads_them() -> None:
    cues = pysrt.from_string(format_output("srt"), error_handling=pysrt.ERROR_RAISE)
    assert [(cue.start.ordinal, cue.end.ordinal) for cue in cues] == [(256, 3300), (3_661_000, 3_662_000)]
    assert [cue.text for cue in cues] == ["Guten Morgen → hier.", "Ja, ich."]
    assert format_output("vtt").startswith("WEBVTT\n\n00:00:00.256 --> 00:00:03.300\n")


def test_json_as_the_original_has_it() -> None:
    for words in (False, True):
        body = json.loads(format_output("json", words=words))
        assert body.keys() == {"language", "segments", "text"}
        first, second = body["segments"]
        assert first.keys() == {
            *("id", "seek", "start", "end", "text", "tokens", "avg_logprob", "compression_ratio", "no_speech_prob", "words"),
            "temperature",
        }
        assert (body["language"], first["id"], second["id"]) == ("de", 1, 2)
        spoken = [{"start": 0.256, "end": 0.9, "word": "Guten", "probability": 0.5}]
        assert first["words"] == (spoken if words else None)
        assert second["words"] is None
    assert json.dumps(json.loads(format_output("json"))) == format_output("json")


NAMES = ["audio_file", "a b.mp3", 'q"uo\\te;.wav', "Überschön Ф 映画.mkv", "a/b.mp3", "x\r\nSet-Cookie: a=b", "n" * 5000, ""]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_a_header(name: str) -> None:
    response = responses.build_response(TRANSCRIPT, make_params("srt", file_name=name), "moonshine")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["asr-engine"] == "moonshine"
    disposition = response.headers["content-disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    message = Message()
    message["content-disposition"] = disposition.partition("; filename*")[0]
    wanted = f"{name[:255] or 'audio'}.srt"
    assert unquote(message.get_filename() or "") == wanted
    assert unquote(disposition.partition("filename*=UTF-8''")[2]) == wanted
    assert "/" not in disposition.partition("filename*=")[2]


def test_the_language_of_speech_and_of_silence() -> None:
    heard = json.loads(bytes(responses.build_detection(TRANSCRIPT).body))
    assert heard == {"detected_language": "german", "language_code": "de", "confidence": 0.8765}
    for silent in (Transcript(), Transcript([], TRANSCRIPT.summary), None):
        body = json.loads(bytes(responses.build_detection(silent).body))
        assert body == {"detected_language": "undetermined", "language_code": "und", "confidence": 0.0}
        assert Language.fromname(body["detected_language"]).alpha3 == body["language_code"]  # as Bazarr looks it up


ERRORS = [
    InvalidRequestError("output must be txt, not '1\\n00:00:00,000 --> 00:00:01,000\\nhi'."),
    InvalidRequestError("1\n00:00:00,000 --> 00:00:01,000\nhi\n\n"),
    EardrumError("{0}{25}hi"),
    EardrumError("[0][25]hi"),
    EardrumError("00:00:00:hi"),
    EardrumError(""),
]


@pytest.mark.parametrize("error", ERRORS)
def test_no_error_passes_for_subtitles(error: EardrumError) -> None:
    """With the two libraries that decide it in Bazarr."""
    response = responses.build_error_response(error)
    text = bytes(response.body).decode()
    assert text.count("\n") == 1
    with pytest.raises(pysrt.Error):
        pysrt.from_string(text, error_handling=pysrt.ERROR_RAISE)
    with pytest.raises(pysubs2.exceptions.FormatAutodetectionError):
        pysubs2.SSAFile.from_string(text)


def test_a_busy_server_says_when_to_come_back() -> None:
    response = responses.build_error_response(BusyError("Later.", retry_after=1.2))
    assert (response.status_code, response.headers["retry-after"], response.body) == (503, "2", b"Error: Later.\n")
