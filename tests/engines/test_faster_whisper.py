"""The main engine, with a tiny Whisper that hears."""

from __future__ import annotations

import itertools
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from eardrum.engines.base import EngineResult, RequestContext, TuningPostponed, Window
from eardrum.engines.faster_whisper import FasterWhisper
from eardrum.engines.shared import ctranslate2_whisper
from eardrum.engines.shared.ctranslate2_whisper import FRAMES, CTranslate2Whisper, DecodingTimer, _pad_features
from eardrum.errors import ModelLoadError
from eardrum.transcription import SAMPLE_RATE, SpeechTask, TranscriptionRequest
from tests.models import build, faster_whisper, tiny_whisper
from tests.models.tiny_whisper import SpokenClip, get_clip, join_clips, load_clips
from tests.recordings import Samples, create_noise, create_silence

pytestmark = pytest.mark.slow

GERMAN = [c for c in load_clips() if c.language == "de"]


def create_window(samples: Samples, context: RequestContext | None = None, **request: object) -> Window:
    return Window(
        samples, 0.0, 1.0, (0.0, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request), context or RequestContext()
    )


def join_text(hearing: EngineResult) -> str:
    return " ".join(segment.text for segment in hearing.segments)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("faster_whisper", tmp_path_factory.mktemp("faster-whisper") / "hearing")


def load_engine(folder: Path, **options: object) -> FasterWhisper:
    return FasterWhisper.load(folder, FasterWhisper.Options(**options))


@pytest.fixture(scope="session")
def engine(folder: Path) -> FasterWhisper:
    return load_engine(folder, threads=1)  # beside other tests, threads that wait for each other use the processor up


@pytest.fixture(scope="session")
def single_results(engine: FasterWhisper) -> dict[str, EngineResult]:
    """Each clip heard by itself."""
    return {c.name: engine.transcribe([create_window(c.samples)])[0] for c in load_clips()}


@pytest.fixture
def decode_calls(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], float, list[list[int]]]]:
    """What the model was asked to decode: rows, temperature, prompts."""
    return record_decoding(engine, monkeypatch)


def record_decoding(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], float, list[list[int]]]]:
    asked: list[tuple[list[int], float, list[list[int]]]] = []
    model = engine._decoder._model
    decode = model.decode

    def recorded(encoded, rows, prompts, temperature):
        asked.append((list(rows), temperature, prompts))
        return decode(encoded, rows, prompts, temperature)

    monkeypatch.setattr(model, "decode", recorded)
    return asked


@pytest.mark.parametrize("one", load_clips(), ids=lambda c: c.name)
def test_every_clip_is_heard_right(single_results: dict[str, EngineResult], one: SpokenClip) -> None:
    heard = single_results[one.name]
    assert join_text(heard) == one.text
    assert heard.language == one.language
    (segment,) = heard.segments
    assert segment.start == pytest.approx(one.start, abs=0.25)
    assert segment.end == pytest.approx(one.end, abs=0.25)


def test_a_segment_says_how_sure_it_is(single_results: dict[str, EngineResult]) -> None:
    (segment,) = single_results["u02"].segments
    assert -0.3 < segment.avg_logprob < 0
    assert segment.no_speech_prob < 0.1
    assert 0.5 < segment.compression_ratio < 2.4
    assert segment.temperature == 0.0
    assert len(segment.tokens) > 5
    assert segment.words == []
    assert segment.token_logprobs == []


@pytest.mark.parametrize("compute_type", ["int8", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_batch_hears_what_each_window_alone_is_heard_as(
    folder: Path, single_results: dict[str, EngineResult], compute_type: str
) -> None:
    engine = load_engine(folder, compute_type=compute_type, threads=1)
    if compute_type == "float32":
        single_results = {c.name: engine.transcribe([create_window(c.samples)])[0] for c in load_clips()}
    together = [
        heard
        for half in (load_clips()[:8], load_clips()[8:])
        for heard in engine.transcribe([create_window(c.samples) for c in half])
    ]
    for one, heard in zip(load_clips(), together, strict=True):
        by_itself = single_results[one.name]
        assert (join_text(heard), heard.language) == (join_text(by_itself), by_itself.language) == (one.text, one.language)
        assert heard.segments[0].tokens == by_itself.segments[0].tokens
        assert heard.segments[0].avg_logprob == pytest.approx(by_itself.segments[0].avg_logprob, abs=1e-4)


def test_weights_in_float32_hear_the_same(tmp_path: Path) -> None:
    engine = load_engine(faster_whisper.build(tmp_path, "float32"), compute_type="default")
    assert join_text(engine.transcribe([create_window(get_clip("u18").samples)])[0]) == get_clip("u18").text


def test_german_is_translated(engine: FasterWhisper) -> None:
    heard = engine.transcribe([create_window(c.samples, task=SpeechTask.TRANSLATE) for c in GERMAN])
    assert [h.language for h in heard] == ["de"] * len(GERMAN)
    said = dict(zip([c.name for c in GERMAN], map(join_text, heard), strict=True))
    assert said["u03"] == "Five two zero eight."
    assert said["u07"] == "Five no please."
    assert said["u39"] == "Music stop."


def test_languages_and_tasks_mix_in_a_batch(engine: FasterWhisper, decode_calls: list) -> None:
    asked = [
        create_window(get_clip("u03").samples, task=SpeechTask.TRANSLATE, words=True),
        create_window(get_clip("u06").samples),
        create_window(get_clip("u15").samples, language="de", logprobs=True),
        create_window(get_clip("u30").samples, language="en", words=True),
    ]
    together = engine.transcribe(asked)
    assert [join_text(h) for h in together] == [
        "Five two zero eight.",
        "Set the volume up.",
        "Sechs fünf neun.",
        "Turn down the light.",
    ]
    assert [h.language for h in together] == ["de", "en", "de", "en"]
    assert [rows for rows, _, _ in decode_calls] == [[0, 1, 2, 3]], "one batch"
    for one, heard in zip(asked, together, strict=True):
        one.context.votes.clear()
        assert engine.transcribe([one])[0] == heard


def test_a_language_that_is_asked_for_is_not_detected(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._decoder._model, "detect_languages", None)
    asked = create_window(get_clip("u06").samples, language="de")
    assert engine.transcribe([asked])[0].language == "de"
    assert asked.context.votes == {}


def test_a_request_is_decoded_in_the_language_most_of_it_was(engine: FasterWhisper) -> None:
    context = RequestContext()
    for name in ("u03", "u07", "u15"):
        assert engine.transcribe([create_window(get_clip(name).samples, context)])[0].language == "de"
    seconds = sum(len(get_clip(name).samples) for name in ("u03", "u07", "u15")) / SAMPLE_RATE
    assert sum(context.votes.values()) == pytest.approx(seconds, rel=0.01)
    assert context.votes["de"] > 0.8 * seconds
    assert engine.transcribe([create_window(get_clip("u24").samples, context)])[0].language == "de", "one word does not turn it"
    assert engine.transcribe([create_window(get_clip("u24").samples)])[0].language == "en"


def test_languages_are_detected_until_enough_was_heard(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    context = RequestContext(votes={"de": 31.0})
    monkeypatch.setattr(engine._decoder._model, "detect_languages", None)
    assert engine.transcribe([create_window(get_clip("u06").samples, context)])[0].language == "de"


def test_a_language_that_follows_at_length_is_noticed(engine: FasterWhisper) -> None:
    context = RequestContext(votes={"de": 31.0}, unheard=15.0)
    assert engine.transcribe([create_window(get_clip("u06").samples, context)])[0].language == "de"
    assert context.votes["en"] == pytest.approx(15 + len(get_clip("u06").samples) / SAMPLE_RATE, rel=0.2), (
        "for what came before, too"
    )
    assert context.unheard == 0
    context.unheard = 25.0
    assert engine.transcribe([create_window(get_clip("u06").samples, context)])[0].language == "en"


def test_each_window_may_have_a_language_of_its_own(engine: FasterWhisper) -> None:
    context = RequestContext()
    names = ["u03", "u06", "u15", "u30"]
    heard = engine.transcribe([create_window(get_clip(name).samples, context, multilingual=True) for name in names])
    assert [h.language for h in heard] == ["de", "en", "de", "en"]
    assert [join_text(h) for h in heard] == [get_clip(name).text for name in names]
    (late,) = engine.transcribe([create_window(get_clip("u06").samples, RequestContext(votes={"de": 500.0}), multilingual=True)])
    assert late.language == "en"
    (named,) = engine.transcribe([create_window(get_clip("u06").samples, RequestContext(), multilingual=True, language="de")])
    assert named.language == "de"


def test_silence_has_no_say_in_the_language(engine: FasterWhisper) -> None:
    context = RequestContext()
    first, second = engine.transcribe(
        [create_window(create_silence(20), context), create_window(get_clip("u06").samples, context)]
    )
    assert (first.segments, first.language) == ([], "")
    assert join_text(engine.transcribe([create_window(get_clip("u06").samples, context)])[0]) == "Set the volume up."
    assert sum(context.votes.values()) == pytest.approx(2 * len(get_clip("u06").samples) / SAMPLE_RATE, rel=0.01)
    assert second.language in {"en", "de"}, "decided while the silence was still believed"


@pytest.mark.parametrize(
    "quiet", [create_silence(5), create_silence(0.01), np.zeros(1, np.float32), create_noise(3.0), create_silence(30)], ids=len
)
def test_silence_and_scraps_give_nothing(engine: FasterWhisper, quiet: Samples) -> None:
    heard = engine.transcribe([create_window(quiet), create_window(get_clip("u09").samples), create_window(quiet, words=True)])
    assert [join_text(h) for h in heard] == ["", get_clip("u09").text, ""]


def test_the_first_half_of_a_word_is_a_window_too(engine: FasterWhisper) -> None:
    scrap = get_clip("u06").samples[int(0.6 * SAMPLE_RATE) : int(0.75 * SAMPLE_RATE)]
    (heard,) = engine.transcribe([create_window(scrap, words=True, logprobs=True)])
    assert all(0 <= s.start <= s.end <= 0.15 for s in heard.segments)


LONG = ["u02", "u06", "u18", "u30", "u34", "u36"]


def test_several_utterances_in_a_window_are_segments(engine: FasterWhisper) -> None:
    samples = join_clips(LONG)
    (heard,) = engine.transcribe([create_window(samples, words=True)])
    assert [s.text for s in heard.segments] == [get_clip(name).text for name in LONG]
    at = 0.0
    for segment, name in zip(heard.segments, LONG, strict=True):
        assert segment.start == pytest.approx(at + get_clip(name).start, abs=0.35)
        assert segment.end == pytest.approx(at + get_clip(name).end, abs=0.35)
        assert [word.word for word in segment.words] == segment.text.split()
        at += len(get_clip(name).samples) / SAMPLE_RATE + 1.0


def test_words_ascend_within_their_segment(engine: FasterWhisper) -> None:
    for one in engine.transcribe([create_window(c.samples, words=True) for c in load_clips()]):
        for segment in one.segments:
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert segment.start <= times[0] <= times[-1] <= segment.end
            assert " ".join(word.word for word in segment.words) == segment.text
            assert all(0 < word.probability <= 1 for word in segment.words)


def test_the_tokens_of_a_segment_with_their_probabilities(engine: FasterWhisper) -> None:
    (segment,) = engine.transcribe([create_window(get_clip("u03").samples, logprobs=True)])[0].segments
    assert "".join(token.text for token in segment.token_logprobs).strip() == segment.text
    assert all(-5 < token.logprob <= 0 for token in segment.token_logprobs)
    assert segment.words == []
    mean = sum(token.logprob for token in segment.token_logprobs) / len(segment.token_logprobs)
    assert mean == pytest.approx(segment.avg_logprob, abs=0.3)


def break_off_rows(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the model break off after this much of each row, as a real one does now and then."""
    model = engine._decoder._model
    decode = model.decode
    end = model.special.times + round(seconds / 0.02)

    def shortened(*arguments):
        for found in decode(*arguments):
            kept = [token for token in found.tokens if token < model.special.times or token <= end]
            last = max(i for i, token in enumerate(kept) if token >= model.special.times)
            yield replace(found, tokens=[*kept[: last + 1], kept[last]])

    monkeypatch.setattr(model, "decode", lambda *arguments: list(shortened(*arguments)))


def test_a_row_that_breaks_off_goes_on_where_it_stopped(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = join_clips(LONG)
    (whole,) = engine.transcribe([create_window(samples, words=True)])
    break_off_rows(engine, monkeypatch, 7.0)
    rounds = record_decoding(engine, monkeypatch)
    german = get_clip("u03")
    heard, short = engine.transcribe(
        [create_window(samples, words=True), Window(german.samples, 0.0, 1.0, (german.start, german.end), TranscriptionRequest())]
    )
    assert join_text(short) == german.text
    assert [s.text for s in heard.segments] == [get_clip(name).text for name in LONG]
    assert [rows for rows, _, _ in rounds][:2] == [[0, 1], [0]], "only the row that broke off goes on"
    assert len(rounds) > 2
    for one, other in zip(heard.segments, whole.segments, strict=True):
        assert one.start == pytest.approx(other.start, abs=1.5), "no text begins later than 1 s into a row"
        assert one.end == pytest.approx(other.end, abs=0.2)
        assert [w.end for w in one.words] == pytest.approx([w.end for w in other.words], abs=0.5)


def record_contexts(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many rows the encoder was given each time, and of how many frames."""
    model, given = engine._model, list[tuple[int, int]]()
    encode = model.encode_short

    def recorded(features, frames):
        given.append((len(features), frames))
        return encode(features, frames)

    monkeypatch.setattr(model, "encode_short", recorded)
    return given


@pytest.fixture(scope="session")
def shortening(folder: Path) -> FasterWhisper:
    return load_engine(folder, threads=1, shorten_context=True)


def test_short_audio_is_encoded_with_less_silence(shortening: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = record_contexts(shortening, monkeypatch)
    one = get_clip("u03")
    (heard,) = shortening.transcribe([create_window(one.samples, words=True, logprobs=True)])
    assert contexts == [(1, 1500)]
    assert join_text(heard) == one.text
    assert heard.segments[0].start == pytest.approx(one.start, abs=0.25)
    assert heard.segments[0].words[-1].end == pytest.approx(one.end, abs=0.5)


def test_a_narrow_model_encodes_all_the_silence_unless_asked(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = record_contexts(engine, monkeypatch)
    engine.transcribe([create_window(get_clip("u03").samples)])
    assert contexts == [(1, FRAMES)]


@pytest.mark.parametrize("fault", [{"avg_logprob": -1.5}, {"no_speech_prob": 0.9, "avg_logprob": -1.5}, {"tokens": []}])
def test_text_in_doubt_is_decoded_again_with_all_the_silence(
    shortening: FasterWhisper, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    contexts = record_contexts(shortening, monkeypatch)
    model = shortening._model
    decode, calls = model.decode, list[float]()

    def doubtful_at_first(encoded, rows, prompts, temperature):
        calls.append(temperature)
        found = decode(encoded, rows, prompts, temperature)
        return [replace(found[0], **fault), *found[1:]] if len(calls) == 1 else found

    monkeypatch.setattr(model, "decode", doubtful_at_first)
    clips = [get_clip("u03"), get_clip("u06")]
    context = RequestContext()
    heard = shortening.transcribe([create_window(clip.samples, context) for clip in clips])
    assert [join_text(one) for one in heard] == [clip.text for clip in clips]
    assert contexts == [(2, 1500), (1, FRAMES)]
    assert calls == [0.0, 0.0]
    assert sum(context.votes.values()) == pytest.approx(sum(clip.samples.size for clip in clips) / SAMPLE_RATE, rel=0.1), "once"


@pytest.mark.parametrize("unheard", [19.0, 5.0])
def test_speech_without_a_vote_is_counted_once_where_text_is_decoded_again(
    shortening: FasterWhisper, monkeypatch: pytest.MonkeyPatch, unheard: float
) -> None:
    """19 s with a clip are enough for another vote, 5 s are not."""
    model = shortening._model
    decode, calls = model.decode, list[float]()

    def doubtful_at_first(encoded, rows, prompts, temperature):
        calls.append(temperature)
        found = decode(encoded, rows, prompts, temperature)
        return [replace(found[0], avg_logprob=-1.5)] if len(calls) == 1 else found

    monkeypatch.setattr(model, "decode", doubtful_at_first)
    clip = get_clip("u03")
    seconds = clip.samples.size / SAMPLE_RATE
    context = RequestContext({clip.language: 40.0}, unheard)
    (heard,) = shortening.transcribe([create_window(clip.samples, context)])
    assert (join_text(heard), len(calls)) == (clip.text, 2)
    voted = sum(context.votes.values()) - 40
    assert (voted, context.unheard) == pytest.approx(
        (unheard + seconds, 0) if unheard == 19 else (0, unheard + seconds), rel=0.05
    )


def test_a_language_in_doubt_is_looked_for_again_with_all_the_silence(
    shortening: FasterWhisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts, rounds = record_contexts(shortening, monkeypatch), record_decoding(shortening, monkeypatch)
    model = shortening._model
    detect, looked = model.detect_languages, list[int]()

    def doubt_at_first(encoded, rows):
        looked.append(len(rows))
        found = detect(encoded, rows)
        return [{"fr": 0.4, "de": 0.3, "en": 0.3}, *found[1:]] if len(looked) == 1 else found

    monkeypatch.setattr(model, "detect_languages", doubt_at_first)
    clips = [get_clip("u03"), get_clip("u06")]
    request_contexts = [RequestContext(), RequestContext()]
    heard = shortening.transcribe(list(map(create_window, (clip.samples for clip in clips), request_contexts)))
    assert [join_text(one) for one in heard] == [clip.text for clip in clips]
    assert contexts == [(2, 1500), (1, FRAMES)]
    assert (looked, [rows for rows, _, _ in rounds]) == ([2, 1], [[1], [0]])
    assert request_contexts[0].votes["fr"] == pytest.approx(0, abs=1e-9)


def test_what_is_said_twice_is_believed_without_all_the_silence(
    shortening: FasterWhisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = record_contexts(shortening, monkeypatch)
    (heard,) = shortening.transcribe([create_window(join_clips(["u09", "u09"]))])
    assert join_text(heard) == f"{get_clip('u09').text} {get_clip('u09').text}"
    assert contexts == [(1, 1500)]


def test_nothing_is_decoded_beyond_the_end_of_speech(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off_rows(engine, monkeypatch, 3.2)
    rounds = record_decoding(engine, monkeypatch)
    samples = np.concatenate([get_clip("u02").samples, create_silence(20)])
    asked = Window(samples, 0.0, 1.0, (0.5, 3.2), TranscriptionRequest())
    assert join_text(engine.transcribe([asked])[0]) == get_clip("u02").text
    assert len(rounds) == 1


def test_a_model_that_does_not_come_forward_is_not_asked_again(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine._decoder._model
    decode = model.decode

    def stuck(*arguments):
        first = model.special.times
        return [replace(found, tokens=[first, 1, first, first, *found.tokens[1:-1]]) for found in decode(*arguments)]

    monkeypatch.setattr(model, "decode", stuck)
    rounds = record_decoding(engine, monkeypatch)
    (heard,) = engine.transcribe([create_window(get_clip("u06").samples)])
    assert "Set the volume up" in join_text(heard)
    assert len(rounds) == 1


def test_only_doubtful_rows_are_tried_at_higher_temperatures(
    folder: Path, single_results: dict[str, EngineResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    sureness = {name: heard.segments[0].avg_logprob for name, heard in single_results.items()}
    unsure, *_, sure = sorted(sureness, key=sureness.__getitem__)
    threshold = (sureness[unsure] + sureness[sure]) / 2
    engine = load_engine(folder, log_prob_threshold=threshold, no_speech_threshold=None, temperatures=(0.0, 0.2, 0.4))
    rounds = record_decoding(engine, monkeypatch)
    heard = engine.transcribe([create_window(get_clip(name).samples) for name in (sure, unsure, sure)])
    assert join_text(heard[0]) == join_text(heard[2]) == get_clip(sure).text
    assert [(rows, temperature) for rows, temperature, _ in rounds][:2] == [([0, 1, 2], 0.0), ([1], 0.2)]
    assert heard[0].segments[0].temperature == heard[2].segments[0].temperature == 0.0


def test_the_best_try_is_kept_when_none_is_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(folder, log_prob_threshold=0.0, no_speech_threshold=None)
    rounds = record_decoding(engine, monkeypatch)
    (heard,) = engine.transcribe([create_window(get_clip("u06").samples)])
    assert [temperature for _, temperature, _ in rounds] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert join_text(heard) == "Set the volume up."


def test_repetition_is_doubtful(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(folder, compression_ratio_threshold=0.1, temperatures=(0.0, 0.2), beam_size=1, best_of=1)
    rounds = record_decoding(engine, monkeypatch)
    engine.transcribe([create_window(get_clip("u06").samples)])
    assert [temperature for _, temperature, _ in rounds] == [0.0, 0.2]


def test_a_requests_temperature_is_the_first_to_be_tried(engine: FasterWhisper, decode_calls: list) -> None:
    heard = engine.transcribe([create_window(get_clip("u06").samples, temperature=0.1), create_window(get_clip("u09").samples)])
    assert sorted((temperature, rows) for rows, temperature, _ in decode_calls) == [(0.0, [1]), (0.1, [0])]
    assert [join_text(h) for h in heard] == [get_clip("u06").text, get_clip("u09").text]
    assert heard[0].segments[0].temperature == 0.1


def test_prompt_and_hotwords_are_told_to_the_model(engine: FasterWhisper, decode_calls: list) -> None:
    model = engine._decoder._model
    asked = [
        create_window(get_clip("u06").samples, prompt="Please stop."),
        create_window(get_clip("u09").samples, hotwords=("kitchen", "music", "light")),
        create_window(get_clip("u18").samples),
    ]
    assert len({engine.batch_key(w) for w in asked}) == 3, "the batcher keeps them apart"
    heard = engine.transcribe(asked)
    assert len(decode_calls) == 3, "and if it did not, the engine would"
    told = {rows[0]: prompts[0] for rows, _, prompts in decode_calls}
    start = tiny_whisper.START
    assert told[0] == [tiny_whisper.START_OF_PREVIOUS, *model.encode_text(" Please stop."), start, *told[0][-2:]]
    assert told[1][: told[1].index(start)] == [tiny_whisper.START_OF_PREVIOUS, *model.encode_text(" kitchen, music, light")]
    assert told[2][0] == start
    assert join_text(heard[2]) == get_clip("u18").text
    assert all(h.language == "en" for h in heard)


def test_a_long_prompt_is_cut_from_the_left(engine: FasterWhisper, decode_calls: list) -> None:
    engine.transcribe([create_window(get_clip("u06").samples, prompt="please " * 400 + "stop")])
    ((_, _, (prompt,)),) = decode_calls
    before = prompt[: prompt.index(tiny_whisper.START)]
    assert len(before) == 224
    assert engine._decoder._model.decode_text(before[1:]).endswith("please stop")


def test_a_prompt_of_the_models_own_is_for_requests_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(folder, prompt="Hello computer.")
    rounds = record_decoding(engine, monkeypatch)
    engine.transcribe([create_window(get_clip("u06").samples)])
    engine.transcribe([create_window(get_clip("u06").samples, prompt="Music.")])
    texts = [engine._decoder._model.decode_text(prompts[0][: prompts[0].index(tiny_whisper.START)]) for _, _, prompts in rounds]
    assert texts == [" Hello computer.", " Music."]


def test_previous_text_is_told_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(folder, condition_on_previous_text=True)
    assert engine.sequential
    rounds = record_decoding(engine, monkeypatch)
    context = RequestContext()
    engine.transcribe([create_window(get_clip("u06").samples, context)])
    assert context.text == " Set the volume up."
    engine.transcribe([create_window(get_clip("u09").samples, context)])
    assert rounds[0][2][0][0] == tiny_whisper.START
    second = rounds[1][2][0]
    said = engine._decoder._model.encode_text(" Set the volume up.")
    assert second[: second.index(tiny_whisper.START)] == [tiny_whisper.START_OF_PREVIOUS, *said]
    assert context.text.startswith(" Set the volume up. ")


def test_previous_text_is_forgotten_after_much_doubt(folder: Path) -> None:
    engine = load_engine(folder, condition_on_previous_text=True, log_prob_threshold=0.0, no_speech_threshold=None)
    context = RequestContext(text=" Hello.")
    engine.transcribe([create_window(get_clip("u06").samples, context)])
    assert context.text == ""


def test_previous_text_is_not_told_otherwise(engine: FasterWhisper, decode_calls: list) -> None:
    context = RequestContext(text=" Hello.")
    assert not engine.sequential
    engine.transcribe([create_window(get_clip("u06").samples, context)])
    assert decode_calls[0][2][0][0] == tiny_whisper.START
    assert context.text == " Hello."


def test_a_cancelled_window_is_given_up_between_steps(
    engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch, decode_calls: list
) -> None:
    gone, stays, never = (create_window(get_clip(n).samples, words=True) for n in ("u02", "u06", "u09"))
    never.cancelled = True
    model = engine._decoder._model
    detect, align = model.detect_languages, model.align
    aligned: list[list[int]] = []

    def cancelling(*arguments):
        gone.cancelled = True
        return detect(*arguments)

    def recorded(encoded, rows, *rest):
        aligned.append(list(rows))
        return align(encoded, rows, *rest)

    monkeypatch.setattr(model, "detect_languages", cancelling)
    monkeypatch.setattr(model, "align", recorded)
    heard = engine.transcribe([gone, stays, never])
    assert heard[0] == heard[2] == EngineResult()
    assert join_text(heard[1]) == "Set the volume up."
    assert [rows for rows, _, _ in decode_calls] == [[1]]
    assert aligned == [[1]]


def test_a_window_cancelled_while_it_is_decoded_is_not_heard(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine._decoder._model
    decode = model.decode
    gone = create_window(get_clip("u06").samples)

    def cancelling(*arguments):
        gone.cancelled = True
        return decode(*arguments)

    monkeypatch.setattr(model, "decode", cancelling)
    assert engine.transcribe([gone]) == [EngineResult()]


def test_what_the_model_cannot_do_is_refused(engine: FasterWhisper) -> None:
    odd = create_window(get_clip("u06").samples, language="yue")
    refusal = engine.refusal(odd.request)
    assert refusal
    assert "(yue)" in refusal.message


def test_capabilities_are_those_of_the_weights(engine: FasterWhisper) -> None:
    assert engine.capabilities.languages == tuple(tiny_whisper.LANGUAGES)
    assert engine.capabilities.detects_language
    assert FasterWhisper.capabilities.languages == (), "a loaded model changed the class"


def test_an_english_model_neither_detects_nor_translates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(faster_whisper.build_english(tmp_path))
    assert engine.capabilities.languages == ("en",)
    assert not engine.capabilities.detects_language
    rounds = record_decoding(engine, monkeypatch)
    (heard,) = engine.transcribe([create_window(get_clip("u06").samples, words=True, prompt="Hello.")])
    special = engine._decoder._model.special
    assert (special.start, special.previous) == (tiny_whisper.START - 1, tiny_whisper.START_OF_PREVIOUS - 1)
    assert rounds[0][2] == [[special.previous, *engine._decoder._model.encode_text(" Hello."), special.start]]
    assert heard.language in {"en", ""}
    for wish in ({"language": "de"}, {"task": SpeechTask.TRANSLATE}):
        assert engine.refusal(create_window(get_clip("u06").samples, **wish).request)


def test_workers_decode_side_by_side(folder: Path) -> None:
    assert load_engine(folder, workers=2).parallel == 2
    assert load_engine(folder, threads=1).parallel == 1


def test_cores_are_shared_out_by_timing_where_nobody_says_how(folder: Path) -> None:
    timed = load_engine(folder)
    assert (timed.can_be_tuned, timed.measured) == (True, {})
    claims: list[tuple[float, int]] = []
    timed.tune(lambda seconds, memory: claims.append((seconds, memory)))
    threads, workers = timed.measured["threads"], timed.measured["workers"]
    assert (1 <= threads * workers <= len(os.sched_getaffinity(0)), workers) == (True, timed.parallel)
    assert max(memory for _, memory in claims) >= (folder / "model.bin").stat().st_size
    timed.tune(lambda seconds, memory: None)  # again, as after a disturbed measurement
    assert timed.measured["workers"] == timed.parallel
    assert join_text(timed.transcribe([create_window(get_clip("u15").samples)])[0]) == get_clip("u15").text
    assert load_engine(folder, **timed.measured).parallel == timed.parallel
    for said in ({"threads": 1}, {"workers": 1}, {"compute_type": "float32"}):
        assert not load_engine(folder, **said).can_be_tuned


def test_other_threads_take_over_from_those_of_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2_whisper, "count_usable_cores", lambda: 4)
    engine = load_engine(folder)
    assert engine.parallel == 2
    monkeypatch.setattr(ctranslate2_whisper, "choose_thread_count", lambda cores, seconds: seconds(1) and 1)
    before = engine._model._model
    with pytest.raises(TuningPostponed):
        engine.tune(postpone)
    assert engine._model._model is before
    engine.tune(lambda seconds, memory: None)
    assert (engine.parallel, engine.measured) == (4, {"threads": 1, "workers": 4})
    assert join_text(engine.transcribe([create_window(get_clip("u15").samples)])[0]) == get_clip("u15").text


def postpone(seconds: float, memory: int) -> None:
    raise TuningPostponed(10.0)


@pytest.fixture
def model_copy(folder: Path, tmp_path: Path) -> Path:
    """The model in a folder of its own; each file a link until it is replaced."""
    copy = tmp_path / "copied"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def get_load_error(source: Path, **options: object) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_engine(source, **options)
    return caught.value.message


def check_options(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_bytes()) | changes
    replace_file(folder / "config.json", json.dumps(config).encode())


def test_languages_are_detected_though_the_converter_left_them_out(model_copy: Path) -> None:
    check_options(model_copy, lang_ids=[])
    assert load_engine(model_copy).transcribe([create_window(get_clip("u15").samples)])[0].language == "de"


def test_a_model_without_alignment_has_no_words(model_copy: Path) -> None:
    check_options(model_copy, alignment_heads=[])
    engine = load_engine(model_copy)
    assert not engine.capabilities.words
    assert not engine.capabilities.logprobs
    assert join_text(engine.transcribe([create_window(get_clip("u15").samples)])[0]) == get_clip("u15").text
    refusal = engine.refusal(create_window(get_clip("u15").samples, words=True).request)
    assert refusal
    assert "alignment_heads" in refusal.message


def test_a_vocabulary_as_older_converters_wrote_it(model_copy: Path) -> None:
    tokens = json.loads((model_copy / "vocabulary.json").read_bytes())
    (model_copy / "vocabulary.json").unlink()
    (model_copy / "vocabulary.txt").write_text("\n".join(tokens), encoding="utf-8")
    assert join_text(load_engine(model_copy).transcribe([create_window(get_clip("u15").samples)])[0]) == get_clip("u15").text


def test_features_need_no_file(model_copy: Path) -> None:
    (model_copy / "preprocessor_config.json").unlink()
    assert join_text(load_engine(model_copy).transcribe([create_window(get_clip("u15").samples)])[0]) == get_clip("u15").text


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_a_missing_file_is_named(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    message = get_load_error(model_copy)
    assert f"{name} is missing" in message
    assert str(model_copy) in message


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_file_is_named(model_copy: Path, name: str, keep: float) -> None:
    data = (model_copy / name).read_bytes()
    replace_file(model_copy / name, data[: int(keep * len(data) if keep < 1 else keep)])
    assert name in get_load_error(model_copy)


@pytest.mark.parametrize(
    "foreign",
    [b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n", b"GGUF" + bytes(1000)],
)
def test_weights_of_another_kind_are_named(model_copy: Path, foreign: bytes) -> None:
    replace_file(model_copy / "model.bin", foreign)
    assert "model.bin" in get_load_error(model_copy)


def test_weights_of_another_architecture_are_named(model_copy: Path) -> None:
    replace_file(model_copy / "model.bin", (model_copy / "model.bin").read_bytes().replace(b"WhisperSpec", b"ParrotsSpec", 1))
    assert "model.bin" in get_load_error(model_copy)


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json"])
def test_json_of_another_kind_is_named(model_copy: Path, name: str) -> None:
    replace_file(model_copy / name, b'"text"')
    assert name in get_load_error(model_copy)


def test_a_tokenizer_that_is_not_whispers_is_named(model_copy: Path) -> None:
    plain = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    replace_file(model_copy / "tokenizer.json", json.dumps(plain).encode())
    assert "tokenizer.json is not Whisper's" in get_load_error(model_copy)


def test_a_vocabulary_of_another_model_is_named(model_copy: Path) -> None:
    replace_file(model_copy / "vocabulary.json", json.dumps(["a"] * 51865).encode())
    message = get_load_error(model_copy)
    assert "tokenizer.json" in message
    assert "vocabulary" in message


def test_a_source_that_is_no_folder_is_named(folder: Path, tmp_path: Path) -> None:
    assert "not a folder" in get_load_error(folder / "model.bin")
    assert str(tmp_path / "none") in get_load_error(tmp_path / "none")


def test_a_compute_type_the_device_lacks_is_told_what_there_is(folder: Path) -> None:
    message = get_load_error(folder, compute_type="float17", device="cpu")
    assert "'float17'" in message
    assert "float32" in message


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    assert "device_index 7" in get_load_error(folder, device="cpu", device_index=[7])


def test_cuda_without_a_gpu_is_refused(folder: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    if ctranslate2.get_cuda_device_count():
        pytest.skip("there is a GPU")
    assert "CTranslate2 cannot use an NVIDIA GPU here" in get_load_error(folder, device="cuda")


def test_options_nobody_knows_are_refused() -> None:
    with pytest.raises(ValidationError):
        FasterWhisper.Options(beams=5)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        FasterWhisper.Options(beam_size=0)


@pytest.mark.parametrize("size", [1, 159, 160, 38_560, 38_599, 30 * SAMPLE_RATE - 1, 30 * SAMPLE_RATE, 40 * SAMPLE_RATE])
def test_features_are_those_of_audio_filled_up_with_silence(engine: FasterWhisper, size: int) -> None:
    model = engine._decoder._model
    assert isinstance(model, CTranslate2Whisper)
    samples = np.resize(get_clip("u06").samples, size)
    whole = np.pad(samples, (0, max(0, 30 * SAMPLE_RATE - size)))[: 30 * SAMPLE_RATE]
    found = _pad_features(model.extract_features(samples), FRAMES)
    assert found.shape == (80, 3000)
    assert np.allclose(found, model._extractor(whole, padding=0), atol=1e-5)


def test_two_threads_may_decode_at_once(folder: Path) -> None:
    engine = load_engine(folder)
    parts = [load_clips()[n::4] for n in range(4)]
    with ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(lambda part: engine.transcribe([create_window(c.samples, words=True) for c in part]), parts))
    assert [[join_text(h) for h in part] for part in heard] == [[c.text for c in part] for part in parts]


@pytest.mark.slow
def test_a_random_model_recites_as_many_tokens_as_asked(tmp_path: Path) -> None:
    engine = load_engine(faster_whisper.build_random(tmp_path, "tiny", tokens=20), beam_size=1)
    heard = engine.transcribe([create_window(create_noise(5.0)), create_window(get_clip("u06").samples)])
    for one in heard:
        (segment,) = one.segments
        assert len(segment.tokens) == 20
        assert segment.temperature == 0.0
        assert math.exp(segment.avg_logprob) > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"temperatures": [-1]},
        {"temperatures": []},
        {"beam_size": 100_000},
        {"best_of": 100_000},
        {"threads": 10_000},
        {"workers": 1000},
        {"suppress_tokens": [99_999_999]},
        {"device_index": 7},
    ],
)
def test_options_that_would_hang_crash_or_babble_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        FasterWhisper.Options(**options)


def test_a_prompt_that_spells_special_tokens_out_is_no_command(folder: Path) -> None:
    engine = FasterWhisper.load(folder, FasterWhisper.Options(compute_type="float32"))
    spoken = create_window(get_clip("u24").samples, prompt="<|endoftext|><|startoftranscript|>" * 300)
    assert join_text(engine.transcribe([spoken])[0]) == get_clip("u24").text


def test_flash_attention_is_not_for_a_cpu(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="flash_attention"):
        FasterWhisper.load(folder, FasterWhisper.Options(device="cpu", flash_attention=True))


@pytest.mark.parametrize(("compute_type", "together"), [("int8", False), ("float32", True), ("auto", False)])
def test_with_whole_numbers_on_a_cpu_only_files_are_batched(folder: Path, compute_type: str, together: bool) -> None:
    engine = FasterWhisper.load(folder, FasterWhisper.Options(device="cpu", compute_type=compute_type))
    assert engine.batches_clips is together
    assert bool(engine.measure_batch_size()) is not together, "the runner times the others"


def test_a_batch_is_timed_by_the_cpu_it_takes(engine: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, other work on the machine would decide."""
    now = itertools.count(1.0, 0.5)
    monkeypatch.setattr(ctranslate2_whisper, "time", SimpleNamespace(process_time=lambda: next(now)))
    model = engine._model
    timer = DecodingTimer(model._library, model._model, model.special, 5)
    # Every call takes 0.5 s by this clock: the encoder, the first token, and all tokens.
    assert timer.measure_window(1) == 1.0
    assert timer.measure_window(4) == 0.5 + 0.5 / 4
    monkeypatch.undo()
    assert engine.measure_batch_size() in {1, 4}
