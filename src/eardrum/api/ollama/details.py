"""What a model is: architecture, size, quantisation. Said by the config's metadata, else read off names, modestly. Pure."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from eardrum.api.ollama.flags import Flags
from eardrum.gateway.inventory import Model

PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)?)([bm])(?![A-Za-z0-9])", re.IGNORECASE)
QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(I?Q\d(?:_[A-Z0-9]+)*|BF16|F16|FP16|F32|FP8|MXFP4|NVFP4|AWQ|GPTQ|INT8|INT4)(?![A-Za-z0-9])", re.IGNORECASE
)
ARCHITECTURES = {
    "gpt-oss": "gptoss",
    "qwen3-vl": "qwen3vl",
    "qwen3": "qwen3",
    "qwen2.5-vl": "qwen25vl",
    "qwen2": "qwen2",
    "gemma-3": "gemma3",
    "gemma3": "gemma3",
    "gemma": "gemma",
    "mixtral": "mixtral",
    "mistral": "mistral",
    "phi": "phi3",
    "deepseek": "deepseek2",
    "granite": "granite",
    "glm": "glm4",
    "nomic-embed": "nomic-bert",
    "bge": "bert",
    "whisper": "whisper",
    "parakeet": "parakeet",
    "canary": "canary",
    "moonshine": "moonshine",
    "llama": "llama",
}
"""Parts of names to architectures; the first that fits counts."""


def of(model: Model) -> dict[str, Any]:
    """`details` of a model: strings all, empty where nothing is known."""
    said = model.entry.metadata if model.entry else {}
    title = _title(model)
    family = str(said.get("family") or architecture(model))
    compute = "" if model.foreign else str(model.options.get("compute_type", "auto")).removeprefix("auto")
    return {
        "parent_model": "",
        "format": _format(model),
        "family": family,
        "families": [family] if family else [],
        "parameter_size": str(said.get("parameterSize") or _found(PARAMETERS, title)),
        "quantization_level": str(said.get("quantizationLevel") or compute or _found(QUANTIZATION, title)),
    }


def architecture(model: Model) -> str:
    """`general.architecture`; empty if the name does not tell."""
    said = model.entry.metadata.get("architecture") if model.entry else None
    title = _title(model).lower()
    return str(
        said or next((kind for part, kind in ARCHITECTURES.items() if part in title), "" if model.foreign else model.engine)
    )


def context(model: Model) -> int:
    """Tokens of context; 0 if nobody says."""
    if not model.entry:
        return 0
    said = model.entry.metadata.get("contextLength")
    if isinstance(said, int) and said > 0:
        return said
    return model.entry.capabilities.context or Flags.of(model.entry.cmd).context


def info(model: Model) -> dict[str, Any]:
    """`model_info`: never null, because clients' types demand it."""
    kind = architecture(model) or "unknown"
    length = context(model)
    return {"general.architecture": kind, "general.basename": model.id} | ({f"{kind}.context_length": length} if length else {})


def _title(model: Model) -> str:
    """All names that could tell something: of the weights, the repository, the model."""
    weights = Flags.of(model.entry.cmd).weights if model.entry else ""
    return " ".join([PurePath(weights).name, model.repository, model.entry.useModelName if model.entry else "", model.id])


def _format(model: Model) -> str:
    if not model.foreign:
        return model.engine
    weights = Flags.of(model.entry.cmd).weights if model.entry else ""
    program = Flags.of(model.entry.cmd).program if model.entry else ""
    return "gguf" if weights.endswith(".gguf") or program.startswith("llama") else "safetensors" if program == "vllm" else ""


def _found(pattern: re.Pattern[str], title: str) -> str:
    found = pattern.search(title)
    return found[0].upper() if found else ""
