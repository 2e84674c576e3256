"""What a model is: architecture, size, quantisation. Said by the config's metadata, else by its weights, else by names. Pure."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from eardrum.api.ollama.flags import Flags
from eardrum.api.ollama.weights import NOTHING, Said
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


LONGEST = 1000
"""Characters of a text among the facts of `model_info`. Templates and licences are longer."""


def of(model: Model, known: Said = NOTHING) -> dict[str, Any]:
    """`details` of a model: strings all, empty where nothing is known."""
    said = model.entry.metadata if model.entry else {}
    title = _title(model)
    family = str(said.get("family") or architecture(model, known))
    label = str(known.head.values.get("general.size_label", "")) if known.head else ""
    compute = "" if model.foreign else str(model.options.get("compute_type", "auto")).removeprefix("auto")
    return {
        "parent_model": "",
        "format": _format(model),
        "family": family,
        "families": [family] if family else [],
        "parameter_size": str(said.get("parameterSize") or _found(PARAMETERS, title) or label),
        "quantization_level": str(
            said.get("quantizationLevel")
            or compute
            or _found(QUANTIZATION, title)
            or (known.head.quantization if known.head else "")
        ),
    }


def architecture(model: Model, known: Said = NOTHING) -> str:
    """`general.architecture`; empty if neither the weights nor the name tell."""
    said = (model.entry.metadata.get("architecture") if model.entry else None) or (known.head.architecture if known.head else "")
    title = _title(model).lower()
    return str(
        said or next((kind for part, kind in ARCHITECTURES.items() if part in title), "" if model.foreign else model.engine)
    )


def context(model: Model, known: Said = NOTHING) -> int:
    """Tokens of context: what the config says, else the server, the command, the weights; 0 if nobody does."""
    if not model.entry:
        return 0
    said = model.entry.metadata.get("contextLength")
    if isinstance(said, int) and said > 0:
        return said
    return model.entry.capabilities.context or Flags.of(model.entry.cmd, model.entry.env).context or known.context


def info(model: Model, known: Said = NOTHING) -> dict[str, Any]:
    """`model_info`: never null, because clients' types demand it. The length of the context is that which can be used."""
    kind = architecture(model, known) or "unknown"
    length = context(model, known)
    values = known.head.values.items() if known.head else ()
    facts = {key: value for key, value in values if not isinstance(value, str) or len(value) <= LONGEST}
    facts = {"general.basename": model.id} | facts | {"general.architecture": kind}
    return facts | ({f"{kind}.context_length": length} if length else {})


def _title(model: Model) -> str:
    """All names that could tell something: of the weights, the repository, the model."""
    weights = Flags.of(model.entry.cmd, model.entry.env).weights if model.entry else ""
    return " ".join([PurePath(weights).name, model.repository, model.entry.useModelName if model.entry else "", model.id])


def _format(model: Model) -> str:
    if not model.foreign:
        return model.engine
    weights = Flags.of(model.entry.cmd, model.entry.env).weights if model.entry else ""
    program = Flags.of(model.entry.cmd, model.entry.env).program if model.entry else ""
    return "gguf" if weights.endswith(".gguf") or program.startswith("llama") else "safetensors" if program == "vllm" else ""


def _found(pattern: re.Pattern[str], title: str) -> str:
    found = pattern.search(title)
    return found[0].upper() if found else ""
