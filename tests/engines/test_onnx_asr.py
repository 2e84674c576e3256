"""onnx-asr's real loading and decoding, with scripted models that hear tones."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx_asr.loader import create_asr_resolver
from onnx_asr.resolver import model_repos
from pydantic import ValidationError

from eardrum.engines import registry
from eardrum.engines.base import Engine, EngineResult, Window
from eardrum.engines.onnx_asr import OnnxAsr
from eardrum.engines.shared.onnx import KINDS, recognize_kind
from eardrum.errors import ModelLoadError
from eardrum.runner.__main__ import load_engine
from eardrum.transcription import SpeechTask, TranscriptionRequest
from tests.models import onnx_asr as scripted
from tests.models.onnx_asr import LEAD_S, SLOT_S

pytestmark = pytest.mark.slow


HELLO = ("▁hello", "▁world", ".", None, "▁good", "▁day", "?")
SAID = [HELLO, ("▁day", "▁hello"), (None,), ("▁good", None, None, "▁world", "▁day", "▁good", "▁day"), ("▁world",)]
TEXTS = [["hello world.", "good day?"], ["day hello"], [], ["good", "world day good day"], ["world"]]


def create_window(samples: np.ndarray, **request: object) -> Window:
    return Window(samples, 0.0, 1.0, (0.1, len(samples) / 16_000), TranscriptionRequest(**request))


def create_windows(**request: object) -> list[Window]:
    return [create_window(scripted.synthesize_speech(said, seed), **request) for seed, said in enumerate(SAID)]


def list_texts(hearing: EngineResult) -> list[str]:
    return [segment.text for segment in hearing.segments]


@pytest.fixture(scope="module", params=["ctc", "tdt"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxAsr:
    return OnnxAsr.load(scripted.build(tmp_path_factory.mktemp("scripted") / "m", request.param), OnnxAsr.Options(threads=1))


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> OnnxAsr:
    return OnnxAsr.load(scripted.build(tmp_path_factory.mktemp("scripted") / "m", "aed"), OnnxAsr.Options(threads=1))


def test_what_is_said_is_cut_after_sentences_and_in_pauses(engine: OnnxAsr) -> None:
    assert [list_texts(engine.transcribe([each])[0]) for each in create_windows()] == TEXTS


def test_words_lie_where_their_tones_do(engine: OnnxAsr) -> None:
    (heard,) = engine.transcribe([create_window(scripted.synthesize_speech(HELLO), words=True)])
    words = [word for segment in heard.segments for word in segment.words]
    assert [word.word for word in words] == ["hello", "world.", "good", "day?"]
    assert [word.start for word in words] == pytest.approx([LEAD_S + SLOT_S * slot for slot in (0, 1, 4, 5)], abs=0.1)
    assert all(0 < word.end - word.start <= 0.4 + 1e-9 for word in words)
    assert all(word.end <= following.start for word, following in pairwise(words))
    assert all(0.5 < word.probability <= 1 for word in words)
    assert [(s.start, s.end) for s in heard.segments] == [(words[0].start, words[1].end), (words[2].start, words[3].end)]


def test_words_and_tokens_come_only_when_asked_for(engine: OnnxAsr) -> None:
    plain, asked = (
        engine.transcribe([create_window(scripted.synthesize_speech(HELLO), logprobs=wish)])[0] for wish in (False, True)
    )
    assert all(not segment.words and not segment.token_logprobs for segment in plain.segments)
    for segment in asked.segments:
        assert "".join(token.text for token in segment.token_logprobs).strip() == segment.text
        average = sum(token.logprob for token in segment.token_logprobs) / len(segment.token_logprobs)
        assert segment.avg_logprob == pytest.approx(average)
        assert -1 < segment.avg_logprob < 0


@pytest.mark.parametrize("order", list(permutations(range(len(SAID))))[::17])
def test_rows_of_a_batch_are_those_of_their_windows_in_any_order(engine: OnnxAsr, order: tuple[int, ...]) -> None:
    together = create_windows(words=True, logprobs=True)
    alone = [engine.transcribe([each])[0] for each in together]
    for at, heard in zip(order, engine.transcribe([together[at] for at in order]), strict=True):
        assert list_texts(heard) == TEXTS[at]
        for one, other in zip(heard.segments, alone[at].segments, strict=True):
            assert one.words == pytest.approx(other.words) or [w.start for w in one.words] == [w.start for w in other.words]
            assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("samples", [0, 1, 100, 400, 7999])
def test_a_window_of_any_length_can_be_decoded(engine: OnnxAsr, samples: int) -> None:
    short, long = engine.transcribe(
        [create_window(scripted.synthesize_speech(HELLO)[:samples]), create_window(scripted.synthesize_speech(HELLO))]
    )
    assert all(0 <= segment.start <= segment.end <= samples / 16_000 for segment in short.segments)
    assert list_texts(long) == TEXTS[0]
    assert len(engine.transcribe([create_window(scripted.synthesize_speech(HELLO)[:samples])])) == 1


def test_the_kind_of_model_says_what_it_can_do(engine: OnnxAsr, canary: OnnxAsr) -> None:
    assert engine.capabilities == OnnxAsr.capabilities
    assert (canary.capabilities.words, canary.capabilities.logprobs, canary.capabilities.translate) == (False, False, True)
    assert set(canary.capabilities.languages) == {"en", "de"}


def test_canary_is_told_the_language_and_where_to_translate(canary: OnnxAsr) -> None:
    for wish, way, language in (
        ({}, "en>en", "en"),
        ({"language": "de"}, "de>de", "de"),
        ({"language": "de", "task": SpeechTask.TRANSLATE}, "de>en", "de"),
    ):
        heard = canary.transcribe([create_window(scripted.synthesize_speech(("▁hello", "▁world")), **wish)])[0]
        assert list_texts(heard) == [f"{way} hello world"]
        assert heard.language == language
        assert (heard.segments[0].start, heard.segments[0].end) == (0.1, pytest.approx(1.92))
        assert -1 < heard.segments[0].avg_logprob < 0


def test_windows_with_other_wishes_are_of_another_batch(engine: OnnxAsr, canary: OnnxAsr) -> None:
    def keys(of: OnnxAsr) -> int:
        wishes = ({}, {"language": "en"}, {"language": "de"}, {"language": "de", "task": SpeechTask.TRANSLATE}, {"words": True})
        return len({of.batch_key(create_window(scripted.synthesize_speech(HELLO), **wish)) for wish in wishes})

    assert (keys(engine), keys(canary)) == (1, 3)


def test_canary_does_not_guess_what_to_translate_from(canary: OnnxAsr, tmp_path: Path) -> None:
    refusal = canary.refusal(TranscriptionRequest(task=SpeechTask.TRANSLATE))
    assert refusal
    assert ("send the spoken one" in refusal.message, refusal.param) == (True, "language")
    german = OnnxAsr.load(scripted.build(tmp_path / "m", "aed"), OnnxAsr.Options(language="de"))
    assert german.capabilities.languages == ("de",)
    assert not german.refusal(TranscriptionRequest(task=SpeechTask.TRANSLATE))
    assert list_texts(
        german.transcribe([create_window(scripted.synthesize_speech(HELLO[:2]), task=SpeechTask.TRANSLATE)])[0]
    ) == ["de>en hello world"]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_canarys_rows_end_one_by_one(canary: OnnxAsr, order: list[int]) -> None:
    """Past its end the scripted decoder says what the next slots hold, as a real one may say anything."""
    said = [("▁hello", None, "▁world"), ("▁good", "▁day", "▁good", "▁day", "."), (None, "▁day"), ("▁world", "?")]
    expected = ["en>en hello", "en>en good day good day.", "en>en", "en>en world?"]
    heard = canary.transcribe([create_window(scripted.synthesize_speech(said[at])) for at in order])
    assert [list_texts(each) for each in heard] == [[expected[at]] for at in order]


def test_canary_gives_up_a_window_nobody_wants(canary: OnnxAsr) -> None:
    gone, stays = create_window(scripted.synthesize_speech(HELLO[:3])), create_window(scripted.synthesize_speech(HELLO[:3]))
    gone.cancelled = True
    assert [list_texts(each) for each in canary.transcribe([gone, stays])] == [[], ["en>en hello world."]]


def get_load_error(source: Path, **options: object) -> str:
    with pytest.raises(ModelLoadError) as caught:
        OnnxAsr.load(source, OnnxAsr.Options(**options))
    assert str(source) in caught.value.message or options
    return caught.value.message


def test_a_directory_that_is_not_there_is_not_downloaded_into(tmp_path: Path) -> None:
    source = tmp_path / "nemo-parakeet-tdt-0.6b-v3"
    assert "There is no directory" in get_load_error(source)
    assert "There is no directory" in get_load_error(source, model_type="nemo-conformer-tdt")
    assert not source.exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ctc", "vocab.txt"), ("tdt", "decoder_joint-model.onnx"), ("tdt", "encoder-model.onnx"), ("aed", "decoder-model.onnx")],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_missing_file_is_named(tmp_path: Path, kind: str, name: str, config: bool) -> None:
    source = scripted.build(tmp_path / "m", kind, config=config)
    (source / name).unlink()
    assert f"{name} is missing" in get_load_error(source)


@pytest.mark.parametrize(
    ("kind", "name"), [("ctc", "model.onnx"), ("tdt", "decoder_joint-model.onnx"), ("aed", "decoder-model.onnx")]
)
@pytest.mark.parametrize("keep", [0, 300])
def test_a_truncated_graph_is_named(tmp_path: Path, kind: str, name: str, keep: int) -> None:
    source = scripted.build(tmp_path / "m", kind)
    (source / name).write_bytes((source / name).read_bytes()[:keep])
    assert name in get_load_error(source)


def test_a_graph_of_another_kind_is_noticed_on_loading(tmp_path: Path) -> None:
    source, other = scripted.build(tmp_path / "m", "ctc"), scripted.build(tmp_path / "o", "tdt")
    (source / "model.onnx").write_bytes((other / "encoder-model.onnx").read_bytes())
    assert "not those of one nemo-conformer-ctc" in get_load_error(source)


@pytest.mark.parametrize("kind", ["ctc", "tdt", "aed"])
@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_the_vocabulary_of_another_model_is_named(tmp_path: Path, kind: str, change: str) -> None:
    path = scripted.build(tmp_path / "m", kind) / "vocab.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    if change == "shorter":
        control = [line.split(" ")[0] for line in lines if line.startswith(("<", "▁ "))]
        lines = [f"{token} {id}" for id, token in enumerate(control)]
    else:
        lines += [f"▁more{id} {id}" for id in range(len(lines), len(lines) + 40)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    message = get_load_error(path.parent)
    assert "vocab.txt is of another model" in message
    assert str(len(lines)) in message


@pytest.mark.parametrize("text", ["", "no numbers at all\n", "word only"])
def test_a_damaged_vocabulary_cannot_be_loaded(tmp_path: Path, text: str) -> None:
    path = scripted.build(tmp_path / "m", "tdt") / "vocab.txt"
    path.write_text(text)
    assert "vocab" in get_load_error(path.parent)


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    source = scripted.build(tmp_path / "m", "ctc")
    for text in ("{", "[]"):
        (source / "config.json").write_text(text)
        assert "config.json is damaged" in get_load_error(source)


def test_graphs_in_several_quantizations(tmp_path: Path) -> None:
    source = scripted.build(tmp_path / "m", "tdt", quantization="int8")
    assert list_texts(OnnxAsr.load(source, OnnxAsr.Options()).transcribe(create_windows()[:1])[0]) == TEXTS[0]
    message = get_load_error(source, quantization="none")
    assert "'none', only int8" in message
    scripted.build(source, "tdt")
    assert "only none, int8" in get_load_error(source, quantization="int4")
    assert OnnxAsr.load(source, OnnxAsr.Options(quantization="int8")).capabilities.words
    (source / "encoder-model.int8.onnx").unlink()
    (source / "decoder_joint-model.onnx").unlink()
    assert "different quantizations" in get_load_error(source)


def test_transducers_with_and_without_durations_are_told_apart(tmp_path: Path) -> None:
    source = scripted.build(tmp_path / "m", "tdt", config=False)
    assert "model_type" in get_load_error(source)
    engine = OnnxAsr.load(source, OnnxAsr.Options(model_type="nemo-conformer-tdt"))
    assert list_texts(engine.transcribe(create_windows()[:1])[0]) == TEXTS[0]
    assert "of another model" in get_load_error(source, model_type="nemo-conformer-rnnt")
    assert "'nemo-tdt', only nemo-conformer-tdt" in get_load_error(source, model_type="nemo-tdt")


def test_wishes_that_cannot_be_met_are_refused(tmp_path: Path) -> None:
    source = scripted.build(tmp_path / "m", "ctc")
    assert "quantization" in get_load_error(source, compute_type="int8")
    assert "CUDA" in get_load_error(source, device="cuda")
    assert "pnc is for Canary only" in get_load_error(source, pnc=True)
    with pytest.raises(ValidationError):
        OnnxAsr.Options(beam_size=5)  # type: ignore[call-arg]


def test_the_language_is_an_options_or_the_folders(tmp_path: Path) -> None:
    for folder, options, language in (("conformer-ru", {}, "ru"), ("m", {"language": "uk"}, "uk"), ("m", {}, "")):
        engine = OnnxAsr.load(scripted.build(tmp_path / folder, "ctc"), OnnxAsr.Options(**options))
        assert engine.capabilities.languages == ((language,) if language else ())
        assert engine.transcribe(create_windows()[:1])[0].language == language


FILES = {
    "nemo-conformer-ctc": ("model.int8.onnx", "vocab.txt", "config.json"),
    "nemo-conformer-aed": ("encoder-model.onnx", "decoder-model.onnx", "vocab.txt"),
    "gigaam-v2-rnnt": ("v2_rnnt_encoder.onnx", "v2_rnnt_decoder.onnx", "v2_rnnt_joint.onnx", "v2_vocab.txt"),
    "gigaam-v3-ctc": ("v3_ctc.int8.onnx", "v3_vocab.txt", "config.json"),
    "gigaam-v3-e2e-ctc": ("v3_e2e_ctc.onnx", "v3_ctc.onnx", "v3_vocab.txt", "v3_e2e_ctc_vocab.txt", "config.json"),
    "gigaam-multilingual-ctc": ("multilingual_large_ctc.onnx", "multilingual_vocab.txt", "config.json"),
    "vosk": ("am-onnx/encoder.onnx", "am-onnx/decoder.onnx", "am-onnx/joiner.onnx", "lang/tokens.txt"),
    "whisper": ("onnx/encoder_model_q4.onnx", "onnx/decoder_model_merged_q4.onnx", "vocab.json", "added_tokens.json"),
    "whisper-ort": ("whisper-base_beamsearch.onnx", "vocab.json", "added_tokens.json"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_kind_is_known_by_its_files(tmp_path: Path, kind: str) -> None:
    for name in FILES[kind]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert recognize_kind(tmp_path).name == kind
    assert registry.find_card("onnx_asr").can_run(tmp_path)
    (tmp_path / FILES[kind][0]).unlink()
    with pytest.raises(ModelLoadError, match="is missing"):
        recognize_kind(tmp_path, kind)


def test_a_t_one_is_known_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"decoder_params": {"vocabulary": []}}))
    assert recognize_kind(tmp_path).name == "t-one-ctc"
    assert registry.find_card("onnx_asr").can_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert not registry.find_card("onnx_asr").can_run(tmp_path)


def test_the_kinds_are_those_of_the_library() -> None:
    for kind in KINDS:
        resolver = create_asr_resolver(kind.name, Path(__file__).parent)
        patterns = set(resolver.model_type._get_model_files().values())
        ours = {f"{graph}.onnx" for graph in kind.graphs} | set(kind.others)
        generic = {pattern.replace("v2", "v?").replace("v3", "v?") for pattern in ours} | ours
        assert patterns <= generic, kind.name


def test_names_mean_the_repositories_that_the_library_knows() -> None:
    card = registry.find_card("onnx_asr")
    not_in_its_table = {"alphacep/vosk-model-ru", "alphacep/vosk-model-small-ru", "t-tech/T-one"}
    for name, repository in card.names.items():
        theirs = model_repos.get(name) or model_repos.get(f"nemo-{name.removeprefix('nvidia/')}")
        assert repository == theirs or repository in not_in_its_table | set(model_repos.values()), name
        assert any(fnmatchcase(repository.lower(), pattern) for pattern in card.repositories), name
    assert card.find_capabilities("istupakov/parakeet-tdt-0.6b-v2-onnx").languages == ("en",)
    assert len(card.find_capabilities("nvidia/parakeet-tdt-0.6b-v3").languages) == 25
    assert len(card.find_capabilities("canary-1b-v2").languages) == 25
    assert card.find_capabilities("canary-1b-v2").translate
    assert card.find_capabilities("gigaam-v3-e2e-rnnt").languages == ("ru",)


def test_a_runner_loads_it(tmp_path: Path) -> None:
    source = scripted.build(tmp_path / "m", "ctc")
    engine = load_engine("onnx_asr", source, {"threads": 1})
    assert isinstance(engine, Engine)
    assert list_texts(engine.transcribe(create_windows()[:1])[0]) == TEXTS[0]


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA")
def test_it_runs_on_a_gpu(tmp_path: Path) -> None:
    engine = OnnxAsr.load(scripted.build(tmp_path / "m", "tdt"), OnnxAsr.Options(device="cuda"))
    assert [list_texts(each) for each in engine.transcribe(create_windows())] == TEXTS
