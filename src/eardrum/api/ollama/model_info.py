"""Determines a model's capabilities, architecture, size, quantisation, context length and files.

Sources, in order: the config's metadata, the model's command line (llama-server, vLLM, whisper-server), the head of its
weights, its running server, and names. Reads files.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from msgspec import Struct, field

from eardrum import bounded_json, gguf
from eardrum.api.ollama.requests import ServerFeatures
from eardrum.config.llama_swap import DeclaredCapabilities
from eardrum.config.macros import split_command
from eardrum.errors import EardrumError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import ForwardedRequest, Service
from eardrum.gateway.upstreams.http_client import OutgoingRequest

WEIGHT_FLAGS = ("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo")
CONTEXT_FLAGS = ("-c", "--ctx-size", "--max-model-len")


FLAG_VARIABLES = {
    "LLAMA_ARG_MODEL": "--model",
    "LLAMA_ARG_MODEL_URL": "--model-url",
    "LLAMA_ARG_HF_REPO": "--hf-repo",
    "LLAMA_ARG_CTX_SIZE": "--ctx-size",
    "LLAMA_ARG_MMPROJ": "--mmproj",
    "LLAMA_ARG_EMBEDDINGS": "--embeddings",
    "LLAMA_ARG_CHAT_TEMPLATE": "--chat-template",
    "LLAMA_ARG_CHAT_TEMPLATE_FILE": "--chat-template-file",
}
"""llama-server's environment variables and the flags that they stand for; the flag takes precedence."""
OFF_VALUES = ("", "0", "off", "false", "disabled")
SHELLS = ("sh", "bash", "dash", "zsh", "ash")
WRAPPERS = ("env", "exec", "nice", "nohup", "setsid", "stdbuf", "time", "ionice", "chrt", "taskset", "numactl")
"""Programs that run the command in their arguments."""
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


class CommandFlags(Struct, frozen=True):
    """The parsed arguments of a command line."""

    arguments: tuple[str, ...]

    @classmethod
    def of(cls, command: str, environment: Sequence[str] = ()) -> CommandFlags:
        """Split a command line; `--name=value` becomes two words. Environment variables come first, as flags.

        Args:
            command: the config's command; a shell's `-c` argument is unwrapped.
            environment: the config's variables, as `NAME=value`.
        """
        words = _unwrap_shell(split_command(command))
        from_environment = [part for variable in (*environment, *words) for part in _to_flag(variable)]
        own = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
        start = next((at for at, word in enumerate(own) if not _is_wrapper(word)), len(own))
        return cls((*own[start : start + 1], *from_environment, *own[start + 1 :]))

    @property
    def program(self) -> str:
        """The name of the program."""
        return PurePath(self.arguments[0]).name if self.arguments else ""

    def has(self, *names: str) -> bool:
        """Whether one of these flags is present."""
        return any(word in names for word in self.arguments)

    def get_value(self, *names: str) -> str:
        """Return the value of the last of these flags, which takes precedence; empty without one."""
        pairs = zip(self.arguments, self.arguments[1:], strict=False)
        return next((value for word, value in reversed(list(pairs)) if word in names), "")

    @property
    def weights(self) -> str:
        """File, address or repository of the weights."""
        if self.program == "vllm" and "serve" in self.arguments[:-1]:
            following = self.arguments[self.arguments.index("serve") + 1]
            return following if not following.startswith("-") else self.get_value(*WEIGHT_FLAGS)
        return self.get_value(*WEIGHT_FLAGS)

    @property
    def is_llama_server(self) -> bool:
        """Whether the command runs llama-server, perhaps in a container or through another program."""
        return any(PurePath(word).name.startswith("llama-server") or "llama.cpp" in word for word in self.arguments)

    @property
    def files(self) -> tuple[str, ...]:
        """The values that may be weight files."""
        return tuple(value for value in (self.weights, self.get_value("--mmproj", "-mm")) if value)

    @property
    def context_length(self) -> int:
        """Tokens of context; 0 if no flag sets it."""
        value = self.get_value(*CONTEXT_FLAGS)
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0

    @property
    def is_speech_server(self) -> bool:
        """Whether the program transcribes speech."""
        return "whisper" in self.program.lower() or any("/audio/transcriptions" in word for word in self.arguments)

    @property
    def is_embedding_server(self) -> bool:
        """Whether the flags make it a server for embeddings."""
        return self.has("--embedding", "--embeddings", "--pooling") or self.get_value("--task", "--runner") in (
            "embed",
            "pooling",
        )


def _unwrap_shell(words: Sequence[str]) -> list[str]:
    """Return the words of a shell's `-c` argument; the words unchanged if the command runs no shell."""
    shell = next((at for at, word in enumerate(words) if PurePath(word).name in SHELLS), len(words))
    for word, following in zip(words[shell + 1 :], words[shell + 2 :], strict=False):
        if re.fullmatch(r"-[a-z]*c", word):
            return [*words[:shell], *split_command(following)]
        if not word.startswith("-"):
            break  # a script
    return list(words)


def _is_wrapper(word: str) -> bool:
    """Whether the word is a wrapper or an assignment before the program."""
    return bool(ASSIGNMENT.fullmatch(word)) or PurePath(word).name in WRAPPERS


def _to_flag(variable: str) -> Iterator[str]:
    """Yield the flag and the value that a variable stands for."""
    if (match := ASSIGNMENT.fullmatch(variable)) and (flag := FLAG_VARIABLES.get(match[1])):
        if flag != "--embeddings":
            yield from (flag, match[2])
        elif match[2].lower() not in OFF_VALUES:
            yield flag


log = logging.getLogger(__name__)

PROPS_TIMEOUT_S = 2.0
"""Timeout of a `/props` request. A busy server may miss it; its properties are then unknown."""
MAX_PROPS_BYTES = 4 << 20
"""The largest `/props` response; templates are far smaller."""
THINKING_MARKS = ("enable_thinking", "<think>", "reasoning_content")
"""Words that mark the template of a reasoning model."""


class ModelFacts(Struct, frozen=True):
    """Facts about a model from its weights and its server; may be empty."""

    head: gguf.GgufHeader | None = None
    props: Mapping[str, Any] = field(default_factory=dict)
    """llama-server's `/props`."""
    own_template: bool = True
    """Whether the model is served with the template that its weights hold."""

    @property
    def template(self) -> str:
        """The chat template, in Jinja; empty if unknown."""
        served = self.props.get("chat_template")
        if isinstance(served, str) and served:
            return served
        return self.head.chat_template if self.head and self.own_template else ""

    @property
    def supports_tools(self) -> bool:
        """Whether the template renders tools."""
        able = _as_object(self.props.get("chat_template_caps")).get("supports_tools")
        return able if isinstance(able, bool) else "tools" in self.template

    @property
    def supports_thinking(self) -> bool:
        """Whether the template is a reasoning model's."""
        return any(word in self.template for word in THINKING_MARKS)

    def supports_input(self, kind: str) -> bool:
        """Whether the server accepts input of a kind, `vision` or `audio`."""
        return _as_object(self.props.get("modalities")).get(kind) is True

    @property
    def context_length(self) -> int:
        """Tokens of context, from the server if it runs, else from the weights; 0 if unknown."""
        served = _as_object(self.props.get("default_generation_settings")).get("n_ctx")
        if isinstance(served, int) and served > 0:
            return served
        return self.head.context_length if self.head else 0


NO_FACTS = ModelFacts()


def read_facts(model: Model, props: Mapping[str, Any] | None = None) -> ModelFacts:
    """Collect the facts about a model from its weights and its server's `/props`. Reads the head of a file once."""
    if not model.is_external or not model.entry or not model.entry.cmd:
        return ModelFacts(props=props or {})
    flags = CommandFlags.of(model.entry.cmd, model.entry.env)
    head = gguf.read_header(Path(flags.weights)) if flags.weights and flags.is_llama_server else None
    return ModelFacts(head, props or {}, own_template=not flags.has("--chat-template", "--chat-template-file"))


class ServerProps:
    """The `/props` of running llama-servers, requested once per process."""

    def __init__(self, service: Service):
        self._service = service
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def get_known(self, model: Model) -> Mapping[str, Any]:
        """Return the properties fetched from the model's current process; empty without any."""
        since, props = self._known.get(model.id, (0.0, {}))
        return props if since and since == self._service.get_ready_time(model) else {}

    async def fetch_props(self, model: Model) -> Mapping[str, Any]:
        """Return the properties, and request them if necessary. Starts no server, and asks llama-servers only."""
        since = self._service.get_ready_time(model)
        if not since or not model.entry or not CommandFlags.of(model.entry.cmd, model.entry.env).is_llama_server:
            return {}
        if self._known.get(model.id, (0.0, {}))[0] != since:
            try:
                async with asyncio.timeout(PROPS_TIMEOUT_S):
                    self._known[model.id] = since, await self._request_props(model)
            except (EardrumError, TimeoutError) as error:
                log.debug("Could not read /props of model %s: %r", model.id, error)
        return self.get_known(model)

    async def _request_props(self, model: Model) -> Mapping[str, Any]:
        if self._service.get_state(model) is not ModelState.READY:
            return {}
        async with ForwardedRequest(self._service, model, OutgoingRequest("GET", "/props", [], None)) as answer:
            content = await answer.read_body(MAX_PROPS_BYTES)
        try:
            return _as_object(bounded_json.parse_upstream_json(content)) if answer.status == 200 else {}
        except ValueError:
            return {}


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def get_capabilities(model: Model, facts: ModelFacts = NO_FACTS) -> list[str]:
    """Return the capabilities: any of `completion`, `tools`, `vision`, `thinking`, `embedding`, `audio` and `image`."""
    if not model.is_external or not model.entry:
        return [] if model.is_voice_model else ["audio"]
    declared = model.entry.metadata.get("capabilities")
    if isinstance(declared, list | tuple):
        return [str(ability) for ability in declared]
    flags = CommandFlags.of(model.entry.cmd, model.entry.env)
    if is_speech_model(model):
        return ["audio"]
    if model.entry.capabilities.reranker or flags.has("--reranking", "--rerank") or (facts.head and facts.head.is_reranker):
        return []  # Ollama has no capability for reranking
    if flags.is_embedding_server or (facts.head and facts.head.is_embedding_model):
        return ["embedding"]
    return _get_text_capabilities(model.entry.capabilities, flags, facts)


def _get_text_capabilities(declared: DeclaredCapabilities, flags: CommandFlags, facts: ModelFacts) -> list[str]:
    if declared.outputs and "text" not in declared.outputs:
        return [kind for kind in declared.outputs if kind == "image"]
    budget, jinja = (
        flags.get_value("--reasoning-budget"),
        not flags.has("--no-jinja"),
    )  # llama-server's default
    found = {
        "completion": True,
        "tools": declared.tools or flags.has("--jinja", "--enable-auto-tool-choice") or (jinja and facts.supports_tools),
        "vision": "image" in declared.inputs or flags.has("--mmproj", "-mm") or facts.supports_input("vision"),
        "audio": "audio" in declared.inputs or facts.supports_input("audio"),
        "thinking": flags.has("--reasoning-format", "--reasoning-parser")
        or budget not in ("", "0")
        or (not budget and facts.supports_thinking),
    }
    return [ability for ability, there in found.items() if there]


def is_speech_model(model: Model) -> bool:
    """Whether the model transcribes speech and does nothing else."""
    if not model.is_external or not model.entry:
        return True
    if isinstance(declared := model.entry.metadata.get("capabilities"), list | tuple):
        return list(declared) == ["audio"]
    if inputs := model.entry.capabilities.inputs:
        return "audio" in inputs and "text" not in inputs
    return "transcriptions" in model.entry.options or CommandFlags.of(model.entry.cmd, model.entry.env).is_speech_server


def get_server_features(model: Model) -> ServerFeatures:
    """Return the features of the model's server beyond OpenAI's API. Cloud services, behind https, reject unknown parameters."""
    entry = model.entry
    return ServerFeatures(
        local=not (entry and entry.proxy.startswith("https:")),
        infills=bool(entry and CommandFlags.of(entry.cmd, entry.env).program.startswith("llama-server")),
    )


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
"""Architectures by part of a name; the first match counts."""


MAX_TEXT_CHARS = 1000
"""The longest text to include in `model_info`; leaves out templates and licences."""


def get_details(model: Model, facts: ModelFacts = NO_FACTS) -> dict[str, Any]:
    """Build the `details` of a model: strings, empty where unknown."""
    metadata = model.entry.metadata if model.entry else {}
    title = _join_names(model)
    family = str(metadata.get("family") or get_architecture(model, facts))
    label = str(facts.head.values.get("general.size_label", "")) if facts.head else ""
    compute = "" if model.is_external else str(model.options.get("compute_type", "auto")).removeprefix("auto")
    return {
        "parent_model": "",
        "format": _get_format(model),
        "family": family,
        "families": [family] if family else [],
        "parameter_size": str(metadata.get("parameterSize") or _search_title(PARAMETERS, title) or label),
        "quantization_level": str(
            metadata.get("quantizationLevel")
            or compute
            or _search_title(QUANTIZATION, title)
            or (facts.head.quantization if facts.head else "")
        ),
    }


def get_architecture(model: Model, facts: ModelFacts = NO_FACTS) -> str:
    """Return `general.architecture` from the config, the weights or the name; empty if unknown."""
    declared = (model.entry.metadata.get("architecture") if model.entry else None) or (
        facts.head.architecture if facts.head else ""
    )
    title = _join_names(model).lower()
    return str(
        declared
        or next((kind for part, kind in ARCHITECTURES.items() if part in title), "" if model.is_external else model.engine)
    )


def get_context_length(model: Model, facts: ModelFacts = NO_FACTS) -> int:
    """Return the tokens of context from the config, else the command, the server or the weights; 0 if unknown."""
    if not model.entry:
        return 0
    configured = model.entry.metadata.get("contextLength")
    if isinstance(configured, int) and configured > 0:
        return configured
    return (
        model.entry.capabilities.context
        or CommandFlags.of(model.entry.cmd, model.entry.env).context_length
        or facts.context_length
    )


def get_model_info(model: Model, facts: ModelFacts = NO_FACTS) -> dict[str, Any]:
    """Build `model_info`; never null, because clients' types forbid it. The context length is the usable one."""
    kind = get_architecture(model, facts) or "unknown"
    length = get_context_length(model, facts)
    values = facts.head.values.items() if facts.head else ()
    short = {key: value for key, value in values if not isinstance(value, str) or len(value) <= MAX_TEXT_CHARS}
    info = {"general.basename": model.id} | short | {"general.architecture": kind}
    return info | ({f"{kind}.context_length": length} if length else {})


def _join_names(model: Model) -> str:
    """Join the names of the weights, the repository and the model, for pattern searches."""
    weights = CommandFlags.of(model.entry.cmd, model.entry.env).weights if model.entry else ""
    return " ".join([PurePath(weights).name, model.repository, model.entry.use_model_name if model.entry else "", model.id])


def _get_format(model: Model) -> str:
    if not model.is_external:
        return model.engine
    weights = CommandFlags.of(model.entry.cmd, model.entry.env).weights if model.entry else ""
    program = CommandFlags.of(model.entry.cmd, model.entry.env).program if model.entry else ""
    return "gguf" if weights.endswith(".gguf") or program.startswith("llama") else "safetensors" if program == "vllm" else ""


def _search_title(pattern: re.Pattern[str], title: str) -> str:
    found = pattern.search(title)
    return found[0].upper() if found else ""


SPLIT_WEIGHTS = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
"""The numbering of split weights; a command names the first file."""


class ModelFiles(Struct, frozen=True):
    """Size, age and digest of a model's files."""

    size: int
    """Bytes."""
    modified: float
    """Unix time of the newest file; 0 without files."""
    digest: str
    """64 hex digits that hash the model's id and its files' names, sizes and versions, but not their contents."""


def inspect_files(model: Model) -> ModelFiles:
    """Examine the files of a model."""
    size, newest, lines = 0, 0.0, [model.id]
    seen: set[Path] = set()
    for path, name in sorted(_list_paths(model)):
        try:
            real = path.resolve()
            status = real.stat()
        except OSError:
            continue  # deleted since it was listed
        version = real.name if path.is_symlink() else str(status.st_mtime_ns)  # in the hub's cache, the name is a hash
        lines.append(f"{name} {status.st_size} {version}")
        newest = max(newest, status.st_mtime)
        size += 0 if real in seen else status.st_size
        seen.add(real)
    return ModelFiles(size, newest, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _list_paths(model: Model) -> Iterator[tuple[Path, str]]:
    """Yield each file and its path relative to the model."""
    if model.source:
        if model.source.is_file():
            yield model.source, model.source.name
        for folder, _, names in os.walk(model.source):  # unlike rglob, it ignores folders that are being deleted
            paths = (Path(folder, name) for name in names)
            yield from ((path, str(path.relative_to(model.source))) for path in paths if os.path.isfile(path))  # noqa: PTH113
    elif model.entry:
        for file in CommandFlags.of(model.entry.cmd, model.entry.env).files:
            path = Path(file)
            parts = path.parent.glob(SPLIT_WEIGHTS.sub("-*.gguf", path.name)) if SPLIT_WEIGHTS.search(path.name) else [path]
            yield from ((part, part.name) for part in parts if part.is_file())
