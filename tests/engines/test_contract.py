"""What the runner may count on, whatever the engine: one test over all of them, on models loaded by the real loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from eardrum.engines import registry
from eardrum.engines.base import Engine, EngineResult, RequestContext, Window
from eardrum.errors import EardrumError, ModelLoadError
from eardrum.languages import LANGUAGE_NAMES
from eardrum.runner.__main__ import load_engine
from eardrum.transcription import SAMPLE_RATE, Segment, TranscriptionRequest
from tests.models import build
from tests.models.tiny_whisper import load_clips
from tests.recordings import Samples, create_noise, create_silence

TORCH = {"openai_whisper", "transformers"}
"""Engines tested in a stage of their own."""

NO_FILES = {"openai_api", "nemo"}
"""Engines without weights that could be loaded here; their own tests say what is done instead."""

ENGINES = [
    pytest.param(name, marks=[pytest.mark.torch] if name in TORCH else [pytest.mark.slow])
    for name in registry.list_cards()
    if name not in NO_FILES and not registry.find_card(name).capabilities.speak
]

FASTER: dict[str, dict[str, object]] = {"ggml": {"flash_attention": True}}
"""Options of engines that take a third of the time with them. whisper.cpp estimates the times of words then."""

SPOKEN = [clip for clip in load_clips() if clip.language == "en"][:4]


@pytest.fixture(scope="module", params=ENGINES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(source: tuple[str, Path]) -> Engine:
    """The engine as all tests have it that ask for no times of words."""
    return load_alone(*source, **FASTER.get(source[0], {}))


@pytest.fixture(scope="module")
def default_engine(source: tuple[str, Path], engine: Engine) -> Engine:
    """The engine with the options that nobody sets."""
    return load_alone(*source) if source[0] in FASTER else engine


def load_alone(name: str, path: Path, **options: object) -> Engine:
    # Beside other tests, threads that wait for each other use the processor up: whisper.cpp's take ten times as long.
    loaded = load_engine(name, path, options if name in TORCH else {"threads": 1} | options)
    assert isinstance(loaded, Engine)
    return loaded


def create_window(samples: Samples, **request: object) -> Window:
    return Window(samples, 0.0, 1.0, (0.0, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request), RequestContext())


def join_text(hearing: EngineResult) -> str:
    return " ".join(segment.text for segment in hearing.segments)


def transcribe_one(engine: Engine, window: Window) -> EngineResult:
    (hearing,) = engine.transcribe([window])
    return hearing


def test_it_says_of_itself_what_the_runner_needs(default_engine: Engine) -> None:
    can = default_engine.capabilities
    assert can.max_batch >= 1
    assert 1 <= can.max_window_s <= 3600
    assert default_engine.parallel >= 1
    assert set(can.languages) <= set(LANGUAGE_NAMES)
    assert hash(default_engine.batch_key(create_window(create_silence(1.0)))) == hash(
        default_engine.batch_key(create_window(create_silence(2.0)))
    )


def test_times_lie_in_the_window_and_rise(engine: Engine) -> None:
    for spoken in SPOKEN:
        heard = create_window(spoken.samples)
        hearing = transcribe_one(engine, heard)
        assert join_text(hearing), "speech gives text"
        times = [time for segment in hearing.segments for time in (segment.start, segment.end)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= heard.seconds + 0.05
        assert all(segment.text == segment.text.strip() for segment in hearing.segments)
        assert all(segment.avg_logprob <= 0 for segment in hearing.segments)
        assert not hearing.language or not engine.capabilities.languages or hearing.language in engine.capabilities.languages


def test_a_batch_of_different_lengths_gives_a_hearing_each_in_order(engine: Engine) -> None:
    windows = [create_window(spoken.samples) for spoken in SPOKEN][: engine.capabilities.max_batch]
    windows.append(create_window(create_silence(0.5)))
    windows = windows[-engine.capabilities.max_batch :]
    if len({engine.batch_key(w) for w in windows}) > 1:
        pytest.fail("windows that ask for the same must be able to share a batch")
    hearings = engine.transcribe(windows)
    assert len(hearings) == len(windows)
    alone = [join_text(transcribe_one(engine, replace(w, context=RequestContext()))) for w in windows]
    assert [join_text(hearing) for hearing in hearings] == alone


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, 0.3, "max"])
def test_odd_lengths_are_no_error(engine: Engine, seconds: float | str) -> None:
    length = engine.capabilities.max_window_s if isinstance(seconds, str) else seconds
    length = min(length, 30.0)
    for samples in (create_silence(length), create_noise(length)):
        hearing = transcribe_one(engine, create_window(samples))
        assert all(0 <= s.start <= s.end <= length + 0.05 for s in hearing.segments)


def test_odd_samples_are_no_error(engine: Engine) -> None:
    loud = np.full(SAMPLE_RATE, 1.0, np.float32)
    for samples in (loud, -loud, np.tile(np.array([1, -1], np.float32), SAMPLE_RATE // 2)):
        assert isinstance(transcribe_one(engine, create_window(samples)), EngineResult)


def test_nobody_needs_a_cancelled_window(engine: Engine) -> None:
    wanted, unwanted = create_window(SPOKEN[0].samples), create_window(SPOKEN[1].samples)
    expected = join_text(transcribe_one(engine, create_window(SPOKEN[0].samples)))
    unwanted.cancelled = True
    batch = [wanted, unwanted][: max(engine.capabilities.max_batch, 1)]
    assert join_text(engine.transcribe(batch)[0]) == expected


def test_the_same_twice_is_the_same(engine: Engine) -> None:
    first, second = (transcribe_one(engine, create_window(SPOKEN[0].samples)) for _ in range(2))
    assert join_text(first) == join_text(second)


def test_words_are_in_their_segment(default_engine: Engine) -> None:
    if not default_engine.capabilities.words:
        assert not any(segment.words for segment in transcribe_one(default_engine, create_window(SPOKEN[0].samples)).segments)
        return
    for spoken in SPOKEN:
        segments = transcribe_one(default_engine, create_window(spoken.samples, words=True)).segments
        words = [word for segment in segments for word in segment.words]
        assert words
        assert [word.start for word in words] == sorted(word.start for word in words)
        assert all(word.start <= word.end for word in words)
        assert all(0 <= word.probability <= 1 for word in words)
        assert all(word.word == word.word.strip() for word in words)
        for segment in segments:
            assert all(segment.start - 0.5 <= word.start and word.end <= segment.end + 0.5 for word in segment.words)
            assert squeeze_text("".join(word.word for word in segment.words)) == squeeze_text(segment.text)


def squeeze_text(text: str) -> str:
    return "".join(text.split())


def test_token_probabilities_are_logarithms(default_engine: Engine) -> None:
    segments = transcribe_one(default_engine, create_window(SPOKEN[0].samples, logprobs=True)).segments
    tokens = [token for segment in segments for token in segment.token_logprobs]
    assert bool(tokens) == default_engine.capabilities.logprobs
    assert all(token.logprob <= 0 for token in tokens)


def test_a_hearing_crosses_the_wall(default_engine: Engine) -> None:
    spoken = create_window(SPOKEN[0].samples, words=default_engine.capabilities.words)
    for segment in transcribe_one(default_engine, spoken).segments:
        assert Segment.from_json(segment.to_json()) == segment


def test_a_language_it_knows_is_accepted_and_told(engine: Engine) -> None:
    language = (
        "en" if not engine.capabilities.languages or "en" in engine.capabilities.languages else engine.capabilities.languages[0]
    )
    assert transcribe_one(engine, create_window(SPOKEN[0].samples, language=language)).language in ("", language)


def test_an_empty_folder_is_no_model(source: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=str(tmp_path)):
        load_engine(source[0], tmp_path, {})


def test_a_folder_that_is_not_there_is_no_model(source: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        load_engine(source[0], tmp_path / "nowhere", {})


@pytest.mark.parametrize("file", ["largest", "smallest"])
def test_a_truncated_file_is_named(source: tuple[str, Path], tmp_path: Path, file: str) -> None:
    """Every file that the engine reads; one it does not read may be as short as it likes."""
    name, path = source
    copy = tmp_path / "copy"
    copy.mkdir()
    files = sorted((f for f in (path.iterdir() if path.is_dir() else [path])), key=lambda f: f.stat().st_size)
    for each in files:
        (copy / each.name).write_bytes(each.read_bytes())
    victim = copy / (files[-1] if file == "largest" else files[0]).name
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    error = get_load_error(name, copy if path.is_dir() else victim)
    assert error or file == "smallest", "half of the weights cannot be a model"
    assert not error or victim.name in error or str(copy) in error


def get_load_error(name: str, source: Path) -> str:
    """What the engine says against the model; empty if nothing."""
    try:
        load_engine(name, source, {})
    except EardrumError as error:
        return error.message
    return ""


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"compute_type": "int3"}, {"no_such_option": 1}])
def test_settings_it_cannot_follow_are_named(source: tuple[str, Path], options: dict[str, object]) -> None:
    if "device" in options and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has CUDA")
    with pytest.raises(EardrumError) as caught:
        load_engine(*source, options)
    ((setting, value),) = options.items()
    assert setting.split("_")[0] in caught.value.message or str(value) in caught.value.message
