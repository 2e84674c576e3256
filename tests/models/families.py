"""Writes tiny models with random weights, one of each family that the engine `transformers` runs.

They prove that a model is loaded, asked and read by the library as a real one of its kind; what they hear means nothing.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LETTERS = [*string.ascii_lowercase, "▁", *(f"▁{letter}" for letter in string.ascii_lowercase), ".", ","]

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 80,
}
"""A small FastConformer."""

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}
"""A small language model."""

AUDIO_CHAT = """
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% for part in message['content'] -%}
{%- if part['type'] == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""

CANARY_CHAT = """
{%- for part in messages[0]['content'] -%}
{%- if part['type'] == 'text' -%}
<|startofcontext|><|startoftranscript|><|{{ part['source_language'] }}|><|{{ part['target_language'] }}|><|pnc|>
{%- endif -%}
{%- endfor -%}
"""


def build(kind: str, directory: Path) -> Path:
    """A model of this `model_type` in `directory`, the same every time."""
    import torch

    torch.manual_seed(7)
    directory.mkdir(parents=True, exist_ok=True)
    model, processor = BUILDERS[kind]()
    quieten_special(model, processor.tokenizer)
    model.save_pretrained(str(directory))
    processor.save_pretrained(str(directory))
    return directory


def quieten_special(model: Any, tokenizer: Any) -> None:
    """Special tokens lose to all others with a positive score, so that models with random weights write something."""
    if head := model.get_output_embeddings():
        first = tokenizer.convert_tokens_to_ids(LETTERS[0])
        head.weight.data[:first] = 0.0


def build_tokenizer(*special: str) -> Tokenizer:
    """A tokenizer of letters, each also as the beginning of a word; the special tokens come first."""
    vocabulary = {token: id for id, token in enumerate(["<unk>", *special, *LETTERS])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def build_parakeet(kind: str) -> tuple[Any, Any]:
    import transformers as hf

    frames = {"ctc": [], "rnnt": ["<blank>"], "tdt": ["<blank>"]}[kind]
    tokenizer = hf.ParakeetTokenizer(tokenizer_object=build_tokenizer("<pad>", *frames), pad_token="<pad>", unk_token="<unk>")
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "encoder_config": ENCODER}
    extractor = hf.ParakeetFeatureExtractor(feature_size=80)
    if kind == "ctc":
        return hf.ParakeetForCTC(hf.ParakeetCTCConfig(**size)), hf.ParakeetProcessor(extractor, tokenizer, decoder_type=kind)
    size |= {"decoder_hidden_size": 16, "num_decoder_layers": 1, "blank_token_id": tokenizer.convert_tokens_to_ids("<blank>")}
    config, cls = {
        "rnnt": (hf.ParakeetRNNTConfig, hf.ParakeetForRNNT),
        "tdt": (hf.ParakeetTDTConfig, hf.ParakeetForTDT),
    }[kind]
    model = cls(config(**size))
    model.generation_config.decoder_start_token_id = size["blank_token_id"]
    for name, weights in model.named_parameters():
        if not name.startswith("encoder."):
            weights.data.normal_(0, 1)  # as small as they are made, nothing but the biases would matter
    return model, hf.ParakeetProcessor(extractor, tokenizer, decoder_type=kind)


def build_moonshine() -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer("<s>", "</s>"), bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    config = hf.MoonshineConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        decoder_start_token_id=1,
    )
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return hf.MoonshineForConditionalGeneration(config), hf.Wav2Vec2Processor(extractor, tokenizer)


def build_moonshine_streaming() -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer("<s>", "</s>"), bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = hf.MoonshineStreamingConfig(
        vocab_size=len(tokenizer),
        decoder_start_token_id=1,
        encoder_config={**size, "sliding_windows": ((16, 4),)},
        **size,
    )
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return hf.MoonshineStreamingForConditionalGeneration(config), hf.MoonshineStreamingProcessor(extractor, tokenizer)


def build_canary() -> tuple[Any, Any]:
    import transformers as hf

    prompt = ["<pad>", "<|startofcontext|>", "<|startoftranscript|>", "<|pnc|>", "<|endoftext|>", "<|en|>", "<|de|>"]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(*prompt),
        bos_token="<|startoftranscript|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = hf.CanaryConfig(
        vocab_size=len(tokenizer),
        encoder_config={**ENCODER, "model_type": "parakeet_encoder"},
        decoder_config={**TEXT, "vocab_size": len(tokenizer), **ids},
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startofcontext|>"),
        **ids,
    )
    extractor = hf.ParakeetFeatureExtractor(feature_size=80)
    return hf.CanaryForConditionalGeneration(config), hf.CanaryProcessor(extractor, tokenizer, chat_template=CANARY_CHAT)


def build_cohere() -> tuple[Any, Any]:
    import transformers as hf

    prompt = ["startofcontext", "startoftranscript", "emo:undefined", "en", "de", "pnc", "noitn", "notimestamp", "nodiarize"]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer("<pad>", "<|endoftext|>", *(f"<|{name}|>" for name in prompt)),
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    config = hf.CohereAsrConfig(
        vocab_size=len(tokenizer),
        encoder_config={**ENCODER, "model_type": "parakeet_encoder", "num_mel_bins": 128},
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("▁"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TEXT,
    )
    extractor = hf.CohereAsrFeatureExtractor(feature_size=128)
    return hf.CohereAsrForConditionalGeneration(config), hf.CohereAsrProcessor(extractor, tokenizer)


def build_qwen() -> tuple[Any, Any]:
    import transformers as hf

    names = [
        "<|im_start|>",
        "<|im_end|>",
        "<|audio_start|>",
        "<|audio_pad|>",
        "<|audio_end|>",
        "<asr_text>",
        "<pad>",
        "<timestamp>",
    ]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(*names),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "audio_token": "<|audio_pad|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    )
    config = hf.Qwen3ASRConfig(
        audio_config={
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "output_dim": 16,
            "downsample_hidden_size": 8,
        },
        text_config={**TEXT, "vocab_size": len(tokenizer), "tie_word_embeddings": True},
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        timestamp_token_id=tokenizer.convert_tokens_to_ids("<timestamp>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    extractor = hf.Qwen3ASRFeatureExtractor(feature_size=128)
    return hf.Qwen3ASRForConditionalGeneration(config), hf.Qwen3ASRProcessor(extractor, tokenizer, chat_template=AUDIO_CHAT)


def build_glm() -> tuple[Any, Any]:
    import transformers as hf

    names = ["<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_pad|>", "<|audio_end|>", "<pad>"]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(*names), eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>"
    )
    config = hf.GlmAsrConfig(
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_mel_bins": 128,
        },
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
    )
    extractor = hf.WhisperFeatureExtractor(feature_size=128)
    processor = hf.GlmAsrProcessor(extractor, tokenizer, chat_template=AUDIO_CHAT, audio_token="<|audio_pad|>")
    return hf.GlmAsrForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "canary": build_canary,
    "cohere_asr": build_cohere,
    "glmasr": build_glm,
    "moonshine": build_moonshine,
    "moonshine_streaming": build_moonshine_streaming,
    "parakeet_ctc": lambda: build_parakeet("ctc"),
    "parakeet_rnnt": lambda: build_parakeet("rnnt"),
    "parakeet_tdt": lambda: build_parakeet("tdt"),
    "qwen3_asr": build_qwen,
}
