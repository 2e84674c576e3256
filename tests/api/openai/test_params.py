"""OpenAI's form fields in every spelling clients send."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from eardrum.api.fields import MAX_PROMPT
from eardrum.api.openai.params import TranscriptionParams, flatten_json, parse_params
from eardrum.api.uploads import need_same_decoding
from eardrum.config import LimitSettings
from eardrum.errors import InvalidRequestError
from eardrum.subtitles import BROADCAST_RULES, SubtitleRules
from eardrum.transcription import Capabilities, KnownSpeaker, SpeakerOptions, SpeechTask, TranscriptionRequest

Form = dict[str, list[str]]


def read_params(
    form: Form | None = None, *, task: SpeechTask = SpeechTask.TRANSCRIBE, content_type: str = "", **fields: str | list[str]
) -> TranscriptionParams:
    single = {name: [value] if isinstance(value, str) else value for name, value in fields.items()}
    return parse_params((form or {}) | single, task, file_content_type=content_type)


def get_refusal(form: Form | None = None, **fields: str | list[str]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read_params(form, **fields)
    return caught.value


def test_nothing_asked() -> None:
    found = read_params()
    assert (found.model, found.stream, found.form.response_format, found.has_segments) == ("", False, "json", True)
    assert (found.request, found.extra) == (TranscriptionRequest(times=False), ())
    assert read_params(task=SpeechTask.TRANSLATE).request.task is SpeechTask.TRANSLATE


def test_everything_asked() -> None:
    found = read_params(
        model="whisper-1",
        language="de",
        prompt=" Dashwood ",
        temperature="0.5",
        response_format="verbose_json",
        stream="true",
    )
    assert (found.model, found.form.response_format, found.stream) == ("whisper-1", "verbose_json", True)
    assert found.request == TranscriptionRequest(language="de", prompt="Dashwood", temperature=0.5)


def test_times_are_wanted_by_formats_that_have_them_and_by_granularities() -> None:
    for form in ("srt", "vtt", "verbose_json", "diarized_json"):
        assert read_params(response_format=form).request.times
    for form in ("json", "text"):
        assert not read_params(response_format=form).request.times
    assert read_params({"timestamp_granularities[]": ["segment", "word"]}).request.times
    assert read_params(stream="true").request.times, "the last event of a stream has the segments"


def test_one_decoding_answers_with_times_and_without() -> None:
    assert need_same_decoding(read_params(model="m", response_format="srt"), read_params(model="m"))


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_empty_strings_are_unset(blank: str) -> None:
    names = (
        *("model", "language", "languages[]", "prompt", "keywords[]", "response_format", "temperature", "include[]"),
        *("timestamp_granularities[]", "stream", "chunking_strategy", "chunking_strategy[type]", "known_speaker_names[]"),
    )
    assert read_params({name: [blank] for name in names}) == read_params()


@pytest.mark.parametrize(
    "form",
    [
        {"timestamp_granularities[]": ["word", "segment"]},
        {"timestamp_granularities": ["word", "segment"]},
        {"timestamp_granularities": ["word,segment"]},
        {"timestamp_granularities": ["segment, word"]},
        {"timestamp_granularities": ['["word", "segment"]']},
        {"timestamp_granularities[]": ["word"], "timestamp_granularities": ["segment"]},
    ],
)
def test_arrays_have_brackets_or_not_or_are_json(form: Form) -> None:
    found = read_params(form, response_format="verbose_json")
    assert (found.request.words, found.has_segments) == (True, True)


def test_granularities() -> None:
    only_words = read_params({"timestamp_granularities[]": ["word"]}, response_format="verbose_json")
    assert (only_words.request.words, only_words.has_segments) == (True, False)
    only_segments = read_params({"timestamp_granularities[]": ["segment"]}, response_format="verbose_json")
    assert (only_segments.request.words, only_segments.has_segments) == (False, True)
    idle = read_params({"timestamp_granularities[]": ["segment,word"]}, response_format="json", stream="true")
    assert not idle.request.words, "words cost time, and json cannot carry them"


@pytest.mark.parametrize(
    "form",
    [
        {"keywords[]": ["Dashwood", "Norland Park"]},
        {"keywords": ["Dashwood", "Norland Park"]},
        {"keywords": ["Dashwood,Norland Park"]},
        {"keywords": ['["Dashwood", "Norland Park"]']},
    ],
)
def test_keywords(form: Form) -> None:
    assert read_params(form).request.hotwords == ("Dashwood", "Norland Park")


def test_hotwords_as_others_spell_them() -> None:
    assert read_params(hotwords="Dashwood Norland").request.hotwords == ("Dashwood", "Norland")


@pytest.mark.parametrize(
    ("spelled", "code"),
    [("en", "en"), ("en-US", "en"), ("pt_BR", "pt"), ("German", "de"), ("ZH-Hant-TW", "zh"), ("auto", None), (" fr ", "fr")],
)
def test_languages_and_locales(spelled: str, code: str | None) -> None:
    assert read_params(language=spelled).request.language == code
    assert read_params({"languages[]": [spelled]}).request.language == code


def test_several_possible_languages_are_left_to_the_model() -> None:
    assert read_params({"languages[]": ["en", "de"]}).request.language is None
    assert read_params({"languages[]": ["en", "en-GB"]}).request.language == "en"
    assert read_params({"languages": ["en", "de"], "language": ["de"]}).request.language == "de"


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_stream_on(text: str) -> None:
    assert read_params(stream=text).stream


@pytest.mark.parametrize("text", ["false", "False", "0", "no", "off", "null", ""])
def test_stream_off(text: str) -> None:
    assert not read_params(stream=text).stream


@pytest.mark.parametrize("auto", ["auto", "null", ""])
def test_chunking_left_to_the_server(auto: str) -> None:
    assert read_params(chunking_strategy=auto).request == TranscriptionRequest(times=False)


CHUNKED = TranscriptionRequest(times=False, vad_threshold=0.4, vad_silence_s=0.2, vad_padding_s=0.3)


@pytest.mark.parametrize(
    "form",
    [
        {
            "chunking_strategy[type]": ["server_vad"],
            "chunking_strategy[threshold]": ["0.4"],
            "chunking_strategy[silence_duration_ms]": ["200"],
            "chunking_strategy[prefix_padding_ms]": ["300"],
        },
        {"chunking_strategy": ['{"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 200, "prefix_padding_ms": 300}']},
    ],
)
def test_chunking_as_an_object(form: Form) -> None:
    assert read_params(form).request == CHUNKED


def test_chunking_in_part() -> None:
    assert read_params({"chunking_strategy[type]": ["server_vad"]}).request == TranscriptionRequest(times=False)
    only = {"chunking_strategy[type]": ["server_vad"], "chunking_strategy[threshold]": ["0"]}
    assert read_params(only).request == TranscriptionRequest(times=False, vad_threshold=0.0)


@pytest.mark.parametrize(
    "value",
    [
        "server_vad",
        "{",
        "[]",
        "5",
        '{"threshold": 0.5}',
        '{"type": "semantic_vad"}',
        '{"type": "server_vad", "threshold": 1.5}',
        '{"type": "server_vad", "threshold": "loud"}',
        '{"type": "server_vad", "threshold": NaN}',
        '{"type": "server_vad", "silence_duration_ms": -1}',
        '{"type": "server_vad", "silence_duration_ms": 10001}',
        '{"type": "server_vad", "prefix_padding_ms": 5001}',
        '{"type": "server_vad", "prefix_padding_ms": [1]}',
    ],
)
def test_wrong_chunking(value: str) -> None:
    assert get_refusal(chunking_strategy=value).param == "chunking_strategy"


@pytest.mark.parametrize(
    ("form", "param", "named"),
    [
        ({"response_format": ["xml"]}, "response_format", "verbose_json"),
        ({"temperature": ["hot"]}, "temperature", "'hot'"),
        ({"temperature": ["1.01"]}, "temperature", "0 to 1"),
        ({"temperature": ["-0.1"]}, "temperature", "0 to 1"),
        ({"temperature": ["nan"]}, "temperature", "'nan'"),
        ({"temperature": ["inf"]}, "temperature", "'inf'"),
        ({"stream": ["maybe"]}, "stream", "'maybe'"),
        ({"language": ["klingon"]}, "language", "'klingon'"),
        ({"include[]": ["tokens"]}, "include", "logprobs"),
        ({"include": ['["logprobs"']}, "include", "JSON"),
        ({"timestamp_granularities[]": ["word", "letter"]}, "timestamp_granularities", "'letter'"),
        pytest.param({"languages[]": ["en", "klingon"]}, "languages", "'klingon'"),
    ],
)
def test_wrong_values_are_refused_by_name(form: Form, param: str, named: str) -> None:
    error = get_refusal(form)
    assert error.param == param
    assert named in error.message


def test_log_probabilities_come_with_json_only() -> None:
    assert read_params({"include[]": ["logprobs"]}).request.logprobs
    assert read_params({"include": ["logprobs"]}, response_format="json").request.logprobs
    assert not read_params({"include[]": ["logprobs"]}, response_format="verbose_json").request.logprobs


KNOWN = {"known_speaker_names[]": ["Smith, John"], "known_speaker_references[]": ["data:audio/wav;base64,UklGRg=="]}


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": ["diarized_json"]},
        {"response_format": ["diarized_json"], "stream": ["true"]},
        {"response_format": ["verbose_json"], "diarize": ["true"]},
        {"response_format": ["srt"], "diarize": ["1"]},
        {"response_format": ["vtt"], **KNOWN},
        {"diarize": ["true"], "stream": ["true"]},
    ],
)
def test_speakers(form: Form) -> None:
    asked = read_params(form)
    assert asked.request.speakers
    assert asked.list_ignored(Capabilities()) == []


def test_known_speakers() -> None:
    known = (KnownSpeaker("Smith, John", b"RIFF"),)
    assert read_params(KNOWN, response_format="srt").request.speaker_options == SpeakerOptions(known=known)
    as_json = {name.removesuffix("[]"): [json.dumps(values)] for name, values in KNOWN.items()}
    assert read_params(as_json, response_format="srt") == read_params(KNOWN, response_format="srt")
    body = flatten_json({name.removesuffix("[]"): values for name, values in KNOWN.items()}, LimitSettings())
    assert read_params(body, response_format="srt") == read_params(KNOWN, response_format="srt")


@pytest.mark.parametrize("format", ["json", "text"])
def test_formats_without_room_for_speakers(format: str) -> None:
    asked = read_params({**KNOWN, "diarize": ["true"], "min_speakers": ["2"]}, response_format=format)
    assert not asked.request.speakers
    names = ["diarize", "min_speakers", "known_speaker_names", "known_speaker_references"]
    assert asked.list_ignored(Capabilities()) == names
    assert read_params(response_format="srt", max_speakers="2").list_ignored(Capabilities()) == ["max_speakers"]


URL = "data:audio/wav;base64,UklGRg=="


@pytest.mark.parametrize(
    ("names", "urls", "param", "says"),
    [
        (["a"], [], "known_speaker_references", "There are 1 known_speaker_names and 0 known_speaker_references"),
        ([], [URL], "known_speaker_names", "There are 0 known_speaker_names and 1"),
        (["a", "a"], [URL] * 2, "known_speaker_names", "must be different names"),
        (["a" * 81], [URL], "known_speaker_names", "1 to 80 letters"),
        (["a\nb"], [URL], "known_speaker_names", "must be different names"),
        ([str(number) for number in range(11)], [URL] * 11, "known_speaker_names", "send 10 at most"),
        (["a"], ["https://example.com/a.wav"], "known_speaker_references", "must be a data URL"),
        (["a"], ["data:audio/wav;base64,"], "known_speaker_references", "must be a data URL"),
        (["a"], ["data:audio/wav;base64,*"], "known_speaker_references", "must be a data URL"),
    ],
)
def test_wrong_speakers(names: list[str], urls: list[str], param: str, says: str) -> None:
    error = get_refusal({"known_speaker_names[]": names, "known_speaker_references[]": urls}, response_format="diarized_json")
    assert (error.param, says in error.message) == (param, True), error.message


def test_bounds_of_speakers() -> None:
    asked = read_params(response_format="diarized_json", min_speakers="2", max_speakers="3")
    assert asked.request.speaker_options == SpeakerOptions(2, 3)
    assert get_refusal(response_format="diarized_json", min_speakers="3", max_speakers="2").param == "min_speakers"
    assert "whole number from 1 to 1000" in get_refusal(max_speakers="0").message


@pytest.mark.parametrize("content_type", ["audio/pcm", "audio/PCM; rate=16000", "audio/l16", "audio/raw"])
def test_raw_samples_are_declared_by_the_files_type(content_type: str) -> None:
    assert read_params(content_type=content_type).request.raw_pcm


@pytest.mark.parametrize("content_type", ["", "application/octet-stream", "audio/wav", "audio/mpeg"])
def test_other_types_are_looked_into(content_type: str) -> None:
    assert not read_params(content_type=content_type).request.raw_pcm


def test_the_last_of_a_repeated_field_counts() -> None:
    assert read_params({"model": ["a", "b"], "language": ["en", ""]}).model == "b"


def test_a_prompt_of_any_length_fits_its_way() -> None:
    assert len(read_params(prompt="x" * 100_000).request.prompt) == MAX_PROMPT


def test_what_had_no_effect_is_named() -> None:
    form = {"keywords[]": ["a"], "beam_size": ["5"], "extra_body[top_k]": ["1"], "vad[]": ["x"], "a[b][c]": ["1"]}
    asked = read_params(form, prompt="p", temperature="0.2", model="m")
    assert asked.list_ignored(Capabilities()) == ["prompt", "keywords", "temperature", "a", "beam_size", "extra_body", "vad"]
    able = Capabilities(prompt=True, hotwords=True, temperature=True)
    assert asked.list_ignored(able) == ["a", "beam_size", "extra_body", "vad"]
    assert read_params(temperature="0", model="m", language="en", stream="true").list_ignored(Capabilities()) == []


@pytest.mark.parametrize(
    ("form", "format", "stream", "idle"),
    [
        ({"timestamp_granularities[]": ["word"]}, "json", False, ["timestamp_granularities"]),
        ({"timestamp_granularities[]": ["word", "segment"]}, "text", False, ["timestamp_granularities"]),
        ({"timestamp_granularities": ["segment"]}, "json", False, ["timestamp_granularities"]),
        ({"timestamp_granularities": ["word"]}, "srt", False, ["timestamp_granularities"]),
        ({"timestamp_granularities": ["segment"]}, "vtt", False, []),
        ({"timestamp_granularities[]": ["word", "segment"]}, "verbose_json", False, []),
        ({"timestamp_granularities": ["word"]}, "verbose_json", True, []),
        ({"timestamp_granularities": ["word"]}, "json", True, ["timestamp_granularities"]),
        ({"timestamp_granularities": ["segment"]}, "json", True, []),
        ({"include[]": ["logprobs"]}, "json", False, []),
        ({"include[]": ["logprobs"]}, "verbose_json", False, ["include"]),
        ({"include[]": ["srt", "vtt"], "max_line_width": ["20"]}, "verbose_json", False, []),
        ({"include[]": ["srt"], "max_line_width": ["20"]}, "verbose_json", True, ["max_line_width", "include"]),
        ({"include[]": ["srt"]}, "json", False, ["include"]),
        ({"include[]": ["vtt"], "max_line_width": ["20"]}, "srt", False, ["include"]),
        ({"languages[]": ["de"]}, "json", False, []),
        ({"languages[]": ["de", "en"]}, "json", False, ["languages"]),
        ({"languages[]": ["de", "en"], "language": ["de"]}, "json", False, []),
    ],
)
def test_what_says_nothing_to_an_answer_is_named(form: Form, format: str, stream: bool, idle: list[str]) -> None:
    asked = read_params(form, response_format=format, stream=str(stream))
    assert asked.list_ignored(Capabilities(words=True, logprobs=True)) == idle


def test_which_wishes_one_decoding_answers() -> None:
    asked = read_params(model="m", language="en")
    assert need_same_decoding(asked, read_params(model="m", language="en-US", response_format="srt", stream="true"))
    assert not need_same_decoding(asked, read_params(model="m", language="de"))
    assert not need_same_decoding(asked, read_params(model="n", language="en"))
    assert not need_same_decoding(
        asked, read_params({"timestamp_granularities": ["word"]}, model="m", response_format="verbose_json")
    )


def test_a_json_body_says_the_same_as_a_form() -> None:
    body = {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "language": None,
        "response_format": "verbose_json",
        "timestamp_granularities": ["word", "segment"],
        "chunking_strategy": {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 200, "prefix_padding_ms": 300},
        "keywords": [],
    }
    found = parse_params(flatten_json(body, LimitSettings()), SpeechTask.TRANSCRIBE)
    assert (found.model, found.stream, found.request.words, found.has_segments) == ("m", True, True, True)
    request = found.request
    assert (request.temperature, request.language, request.vad_threshold, request.vad_silence_s) == (0.5, None, 0.4, 0.2)
    assert found.list_ignored(Capabilities(temperature=True)) == []


def test_arrays_with_indexes() -> None:
    form = {"timestamp_granularities[0]": ["word"], "response_format": ["verbose_json"]}
    assert read_params(form).request.words
    assert read_params({"chunking_strategy[type]": ["auto"]}).request.vad_threshold is None


def test_an_audio_track_is_a_number_from_1_in_a_field_or_else_in_the_header() -> None:
    assert read_params().request.audio_track is None
    assert read_params(audio_track="2").request.audio_track == 2
    assert read_params(flatten_json({"audio_track": 3}, LimitSettings())).request.audio_track == 3
    assert parse_params({}, SpeechTask.TRANSCRIBE, audio_track=" 2 ").request.audio_track == 2
    assert parse_params({"audio_track": ["1"]}, SpeechTask.TRANSCRIBE, audio_track="2").request.audio_track == 1
    assert read_params(audio_track="2").list_ignored(Capabilities()) == []
    assert not need_same_decoding(read_params(audio_track="2"), read_params())


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "first", "²", "99999999999999999999", "1001", "[1]"])
def test_what_is_no_audio_track(value: str) -> None:
    error = get_refusal(audio_track=value)
    assert error.param == "audio_track"
    assert "counted from 1" in error.message


SHAPE = {
    "max_line_width": "37",
    "max_line_count": "3",
    "max_words_per_line": "5",
    "highlight_words": "true",
    "min_duration": "0.5",
    "max_duration": "6",
    "min_gap": "0.1",
    "max_characters_per_second": "15",
}


@pytest.mark.parametrize("response_format", ["srt", "vtt"])
def test_the_shape_of_subtitles(response_format: str) -> None:
    found = read_params(response_format=response_format, **SHAPE)
    assert found.shape == SubtitleRules(37, 3, 5, True, 0.5, 6.0, 0.1, 15.0)
    assert found.request.words_if_any
    assert not found.request.words, "models without word times answer, too"
    assert found.list_ignored(Capabilities()) == []
    assert found.extra == (), "servers behind models are not asked: it is done here"
    assert not read_params(response_format=response_format).request.words_if_any


def test_presets_and_defaults() -> None:
    assert read_params(response_format="srt").shape.is_unrestricted
    assert read_params(response_format="srt", subtitles="broadcast").shape == BROADCAST_RULES
    assert read_params(response_format="srt", subtitles="broadcast", max_duration="0").shape == replace(
        BROADCAST_RULES, max_duration=0
    )
    short = replace(BROADCAST_RULES, min_duration=0.5, max_duration=0.5)
    assert read_params(response_format="srt", subtitles="broadcast", max_duration="0.5").shape == short
    assert get_refusal(response_format="srt", min_duration="2", max_duration="1").param == "min_duration"
    configured = parse_params({"response_format": ["vtt"], "max_line_count": ["1"]}, SpeechTask.TRANSCRIBE, shape=BROADCAST_RULES)
    assert configured.shape == replace(BROADCAST_RULES, max_line_count=1)
    off = parse_params({"response_format": ["vtt"], "subtitles": ["none"]}, SpeechTask.TRANSCRIBE, shape=BROADCAST_RULES)
    assert off.shape.is_unrestricted
    assert not off.request.words_if_any


@pytest.mark.parametrize("response_format", ["json", "text", "verbose_json"])
def test_a_shape_for_a_format_without_cues_is_named(response_format: str) -> None:
    found = read_params(response_format=response_format, subtitles="broadcast", max_line_width="20")
    assert found.list_ignored(Capabilities()) == ["subtitles", "max_line_width"]
    assert not found.request.words_if_any
    assert read_params(response_format=response_format).list_ignored(Capabilities()) == []
    streamed = read_params(response_format="srt", stream="true", **SHAPE)
    assert set(streamed.list_ignored(Capabilities())) == {"response_format", *SHAPE}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_line_width", "wide"),
        ("max_line_width", "-1"),
        ("max_line_width", "42.5"),
        ("max_line_count", "1e9"),
        ("max_words_per_line", "nan"),
        ("highlight_words", "perhaps"),
        ("min_duration", "-0.1"),
        ("max_duration", "inf"),
        ("min_gap", "2s"),
        ("max_characters_per_second", "fast"),
        ("subtitles", "netflix"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(name: str, value: str) -> None:
    error = get_refusal(response_format="srt", **{name: value})
    assert error.param == name
    assert name in error.message


def test_durations_that_exclude_each_other_are_refused() -> None:
    assert get_refusal(response_format="srt", min_duration="3", max_duration="2").param == "min_duration"


def test_many_languages_in_one_recording() -> None:
    found = read_params(multilingual="true")
    assert found.request.multilingual
    assert found.list_ignored(Capabilities(detects_language=True)) == []
    assert found.list_ignored(Capabilities()) == ["multilingual"]
    assert found.list_ignored(Capabilities(), is_external=True) == [], "it got the field"
    assert ("multilingual", "true") in found.extra
    assert not read_params(multilingual="true", language="de").request.multilingual, "who names a language means it"
    assert get_refusal(multilingual="maybe").param == "multilingual"
