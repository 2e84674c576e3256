"""What only OpenAI's own package does: its checkpoints, and directories of Hugging Face's in it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eardrum.engines import registry
from eardrum.engines.base import RequestContext, Window
from eardrum.engines.openai_whisper import OpenAIWhisper, to_openai_name
from eardrum.errors import ModelLoadError
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest
from tests.models import build, openai_whisper, tiny_whisper, transformers
from tests.models.tiny_whisper import get_clip


def load_engine(source: Path, **options: Any) -> OpenAIWhisper:
    return OpenAIWhisper.load(source, OpenAIWhisper.Options(threads=1, **options))


def get_load_error(source: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_engine(source, **options)
    return caught.value.message


def transcribe_clip(engine: OpenAIWhisper, name: str, context: RequestContext | None = None, **request: Any) -> str:
    samples = get_clip(name).samples
    window = Window(
        samples, 0.0, 1.0, (0.0, len(samples) / SAMPLE_RATE), TranscriptionRequest(**request), context or RequestContext()
    )
    return " ".join(segment.text for segment in engine.transcribe([window])[0].segments)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("openai_whisper", tmp_path_factory.mktemp("openai"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return build("transformers", tmp_path / "hf")


def test_names_of_arrays_map_one_to_one() -> None:
    _, arrays = tiny_whisper.load_weights()
    theirs = {transformers.to_transformers_name(name) for name in arrays}
    assert len(theirs) == len(arrays)
    assert {to_openai_name(f"model.{name}") for name in theirs} == set(arrays)
    assert "decoder.layers.2.encoder_attn.q_proj.weight" in theirs


def test_the_card_tells_checkpoints_from_directories_of_other_models(tmp_path: Path) -> None:
    card = registry.find_card("openai_whisper")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "small.pt").touch()
    assert card.can_run(tmp_path / "a"), "a checkpoint has no config.json to say its type in"
    for kind, runs in (("whisper", True), ("parakeet_ctc", False)):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "model.safetensors").touch()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        assert card.can_run(folder) is runs
    assert not card.can_run(tmp_path)


@pytest.mark.torch
def test_a_directory_with_a_checkpoint_is_a_source(checkpoint: Path) -> None:
    assert transcribe_clip(load_engine(checkpoint.parent), "u24") == get_clip("u24").text


@pytest.mark.torch
def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    source = transformers.build(tmp_path, shards=3)
    assert transcribe_clip(load_engine(source), "u24") == get_clip("u24").text
    next(source.glob("model-00002*")).unlink()
    assert "model-00002-of-00003.safetensors is missing" in get_load_error(source)


@pytest.mark.torch
def test_what_was_said_before_is_told_if_wished(checkpoint: Path) -> None:
    engine, context = load_engine(checkpoint, condition_on_previous_text=True), RequestContext()
    assert engine.sequential
    transcribe_clip(engine, "u02", context)
    assert context.text.strip() == get_clip("u02").text
    assert not load_engine(checkpoint).sequential


@pytest.mark.torch
def test_beams_and_a_prompt_of_the_model_are_used(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, beam_size=3)
    assert transcribe_clip(engine, "u18") == get_clip("u18").text


@pytest.mark.torch
def test_a_language_it_does_not_know_is_refused(checkpoint: Path) -> None:
    refusal = load_engine(checkpoint).refusal(TranscriptionRequest(language="yue"))
    assert refusal
    assert "(yue)" in refusal.message


@pytest.mark.torch
def test_wishes_that_cannot_be_met_are_refused(checkpoint: Path) -> None:
    assert "compute_type 'int8'" in get_load_error(checkpoint, compute_type="int8")
    assert "compute_type 'float16'" in get_load_error(checkpoint, compute_type="float16", device="cpu")
    with pytest.raises(ValidationError):
        OpenAIWhisper.Options(beams=5)  # type: ignore[call-arg]


@pytest.mark.torch
def test_a_gpu_that_is_not_there_is_missed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "cannot use an NVIDIA GPU here" in get_load_error(checkpoint, device="cuda")


class PickleTrap:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.torch
def test_a_foreign_pickle_is_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.pt"
    path.write_bytes(pickle.dumps(PickleTrap(sprung)))
    assert str(path) in get_load_error(path)
    assert not sprung.exists()


@pytest.mark.torch
def test_a_truncated_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(checkpoint.read_bytes()[:-100_000])
    assert str(path) in get_load_error(path)


@pytest.mark.torch
def test_damaged_directories_are_told_by_file(directory: Path) -> None:
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert "model.safetensors is damaged" in get_load_error(directory)
    weights.unlink()
    assert "*.safetensors is missing" in get_load_error(directory)
    weights.write_bytes(whole)
    config = json.loads((directory / "config.json").read_text())
    for change, complaint in (
        ({"decoder_layers": 4}, "not those of a Whisper of its size"),
        ({"encoder_layers": None}, "config.json"),
        ({"model_type": "parakeet_ctc"}, "'parakeet_ctc'"),
    ):
        (directory / "config.json").write_text(json.dumps(config | change))
        assert complaint in get_load_error(directory)
    (directory / "config.json").write_text("{")
    assert "config.json cannot be read" in get_load_error(directory)


@pytest.mark.torch
def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "neither a .pt file nor config.json" in get_load_error(tmp_path)
    openai_whisper.save_checkpoint({"weights": 1}, tmp_path / "other.pt")
    assert "no 'dims'" in get_load_error(tmp_path)
    (tmp_path / "another.pt").touch()
    assert "holds 2 checkpoints" in get_load_error(tmp_path)
