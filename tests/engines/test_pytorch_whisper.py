"""The tiny Whisper that hears, in each engine that runs it on PyTorch."""

from __future__ import annotations

from typing import Any

import pytest

from eardrum.engines.base import Engine, EngineResult, RequestContext, Window
from eardrum.engines.openai_whisper import OpenAIWhisper
from eardrum.engines.transformers import Transformers
from eardrum.transcription import SAMPLE_RATE, SpeechTask, TranscriptionRequest
from tests.models import build, tiny_whisper
from tests.models.tiny_whisper import get_clip, join_clips, load_clips
from tests.recordings import Samples, create_noise, create_silence

pytestmark = pytest.mark.torch

KINDS: dict[str, tuple[type[Engine], str]] = {
    "openai-whisper": (OpenAIWhisper, "openai_whisper"),
    "openai-whisper from Hugging Face": (OpenAIWhisper, "transformers"),
    "transformers": (Transformers, "transformers"),
}
GERMAN = [c for c in load_clips() if c.language == "de"]


def create_window(samples: Samples, context: RequestContext | None = None, **request: Any) -> Window:
    return Window(
        samples, 0.0, 1.0, (0.0, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request), context or RequestContext()
    )


def join_text(heard: EngineResult) -> str:
    return " ".join(segment.text for segment in heard.segments)


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    cls, model = KINDS[request.param]
    source = build(model, tmp_path_factory.mktemp("whisper") / model)
    return cls.load(source, cls.Options.model_validate({"threads": 1}))


@pytest.fixture(scope="module")
def results(engine: Engine) -> dict[str, EngineResult]:
    """All clips, eight at a time."""
    found = [
        h for half in (load_clips()[:8], load_clips()[8:]) for h in engine.transcribe([create_window(c.samples) for c in half])
    ]
    return {c.name: h for c, h in zip(load_clips(), found, strict=True)}


def test_every_clip_is_heard_right(results: dict[str, EngineResult]) -> None:
    assert {name: join_text(h) for name, h in results.items()} == {c.name: c.text for c in load_clips()}
    assert {name: h.language for name, h in results.items()} == {c.name: c.language for c in load_clips()}


def test_segments_lie_where_the_speech_is(results: dict[str, EngineResult]) -> None:
    for c in load_clips():
        (segment,) = results[c.name].segments
        assert segment.start == pytest.approx(c.start, abs=0.25), c.name
        assert segment.end == pytest.approx(c.end, abs=0.25), c.name
        assert -0.3 < segment.avg_logprob < 0
        assert segment.temperature == 0.0
        assert segment.words == segment.token_logprobs == []


def test_a_clip_alone_is_heard_as_in_company(engine: Engine, results: dict[str, EngineResult]) -> None:
    for name in ("u03", "u04"):
        (alone,) = engine.transcribe([create_window(get_clip(name).samples)])
        (expected,) = results[name].segments
        assert alone.segments[0].tokens == expected.tokens
        assert alone.segments[0].avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-3)


def test_german_is_translated(engine: Engine) -> None:
    found = engine.transcribe([create_window(c.samples, task=SpeechTask.TRANSLATE) for c in GERMAN[:2]])
    assert [join_text(h) for h in found] == ["Five two zero eight.", "Five no please."]
    assert [h.language for h in found] == ["de", "de"]


def test_tasks_and_languages_mix_in_a_batch(engine: Engine) -> None:
    samples = get_clip("u07").samples
    wishes: list[dict[str, Any]] = [{}, {"language": "de", "task": SpeechTask.TRANSLATE}, {"language": "de"}]
    assert [join_text(h) for h in engine.transcribe([create_window(samples, **wish) for wish in wishes])] == [
        "Fünf nein bitte.",
        "Five no please.",
        "Fünf nein bitte.",
    ]


def test_words_have_times_and_probabilities(engine: Engine) -> None:
    spoken = get_clip("u04")
    (found,) = engine.transcribe([create_window(spoken.samples, words=True)])
    (segment,) = found.segments
    assert [word.word for word in segment.words] == spoken.text.split()
    times = [time for word in segment.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(type(time) is float for time in times)
    assert spoken.start - 0.2 <= times[0]
    assert times[-1] <= spoken.end + 0.2
    assert all(word.end - word.start > 0.1 for word in segment.words)
    assert all(0.5 < word.probability <= 1 for word in segment.words)


def test_words_of_letters_of_two_tokens_are_whole(engine: Engine) -> None:
    (found,) = engine.transcribe([create_window(get_clip("u03").samples, words=True)])
    assert [word.word for word in found.segments[0].words] == ["Fünf", "zwei", "null", "acht."]


def test_tokens_have_log_probabilities(engine: Engine) -> None:
    (found,) = engine.transcribe([create_window(get_clip("u30").samples, logprobs=True)])
    tokens = found.segments[0].token_logprobs
    assert "".join(token.text for token in tokens).strip() == get_clip("u30").text
    assert all(-2 < token.logprob <= 0 for token in tokens)


@pytest.mark.parametrize(
    "samples", [create_silence(3), create_noise(3), create_silence(0.05)], ids=["silence", "noise", "a blink"]
)
def test_where_nobody_speaks_nothing_is_heard(engine: Engine, samples: Samples) -> None:
    assert join_text(engine.transcribe([create_window(samples)])[0]) == ""


def test_several_utterances_become_segments(engine: Engine) -> None:
    (found,) = engine.transcribe([create_window(join_clips(["u02", "u04", "u06"]))])
    assert [segment.text for segment in found.segments] == [get_clip(name).text for name in ("u02", "u04", "u06")]
    times = [time for segment in found.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)


def test_the_windows_of_a_request_vote_on_its_language(engine: Engine) -> None:
    context = RequestContext()
    engine.transcribe([create_window(get_clip("u02").samples, context)])
    assert max(context.votes, key=context.votes.__getitem__) == "en"
    context.votes = {"de": 40.0}
    (found,) = engine.transcribe([create_window(get_clip("u02").samples, context)])
    assert found.language == "de", "30 s of German were not enough"


def test_a_prompt_is_put_before_the_text(engine: Engine) -> None:
    """It does this small model no good, but it must reach it: the same batch cannot hold windows without one."""
    wish, plain = create_window(get_clip("u24").samples, hotwords=("computer",)), create_window(get_clip("u24").samples)
    assert engine.batch_key(wish) != engine.batch_key(plain)
    with_prompt, without = (engine.transcribe([w])[0].segments[0] for w in (wish, plain))
    assert with_prompt.avg_logprob != without.avg_logprob


def test_a_temperature_is_used(engine: Engine) -> None:
    (found,) = engine.transcribe([create_window(get_clip("u18").samples, temperature=0.4)])
    assert found.segments[0].temperature >= 0.4
    assert engine.batch_key(create_window(create_silence(1), temperature=0.4)) != engine.batch_key(
        create_window(create_silence(1))
    )


def test_a_loaded_model_says_what_it_can(engine: Engine) -> None:
    can = engine.capabilities
    assert can.detects_language
    assert can.translate
    assert can.words
    assert can.logprobs
    assert can.fixed_window
    assert {"en", "de"} <= set(can.languages)
    assert len(can.languages) == len(tiny_whisper.LANGUAGES)


def test_cancelled_windows_are_given_up(engine: Engine) -> None:
    windows = [create_window(get_clip("u02").samples), create_window(get_clip("u04").samples)]
    windows[0].cancelled = True
    given_up, kept = engine.transcribe(windows)
    assert given_up.segments == []
    assert join_text(kept) == get_clip("u04").text
