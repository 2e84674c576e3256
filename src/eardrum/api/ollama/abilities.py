"""What a model can do, in Ollama's words: by what the config declares, else by its command, its weights and its server. Pure."""

from __future__ import annotations

from eardrum.api.ollama.asks import Server
from eardrum.api.ollama.flags import Flags
from eardrum.api.ollama.weights import NOTHING, Said
from eardrum.config.llama_swap import Declared
from eardrum.gateway.inventory import Model


def of(model: Model, said: Said = NOTHING) -> list[str]:
    """The capabilities, such as `completion`, `tools`, `vision`, `thinking`, `embedding`, `audio`."""
    if not model.foreign or not model.entry:
        return ["audio"]
    declared = model.entry.metadata.get("capabilities")
    if isinstance(declared, list | tuple):
        return [str(ability) for ability in declared]
    flags = Flags.of(model.entry.cmd, model.entry.env)
    if hears(model):
        return ["audio"]
    if model.entry.capabilities.reranker or flags.has("--reranking", "--rerank") or (said.head and said.head.ranks):
        return []  # for which Ollama has no word
    if flags.embeds or (said.head and said.head.embeds):
        return ["embedding"]
    return _of_language_model(model.entry.capabilities, flags, said)


def _of_language_model(declared: Declared, flags: Flags, said: Said) -> list[str]:
    if declared.outputs and "text" not in declared.outputs:
        return [kind for kind in declared.outputs if kind == "image"]
    budget, jinja = flags.value("--reasoning-budget"), not flags.has("--no-jinja")  # which llama-server takes unless told not to
    found = {
        "completion": True,
        "tools": declared.tools or flags.has("--jinja", "--enable-auto-tool-choice") or (jinja and said.tools),
        "vision": "image" in declared.inputs or flags.has("--mmproj", "-mm") or said.takes("vision"),
        "audio": "audio" in declared.inputs or said.takes("audio"),
        "thinking": flags.has("--reasoning-format", "--reasoning-parser")
        or budget not in ("", "0")
        or (not budget and said.thinks),
    }
    return [ability for ability, there in found.items() if there]


def hears(model: Model) -> bool:
    """Whether the model turns speech into text and does nothing else."""
    if not model.foreign or not model.entry:
        return True
    if isinstance(said := model.entry.metadata.get("capabilities"), list | tuple):
        return list(said) == ["audio"]
    if inputs := model.entry.capabilities.inputs:
        return "audio" in inputs and "text" not in inputs
    return "transcriptions" in model.entry.options or Flags.of(model.entry.cmd, model.entry.env).hears


def server(model: Model) -> Server:
    """What the model's server may know beyond OpenAI's API: clouds, which are the ones behind https, refuse parameters."""
    entry = model.entry
    return Server(
        local=not (entry and entry.proxy.startswith("https:")),
        infills=bool(entry and Flags.of(entry.cmd, entry.env).program.startswith("llama-server")),
    )
