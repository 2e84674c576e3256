"""NeMo's real classes with tiny random weights: what they say is noise, but it is the same noise in every batch.

Runs only where NeMo and pytest are: `HF_HUB_OFFLINE=1 nemo/bin/python -m pytest -m nemo tests/engines/test_nemo.py`.
"""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eardrum.engines import registry
from eardrum.engines.base import Engine, EngineResult, Window
from eardrum.errors import ModelLoadError
from eardrum.runner.__main__ import load_engine
from eardrum.transcription import SpeechTask, TranscriptionRequest

pytestmark = [
    pytest.mark.nemo,
    pytest.mark.skipif(find_spec("nemo") is None, reason="NeMo is not installed in this interpreter"),
    pytest.mark.filterwarnings("default"),  # NeMo's own
    pytest.mark.timeout(300),
]

LETTERS = [" ", *"abcdefgh", "."]
FEATURES = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "features": 80,
    "window_size": 0.025,
    "window_stride": 0.01,
    "dither": 0.0,
    "pad_to": 0,
}
ENCODER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": 80,
    "n_layers": 1,
    "d_model": 16,
    "n_heads": 2,
    "subsampling_factor": 4,
    "conv_kernel_size": 5,
}


def save_model(model: Any, path: Path) -> Path:
    model.save_to(str(path))
    return path


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tokenizer of word pieces, as the models people use have one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text("\n".join(f"the cat number {n} sat on the mat, and the dog barked." for n in range(200)))
    importlib.import_module("sentencepiece").SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=48, model_type="bpe"
    )
    vocabulary = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join(line.split("\t")[0] for line in vocabulary), encoding="utf-8")
    return {"dir": str(folder), "type": "bpe"}


def build_decoder(labels: list[str]) -> dict[str, Any]:
    target = "nemo.collections.asr.modules.ConvASRDecoder"
    return {"_target_": target, "feat_in": 16, "num_classes": len(labels) or -1, "vocabulary": labels}


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch, models = importlib.import_module("torch"), importlib.import_module("nemo.collections.asr.models")
    torch.manual_seed(3)
    config = {"sample_rate": 16_000, "labels": LETTERS, "preprocessor": FEATURES, "encoder": ENCODER}
    model = models.EncDecCTCModel(cfg=to_omegaconf(config | {"decoder": build_decoder(LETTERS)}))
    return save_model(model, tmp_path_factory.mktemp("ctc") / "random.nemo")


@pytest.fixture(scope="module")
def ctc_pieces(tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, str]) -> Path:
    torch, models = importlib.import_module("torch"), importlib.import_module("nemo.collections.asr.models")
    torch.manual_seed(3)
    config = {"sample_rate": 16_000, "tokenizer": pieces, "preprocessor": FEATURES, "encoder": ENCODER}
    model = models.EncDecCTCModelBPE(cfg=to_omegaconf(config | {"decoder": build_decoder([])}))
    return save_model(model, tmp_path_factory.mktemp("ctc_pieces") / "random.nemo")


@pytest.fixture(scope="module")
def tdt(tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, str]) -> Path:
    torch, models = importlib.import_module("torch"), importlib.import_module("nemo.collections.asr.models")
    torch.manual_seed(5)
    config = {
        "sample_rate": 16_000,
        "tokenizer": pieces,
        "model_defaults": {"enc_hidden": 16, "pred_hidden": 16, "joint_hidden": 16},
        "preprocessor": FEATURES,
        "encoder": ENCODER,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": 16, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "fuse_loss_wer": False,
            "num_extra_outputs": 5,
            "jointnet": {"joint_hidden": 16, "activation": "relu", "dropout": 0.0},
        },
        "decoding": {
            "strategy": "greedy_batch",
            "model_type": "tdt",
            "durations": [0, 1, 2, 3, 4],
            "greedy": {"max_symbols": 3},
        },
        "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1, 2, 3, 4], "sigma": 0.02, "omega": 0.1}},
    }
    return save_model(models.EncDecRNNTBPEModel(cfg=to_omegaconf(config)), tmp_path_factory.mktemp("tdt") / "random.nemo")


CONTROL = ["en", "de", "transcribe", "translate", "startofcontext", "emo:undefined", "itn", "noitn", "timestamp", "notimestamp"]
CONTROL += ["diarize", "nodiarize", *map(str, range(60))]


@pytest.fixture(scope="module", params=["canary", "canary2"])
def canary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, str]) -> Any:
    """A Canary of either format; the second can write times between its words."""
    torch, models = importlib.import_module("torch"), importlib.import_module("nemo.collections.asr.models")
    tokenizers = importlib.import_module("nemo.collections.common.tokenizers.canary_tokenizer")
    folder = tmp_path_factory.mktemp(request.param)
    tokenizers.CanaryTokenizer.build_special_tokenizer(CONTROL, folder / "special")
    slots = {"source_lang": "en", "target_lang": "en", "pnc": "yes"}
    if request.param == "canary":
        slots["task"] = "asr"
    else:
        slots |= {"decodercontext": "", "emotion": "<|emo:undefined|>", "itn": "no", "timestamp": "no", "diarize": "no"}
    torch.manual_seed(1)
    config = {
        "sample_rate": 16_000,
        "prompt_format": request.param,
        "restore_timestamps_model": False,
        "prompt_defaults": [{"role": "user", "slots": slots}],
        "model_defaults": {"asr_enc_hidden": 16, "lm_enc_hidden": 16, "lm_dec_hidden": 16},
        "tokenizer": {
            "dir": None,
            "type": "agg",
            "langs": {"spl_tokens": {"dir": str(folder / "special"), "type": "bpe"}, "en": pieces, "de": pieces},
            "custom_tokenizer": {"_target_": f"{tokenizers.__name__}.CanaryTokenizer", "tokenizers": None},
        },
        "preprocessor": FEATURES,
        "encoder": ENCODER,
        "transf_decoder": {
            "_target_": "nemo.collections.asr.modules.transformer.get_nemo_transformer",
            "model_name": None,
            "pretrained": False,
            "encoder": None,
            "pre_ln_final_layer_norm": True,
            "config_dict": {
                "max_sequence_length": 64,
                "num_token_types": 0,
                "hidden_size": 16,
                "inner_size": 32,
                "num_layers": 1,
                "num_attention_heads": 2,
                "pre_ln": True,
                "vocab_size": None,
            },
        },
        "head": {
            "_target_": "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier",
            "num_layers": 1,
            "activation": "relu",
            "log_softmax": True,
            "hidden_size": 16,
            "num_classes": None,
        },
        "decoding": {"strategy": "beam", "beam": {"beam_size": 1, "max_generation_delta": 8}},
        "loss": {
            "_target_": "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            "label_smoothing": 0.0,
        },
    }
    model = models.EncDecMultiTaskModel(cfg=to_omegaconf(config))
    with torch.no_grad():  # rather words than control tokens, of which the text shows nothing
        model.log_softmax.mlp.layer0.bias[: model.tokenizer.tokenizers_dict["spl_tokens"].vocab_size] = -9.0
    path = save_model(model, folder / "random.nemo")
    return load_engine("nemo", path, {"device": "cpu"})


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Canary-Qwen: encoder, language model and tokenizer, saved as NVIDIA's is."""
    torch, models = importlib.import_module("torch"), importlib.import_module("nemo.collections.speechlm2.models")
    folder = tmp_path_factory.mktemp("qwen")
    transformers, bpe = importlib.import_module("transformers"), importlib.import_module("tokenizers")
    tokenizer = bpe.Tokenizer(bpe.models.BPE())
    tokenizer.pre_tokenizer = bpe.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = bpe.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = bpe.pre_tokenizers.ByteLevel.alphabet()
    trainer = bpe.trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, special_tokens=special)
    tokenizer.train_from_iterator(["the cat sat on the mat"], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0])
    fast.save_pretrained(folder / "llm")
    sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    transformers.Qwen3Config(**sizes, **layers, architectures=["Qwen3ForCausalLM"]).save_pretrained(folder / "llm")
    modules = "nemo.collections.speechlm2.modules.perception"
    torch.manual_seed(0)
    config = {
        "pretrained_llm": str(folder / "llm"),
        "pretrained_weights": False,
        "audio_locator_tag": "<|audioplaceholder|>",
        "prompt_format": "qwen",
        "perception": {
            "target": f"{modules}.AudioPerceptionModule",
            "output_dim": 16,
            "preprocessor": FEATURES,
            "encoder": ENCODER,
            "modality_adapter": {"_target_": f"{modules}.IdentityConnector", "d_model": 16},
        },
    }
    models.SALM(config).save_pretrained(folder / "salm")
    return folder / "salm"


def to_omegaconf(config: dict[str, Any]) -> Any:
    return importlib.import_module("omegaconf").OmegaConf.create(config)


@pytest.fixture(scope="module", params=["ctc", "ctc_pieces", "tdt"])
def engine(request: pytest.FixtureRequest) -> Any:
    return load_engine("nemo", request.getfixturevalue(request.param), {"device": "cpu"})


def create_windows(**request: object) -> list[Window]:
    """Noise of very different lengths."""
    noise = np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
    swell = noise * np.sin(np.arange(80_000) / 3000).astype(np.float32)
    lengths = (0, 200, 8_000, 30_000, 80_000)
    return [Window(swell[:n], 0.0, 1.0, (0.0, n / 16_000), TranscriptionRequest(**request)) for n in lengths]


def list_texts(hearing: EngineResult) -> list[str]:
    return [segment.text for segment in hearing.segments]


def test_rows_of_a_batch_are_those_of_their_windows(engine: Any) -> None:
    asked = create_windows(words=True)
    alone = [engine.transcribe([each])[0] for each in asked]
    assert len({tuple(list_texts(heard)) for heard in alone[2:]}) == 3, "the model says the same whatever it hears"
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        for at, heard in zip(order, engine.transcribe([asked[at] for at in order]), strict=True):
            assert list_texts(heard) == list_texts(alone[at])
            for one, other in zip(heard.segments, alone[at].segments, strict=True):
                assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)


def test_words_ascend_within_the_window(engine: Any) -> None:
    *_, long = create_windows(words=True)
    (heard,) = engine.transcribe([long])
    words = [word for segment in heard.segments for word in segment.words]
    assert words
    assert all(0 <= word.start <= word.end <= long.seconds for word in words)
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert all(0 < word.probability <= 1 for word in words)
    assert any(word.probability < 0.9 for word in words), "every word is sure: confidence is not computed"
    assert all(not segment.words for segment in engine.transcribe([create_windows()[-1]])[0].segments)


PROMPTS = {
    "canary": ("<|en|><|transcribe|><|en|><|pnc|>", "<|de|><|transcribe|><|de|><|pnc|>", "<|de|><|translate|><|en|><|pnc|>"),
    "canary2": (
        "<|en|><|en|><|pnc|><|noitn|><|notimestamp|>",
        "<|de|><|de|><|pnc|><|noitn|><|notimestamp|>",
        "<|de|><|en|><|pnc|><|noitn|><|notimestamp|>",
        "<|en|><|en|><|pnc|><|noitn|><|timestamp|>",
    ),
}


def test_canary_is_told_language_task_and_times(canary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = canary._model, []
    decode = model.decoding.decode_predictions_tensor

    def overheard(**inputs: Any) -> Any:
        told.extend(model.tokenizer.ids_to_text(ids) for ids in inputs["decoder_input_ids"].tolist())
        return decode(**inputs)

    monkeypatch.setattr(model.decoding, "decode_predictions_tensor", overheard)
    asked: list[dict[str, Any]] = [{}, {"language": "de"}, {"language": "de", "task": SpeechTask.TRANSLATE}, {"words": True}]
    for wish, prompt in zip(asked, PROMPTS[model.prompt_format], strict=False):
        assert len(canary.transcribe(create_windows(**wish))) == 5
        assert len(told) == 5
        assert all(prompt in each for each in told), told[0]
        told.clear()
    assert (canary.capabilities.translate, canary.capabilities.words) == (True, model.prompt_format == "canary2")
    assert len({canary.batch_key(create_windows(**wish)[0]) for wish in asked}) == len(PROMPTS[model.prompt_format])


def test_canarys_rows_are_those_of_their_windows(canary: Any) -> None:
    asked = create_windows()[2:]
    for one, together in zip(asked, canary.transcribe(asked), strict=True):
        # Noise never says that it is done; in company it goes on for as long as the longest may.
        assert " ".join(list_texts(together)).startswith(" ".join(list_texts(canary.transcribe([one])[0])))


def test_canary_refuses_what_it_cannot_do(canary: Any) -> None:
    assert "send the spoken one" in canary.refusal(TranscriptionRequest(task=SpeechTask.TRANSLATE)).message
    if canary.capabilities.words:
        assert (
            "translation's words"
            in canary.refusal(TranscriptionRequest(task=SpeechTask.TRANSLATE, language="de", words=True)).message
        )


def test_canary_qwen_answers_to_each_window(qwen: Path) -> None:
    assert registry.find_card("nemo").can_run(qwen)
    engine: Any = load_engine("nemo", qwen, {"device": "cpu", "language": "en"})
    assert (engine.capabilities.words, engine.capabilities.languages) == (False, ("en",))
    asked = create_windows()[1:3]
    together = engine.transcribe(asked)
    said = [" ".join(list_texts(heard)) for heard in together]
    assert any(said)
    for each, text in zip(asked, said, strict=True):
        # Noise never says that it is done; in company it goes on for as long as the longest may.
        assert text.startswith(" ".join(list_texts(engine.transcribe([each])[0]))[:10])
    told: Any = load_engine("nemo", qwen, {"device": "cpu", "instruction": "Sing:"})
    assert [list_texts(heard) for heard in told.transcribe(asked)] != [list_texts(heard) for heard in together]


def test_the_language_model_of_a_canary_qwen_is_not_fetched(qwen: Path, tmp_path: Path) -> None:
    for file in qwen.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((qwen / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_llm": "nobody/none"}))
    assert "hf download nobody/none" in get_load_error(tmp_path)


@pytest.mark.parametrize("compute_type", ["float32", "bfloat16"])
def test_number_formats(ctc: Path, compute_type: str) -> None:
    engine = load_engine("nemo", ctc, {"device": "cpu", "compute_type": compute_type})
    assert isinstance(engine, Engine)
    assert len(engine.transcribe(create_windows())) == 5


def test_a_model_is_found_by_its_file(ctc: Path, tmp_path: Path) -> None:
    assert registry.find_card("nemo").can_run(ctc.parent)
    assert load_engine("nemo", ctc.parent, {"device": "cpu", "language": "de"}).capabilities.languages == ("de",)
    assert not registry.find_card("nemo").can_run(tmp_path)


def get_load_error(source: Path, **options: object) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_engine("nemo", source, {"device": "cpu"} | options)
    return caught.value.message


def test_what_cannot_be_loaded_is_named(ctc: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "gone.nemo") in get_load_error(tmp_path / "gone.nemo")
    assert "no .nemo file" in get_load_error(tmp_path)
    (tmp_path / "a.nemo").write_bytes(ctc.read_bytes()[:2000])
    assert str(tmp_path / "a.nemo") in get_load_error(tmp_path)
    (tmp_path / "b.nemo").write_bytes(b"")
    assert "a.nemo, b.nemo: name one" in get_load_error(tmp_path)
    assert "compute_type 'int8'" in get_load_error(ctc, compute_type="int8")
    assert "pnc is for Canary only" in get_load_error(ctc, pnc=True)
