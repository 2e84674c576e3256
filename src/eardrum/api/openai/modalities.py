"""What a model takes and gives, in the fields in which clients look for it."""

from __future__ import annotations

from typing import Any

from eardrum.config.llama_swap import Declared
from eardrum.gateway.inventory import Model

SPEECH = Declared.model_validate({"in": ("audio",), "out": ("text",)})
"""What every model of ours is, and one of another server of which the config says nothing, but whose name does."""


def described(model: Model) -> dict[str, Any]:
    """`capabilities` and, as far as it is known, `architecture`, `context_length` and `supported_parameters`."""
    said = model.entry.capabilities if model.foreign and model.entry else Declared()
    declared = SPEECH if model.hears and not said.inputs else said
    flags = _flags(declared)
    facts: dict[str, Any] = {"capabilities": flags | (_speech(model) if "audio_transcriptions" in flags else {})}
    inputs, outputs = declared.inputs, declared.outputs
    if inputs or outputs:
        modality = f"{'+'.join(inputs)}->{'+'.join(outputs)}"
        facts["architecture"] = {
            "input_modalities": list(inputs),
            "output_modalities": list(outputs),
            "modality": modality,
        }
    if declared.context:
        facts["context_length"] = declared.context
    if declared.tools:
        facts["supported_parameters"] = ["tools", "tool_choice"]
    return facts


def _flags(declared: Declared) -> dict[str, bool]:
    takes, gives = set(declared.inputs), set(declared.outputs)
    flags = {
        "vision": "image" in takes and "text" in gives,
        "audio_transcriptions": "audio" in takes and "text" in gives,
        "audio_speech": "text" in takes and "audio" in gives,
        "image_generation": "text" in takes and "image" in gives,
        "image_to_image": "image" in takes and "image" in gives,
        "function_calling": declared.tools,
        "reranker": declared.reranker,
    }
    return {name: True for name, has in flags.items() if has}


def _speech(model: Model) -> dict[str, Any]:
    can = model.capabilities.to_json()
    return {
        "tasks": ["transcribe", *(["translate"] if model.capabilities.translate else [])],
        "languages": can["languages"],
        "response_formats": ["json", "text", "srt", "verbose_json", "vtt"],
        "timestamp_granularities": ["segment", *(["word"] if model.capabilities.words else [])],
        "stream": True,
        **{name: can[name] for name in ("detects_language", "logprobs", "prompt", "hotwords", "temperature", "speakers")},
    }
