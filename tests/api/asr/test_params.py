"""The parameters of `/asr`, in the query and in the form."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from msgspec.structs import replace

from eardrum.api.asr.params import AsrParams, parse_asr_params, parse_detection_params
from eardrum.api.uploads import FormFields
from eardrum.errors import InvalidRequestError
from eardrum.subtitles import NO_RULES, SubtitleRules
from eardrum.transcription import Capabilities, SpeakerOptions, SpeechTask

ABLE = Capabilities(prompt=True, hotwords=True, words=True)
UNABLE = Capabilities()


class Upload:
    """What the parser reads of an upload."""

    def __init__(self, fields: FormFields, file_name: str = "film.mkv"):
        self.fields = fields
        self.file_name = file_name


def parse(query: dict[str, str] | None = None, shape: SubtitleRules = NO_RULES, **form: str) -> AsrParams:
    upload = Upload({name: [value] for name, value in form.items()})
    return parse_asr_params({"query_string": urlencode(query or {}).encode()}, upload, shape)


def test_nothing_sent_means_the_originals_defaults() -> None:
    params = parse()
    assert (params.output, params.model, params.file_name, params.unused) == ("txt", "", "film.mkv", ())
    request = params.request
    assert (request.task, request.language, request.raw_pcm, request.words_if_any) == (SpeechTask.TRANSCRIBE, None, False, False)
    assert not request.times


def test_bazarrs_query() -> None:
    query = {"task": "translate", "language": "fr", "output": "srt", "encode": "false", "video_file": "/Überall/ö.mkv"}
    params = parse(query)
    request = params.request
    assert (request.task, request.language, request.raw_pcm, request.times) == (SpeechTask.TRANSLATE, "fr", True, True)
    assert (params.output, params.unused) == ("srt", ("video_file",))


@pytest.mark.parametrize("word", ["true", "True", "1", "on", "yes", "t", "Y"])
def test_every_spelling_of_a_boolean(word: str) -> None:
    assert parse({"word_timestamps": word, "output": "json"}).request.words_if_any
    assert not parse({"encode": word}).request.raw_pcm


def test_the_form_may_hold_every_parameter_and_wins() -> None:
    form = {"task": "translate", "language": "German", "output": "vtt", "encode": "0", "initial_prompt": "Dashwood", "model": "x"}
    assert parse(**form) == replace(parse(form), is_in_query=False)
    both = parse({"output": "srt", "language": "fr"}, output="json", language="")
    assert (both.output, both.request.language) == ("json", "fr")


def test_empty_values_are_unset() -> None:
    names = ("task", "language", "output", "encode", "vad_filter", "diarize", "min_speakers", "max_speakers", "initial_prompt")
    assert replace(parse(dict.fromkeys(names, "")), is_in_query=False) == parse() == parse(**dict.fromkeys(names, " "))


def test_text_is_txt() -> None:
    assert parse({"output": "text"}).output == "txt"


def test_words_to_expect() -> None:
    assert parse({"hotwords": "Eardrum Dashwood"}).request.hotwords == ("Eardrum", "Dashwood")
    assert parse(hotwords="Eardrum, Mr. Dashwood").request.hotwords == ("Eardrum", "Mr. Dashwood")


WRONG = {
    "task": ("detect", "task must be transcribe or translate"),
    "language": ("klingon", "Unknown language 'klingon'"),
    "output": ("ass", "output must be txt, vtt, srt, tsv or json"),
    "encode": ("maybe", "encode must be true or false"),
    "vad_filter": ("2", "vad_filter must be true or false"),
    "word_timestamps": ("words", "word_timestamps must be true or false"),
    "diarize": ("speakers", "diarize must be true or false"),
    "enable_diarization": ("nein", "enable_diarization must be true or false"),
    "return_speaker_embeddings": ("-", "return_speaker_embeddings must be true or false"),
    "min_speakers": ("0", "min_speakers must be a whole number from 1 to 1000"),
    "max_speakers": ("two", "max_speakers must be a whole number from 1 to 1000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_name(name: str) -> None:
    value, message = WRONG[name]
    for refused in (lambda: parse({name: value}), lambda: parse(**{name: value})):
        with pytest.raises(InvalidRequestError, match=message) as caught:
            refused()
        assert caught.value.param == name


def test_more_speakers_at_least_than_at_most() -> None:
    with pytest.raises(InvalidRequestError, match=r"min_speakers \(3\) is more than max_speakers \(2\)"):
        parse({"min_speakers": "3", "max_speakers": "2"})


@pytest.mark.parametrize("name", ["diarize", "enable_diarization"])
def test_speakers(name: str) -> None:
    request = parse({name: "true", "output": "json", "min_speakers": "2"}).request
    assert request.speakers
    assert request.speaker_options == SpeakerOptions(2, None)
    assert not parse({name: "true", "output": "tsv"}).request.speakers


def test_what_has_no_effect_is_listed() -> None:
    speakers = {"diarize": "true", "enable_diarization": "1", "min_speakers": "1", "max_speakers": "2"}
    assert parse(speakers).list_ignored(ABLE) == list(speakers)
    assert parse(speakers | {"output": "srt"}).list_ignored(ABLE) == []
    assert parse({"diarize": "false", "vad_filter": "true"}).list_ignored(ABLE) == []
    assert parse({"vad_filter": "false"}).list_ignored(ABLE) == ["vad_filter"]
    hints = {"initial_prompt": "a", "hotwords": "b", "word_timestamps": "1", "output": "json"}
    assert parse(hints).list_ignored(ABLE) == []
    assert parse(hints).list_ignored(UNABLE) == ["initial_prompt", "hotwords", "word_timestamps"]
    assert parse({"word_timestamps": "1"}).list_ignored(ABLE) == ["word_timestamps"]


def test_cues_with_rules_use_words_that_there_are() -> None:
    shape = SubtitleRules(max_line_width=42)
    assert parse({"output": "srt"}, shape).request.words_if_any
    assert parse({"output": "srt"}, shape).list_ignored(ABLE) == []
    assert not parse({"output": "txt"}, shape).request.words_if_any


def test_the_language_alone() -> None:
    upload = Upload({"video_file": ["x"]})
    params = parse_detection_params({"query_string": b"encode=false"}, upload)
    assert (params.request.language_only, params.request.raw_pcm, params.unused) == (True, True, ("video_file",))
