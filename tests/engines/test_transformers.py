"""The families of transformers: each with a tiny model of random weights, through the library's own loading and decoding.

What such a model hears means nothing; that it hears the same alone and in company does. The Whisper that really hears is in
`test_pytorch_whisper.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eardrum.engines import registry
from eardrum.engines.base import EngineResult, Window
from eardrum.engines.shared.transformers_base import split_sentences
from eardrum.engines.shared.transformers_families import FAMILIES, build_context, build_words
from eardrum.engines.transformers import Transformers
from eardrum.errors import ModelLoadError
from eardrum.transcription import SAMPLE_RATE, SpeechTask, TranscriptionRequest, Word
from tests.models import families
from tests.models.tiny_whisper import get_clip

NAMES = ("u02", "u03", "u06")
GENERATING = sorted(set(families.BUILDERS) - {"parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"})


def create_window(name: str, **request: Any) -> Window:
    samples = get_clip(name).samples
    return Window(samples, 0.0, 1.0, (0.1, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request))


def join_text(heard: EngineResult) -> str:
    return " ".join(segment.text for segment in heard.segments)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def get_source(models: Path, kind: str) -> Path:
    return models / kind if (models / kind).exists() else families.build(kind, models / kind)


def load_engine(folder: Path, **options: Any) -> Transformers:
    return Transformers.load(folder, Transformers.Options(threads=1, **options))


def get_load_error(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_engine(folder, **options)
    return caught.value.message


def test_the_card_and_the_table_agree() -> None:
    assert sorted(Transformers.model_types) == sorted(FAMILIES)
    assert sorted(families.BUILDERS) == sorted(set(FAMILIES) - {"whisper"}), "a family that no test runs"


@pytest.mark.parametrize(
    ("name", "abilities"),
    [
        ("nvidia/parakeet-tdt-0.6b-v3", {"words": True}),
        ("nvidia/parakeet-tdt-0.6b-v2", {"words": True, "languages": ("en",)}),
        ("nvidia/parakeet-ctc-1.1b", {"words": False, "languages": ("en",)}),
        ("nvidia/canary-1b-v2", {"translate": True}),
        ("Qwen/Qwen3-ASR-0.6B", {"detects_language": True, "prompt": True}),
        ("UsefulSensors/moonshine-base-ja", {"languages": ("ja",)}),
        ("openai/whisper-large-v3-turbo", {"translate": False, "words": True}),
        ("openai/whisper-base.en", {"languages": ("en",), "detects_language": False}),
    ],
)
def test_a_name_tells_what_a_model_can(name: str, abilities: dict[str, Any]) -> None:
    can = registry.find_card("transformers").find_capabilities(name)
    assert {ability: getattr(can, ability) for ability in abilities} == abilities


def test_parakeet_v3_knows_25_languages() -> None:
    can = registry.find_card("transformers").find_capabilities("nvidia/parakeet-tdt-0.6b-v3")
    assert len(set(can.languages)) == 25


def test_pieces_become_words_and_words_sentences() -> None:
    pieces = [(" Hel", 0.0, 0.2), ("lo", 0.2, 0.4), (".", 0.4, 0.4), (" You", 1.0, 1.2), (" there", 1.2, 9.9)]
    found = list(build_words(pieces, seconds=2.0))
    assert [(word.word, word.start, word.end) for word in found] == [
        (" Hello.", 0.0, 0.4),
        (" You", 1.0, 1.2),
        (" there", 1.2, 2.0),
    ]
    assert [(s.text, s.start, s.end) for s in split_sentences(found)] == [("Hello.", 0.0, 0.4), ("You there", 1.0, 2.0)]
    assert split_sentences([]) == []


def test_sentences_need_no_last_stop() -> None:
    assert [s.text for s in split_sentences([Word(" So", 0, 1, 1.0)])] == ["So"]


def test_prompt_and_hotwords_are_one_context() -> None:
    assert build_context(TranscriptionRequest(prompt="About ships.", hotwords=("Ahab", "Pequod"))) == "About ships. Ahab, Pequod"
    assert build_context(TranscriptionRequest()) == ""


@pytest.mark.torch
@pytest.mark.parametrize("kind", sorted(families.BUILDERS))
def test_a_window_is_heard_alone_as_in_company(models: Path, kind: str) -> None:
    engine = load_engine(get_source(models, kind))
    alone = [engine.transcribe([create_window(name, language="en")])[0] for name in NAMES]
    together = engine.transcribe([create_window(name, language="en") for name in NAMES])
    assert all(join_text(heard) for heard in alone), "a model that writes nothing proves nothing"
    assert [join_text(heard) for heard in together] == [join_text(heard) for heard in alone]
    assert [heard.language for heard in together] == ["en"] * 3
    for name, heard in zip(NAMES, together, strict=True):
        for segment in heard.segments:
            assert 0 <= segment.start <= segment.end <= len(get_clip(name).samples) / SAMPLE_RATE
            assert segment.words == segment.token_logprobs == []


@pytest.mark.torch
@pytest.mark.parametrize("kind", GENERATING)
def test_tokens_have_log_probabilities_if_asked_for(models: Path, kind: str) -> None:
    engine = load_engine(get_source(models, kind))
    assert engine.capabilities.logprobs
    (segment,) = engine.transcribe([create_window("u06", language="en", logprobs=True)])[0].segments
    assert segment.token_logprobs
    assert all(token.logprob < 0 for token in segment.token_logprobs)
    assert min(t.logprob for t in segment.token_logprobs) <= segment.avg_logprob <= max(t.logprob for t in segment.token_logprobs)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["parakeet_rnnt", "parakeet_tdt"])
def test_transducers_time_words(models: Path, kind: str) -> None:
    engine = load_engine(get_source(models, kind))
    assert engine.capabilities.words
    (heard,) = engine.transcribe([create_window("u02", language="en", words=True)])
    found = [word for segment in heard.segments for word in segment.words]
    assert "".join(word.word for word in found).split() == join_text(heard).split()
    starts = [word.start for word in found]
    assert len(starts) > 1
    assert starts == sorted(starts)


@pytest.mark.torch
@pytest.mark.parametrize("kind", GENERATING)
def test_a_temperature_samples(models: Path, kind: str) -> None:
    engine = load_engine(get_source(models, kind))
    (segment,) = engine.transcribe([create_window("u02", language="en", temperature=1.0)])[0].segments
    assert segment.temperature == 1.0
    assert engine.batch_key(create_window("u02", temperature=1.0)) != engine.batch_key(create_window("u02"))


@pytest.mark.torch
def test_beams_are_followed(models: Path) -> None:
    plain, beams = load_engine(get_source(models, "canary")), load_engine(get_source(models, "canary"), beam_size=3)
    (one,), (other,) = (e.transcribe([create_window("u06", language="en")])[0].segments for e in (plain, beams))
    assert other.avg_logprob > one.avg_logprob, "three beams found nothing likelier than one"
    assert not beams.capabilities.logprobs, "the library keeps no probabilities of a beam's tokens"


@pytest.mark.torch
def test_canary_is_told_both_languages(models: Path) -> None:
    engine = load_engine(get_source(models, "canary"))
    asked: list[tuple[list[str], list[str]]] = []
    request = engine._family.processor.apply_transcription_request

    def noted(audio: Any, *, source_language: list[str], target_language: list[str]) -> Any:
        asked.append((source_language, target_language))
        return request(audio, source_language=source_language, target_language=target_language)

    engine._family.processor.apply_transcription_request = noted
    engine.transcribe(
        [
            create_window("u02"),
            create_window("u03", language="de"),
            create_window("u03", language="de", task=SpeechTask.TRANSLATE),
        ]
    )
    assert asked == [(["en", "de", "de"], ["en", "de", "en"])]
    assert engine.capabilities.translate


@pytest.mark.torch
def test_qwen_says_the_language_it_heard(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(get_source(models, "qwen3_asr"))
    assert engine.capabilities.detects_language
    tokenizer = engine._family.processor.tokenizer
    monkeypatch.setattr(
        tokenizer, "batch_decode", lambda *_, **__: ["language German<asr_text>Hallo.", "language None<asr_text>"]
    )
    spoken, silent = engine.transcribe([create_window("u03"), create_window("u06")])
    assert (join_text(spoken), spoken.language) == ("Hallo.", "de")
    assert (join_text(silent), silent.language) == ("", "")


@pytest.mark.torch
def test_what_a_model_cannot_do_is_refused(models: Path) -> None:
    engine = load_engine(get_source(models, "cohere_asr"))
    for wish, complaint in (({"language": "cy"}, "(cy)"), ({"task": SpeechTask.TRANSLATE}, "does not translate")):
        refusal = engine.refusal(TranscriptionRequest(**wish))
        assert refusal
        assert complaint in refusal.message


@pytest.mark.torch
def test_a_model_of_many_languages_does_not_say_english_for_all(models: Path, tmp_path: Path) -> None:
    named = shutil.copytree(get_source(models, "parakeet_tdt"), tmp_path / "parakeet-tdt-0.6b-v3")
    engine = load_engine(named)
    assert len(engine.capabilities.languages) == 25
    assert engine.transcribe([create_window("u02")])[0].language == ""
    assert engine.transcribe([create_window("u02", language="de")])[0].language == "de"


@pytest.mark.torch
def test_cohere_takes_one_language_per_batch(models: Path) -> None:
    engine = load_engine(get_source(models, "cohere_asr"))
    assert engine.batch_key(create_window("u02", language="de")) != engine.batch_key(create_window("u02", language="en"))


@pytest.mark.torch
def test_cancelled_rows_end_at_once(models: Path) -> None:
    engine = load_engine(get_source(models, "moonshine"))
    windows = [create_window("u02"), create_window("u04")]
    windows[0].cancelled = True
    given_up, kept = engine.transcribe(windows)
    assert len(given_up.segments[0].tokens if given_up.segments else []) <= len(kept.segments[0].tokens)
    assert join_text(kept) == join_text(engine.transcribe([create_window("u04")])[0])


@pytest.mark.torch
def test_a_moonshines_language_is_its_options_or_its_names(models: Path, tmp_path: Path) -> None:
    named = shutil.copytree(get_source(models, "moonshine"), tmp_path / "moonshine-tiny-ja")
    assert load_engine(named).capabilities.languages == ("ja",)
    assert load_engine(named, language="uk").capabilities.languages == ("uk",)


@pytest.mark.torch
def test_number_formats_are_those_of_pytorch(models: Path) -> None:
    folder = get_source(models, "moonshine")
    assert join_text(load_engine(folder, compute_type="bfloat16").transcribe([create_window("u06")])[0])
    assert "compute_type 'int8'" in get_load_error(folder, compute_type="int8")


@pytest.mark.torch
def test_a_gpu_that_is_not_there_is_missed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "cannot use an NVIDIA GPU here" in get_load_error(get_source(models, "moonshine"), device="cuda")


@pytest.fixture
def model_copy(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(get_source(models, "moonshine"), tmp_path / "model")


@pytest.mark.torch
def test_damaged_weights_are_named(model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert str(model_copy) in get_load_error(model_copy)
    weights.unlink()
    assert "*.safetensors is missing" in get_load_error(model_copy)


@pytest.mark.torch
def test_weights_that_lack_arrays_are_refused(model_copy: Path) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps(config | {"decoder_num_hidden_layers": 2}))
    assert "lacks" in get_load_error(model_copy)


@pytest.mark.torch
def test_a_directory_without_its_tokenizer_is_refused(model_copy: Path) -> None:
    for path in model_copy.glob("tokenizer*"):
        path.unlink()
    assert str(model_copy) in get_load_error(model_copy)


@pytest.mark.parametrize(
    ("content", "complaint"), [('{"model_type": "bert"}', "'bert'"), ("{", "config.json"), ("[]", "config.json")]
)
def test_what_is_no_speech_model_is_refused_before_the_library_is_loaded(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert complaint in get_load_error(tmp_path)
