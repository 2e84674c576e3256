"""What a command line says of the model it serves, for the servers people use: llama-server, vLLM, whisper-server. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from eardrum.config.words import split

WEIGHTS = ("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo")
CONTEXT = ("-c", "--ctx-size", "--max-model-len")


VARIABLES = {
    "LLAMA_ARG_MODEL": "--model",
    "LLAMA_ARG_MODEL_URL": "--model-url",
    "LLAMA_ARG_HF_REPO": "--hf-repo",
    "LLAMA_ARG_CTX_SIZE": "--ctx-size",
    "LLAMA_ARG_MMPROJ": "--mmproj",
    "LLAMA_ARG_EMBEDDINGS": "--embeddings",
    "LLAMA_ARG_CHAT_TEMPLATE": "--chat-template",
    "LLAMA_ARG_CHAT_TEMPLATE_FILE": "--chat-template-file",
}
"""Variables by which llama-server is told what a flag says; the flag wins."""
OFF = ("", "0", "off", "false", "disabled")
SHELLS = ("sh", "bash", "dash", "zsh", "ash")
BEFORE = ("env", "exec", "nice", "nohup", "setsid", "stdbuf", "time", "ionice", "chrt", "taskset", "numactl")
"""Programs that run the one named behind them."""
ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Flags:
    """The words of a command."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, command: str, environment: Sequence[str] = ()) -> Flags:
        """The words of a line; `--name=value` as two. What variables of its environment say comes first, as flags.

        Args:
            command: as in the config; what a shell is told to run is taken for it.
            environment: as in the config, `NAME=value`.
        """
        words = _unwrapped(split(command))
        said = [part for variable in (*environment, *words) for part in _as_flag(variable)]
        own = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
        start = next((at for at, word in enumerate(own) if not _goes_before(word)), len(own))
        return cls((*own[start : start + 1], *said, *own[start + 1 :]))

    @property
    def program(self) -> str:
        """The name of what is run."""
        return PurePath(self.words[0]).name if self.words else ""

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given."""
        return any(word in names for word in self.words)

    def value(self, *names: str) -> str:
        """What follows the last of these flags, which is the one that counts; empty if none is given."""
        pairs = zip(self.words, self.words[1:], strict=False)
        return next((value for word, value in reversed(list(pairs)) if word in names), "")

    @property
    def weights(self) -> str:
        """File, address or repository of the weights."""
        if self.program == "vllm" and "serve" in self.words[:-1]:
            following = self.words[self.words.index("serve") + 1]
            return following if not following.startswith("-") else self.value(*WEIGHTS)
        return self.value(*WEIGHTS)

    @property
    def llama(self) -> bool:
        """Whether it is llama-server that runs, perhaps in a container or below another program."""
        return any(PurePath(word).name.startswith("llama-server") or "llama.cpp" in word for word in self.words)

    @property
    def files(self) -> tuple[str, ...]:
        """All that could be files of weights."""
        return tuple(value for value in (self.weights, self.value("--mmproj", "-mm")) if value)

    @property
    def context(self) -> int:
        """Tokens of context; 0 if that is not said."""
        value = self.value(*CONTEXT)
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0

    @property
    def hears(self) -> bool:
        """Whether the program is one that turns speech into text."""
        return "whisper" in self.program.lower() or any("/audio/transcriptions" in word for word in self.words)

    @property
    def embeds(self) -> bool:
        """Whether it is started for embeddings."""
        return self.has("--embedding", "--embeddings", "--pooling") or self.value("--task", "--runner") in ("embed", "pooling")


def _unwrapped(words: Sequence[str]) -> list[str]:
    """The words of what a shell is told to run, where a shell is what the command runs."""
    shell = next((at for at, word in enumerate(words) if PurePath(word).name in SHELLS), len(words))
    for word, following in zip(words[shell + 1 :], words[shell + 2 :], strict=False):
        if re.fullmatch(r"-[a-z]*c", word):
            return [*words[:shell], *split(following)]
        if not word.startswith("-"):
            break  # a script
    return list(words)


def _goes_before(word: str) -> bool:
    """Whether what is run stands further right."""
    return bool(ASSIGNED.fullmatch(word)) or PurePath(word).name in BEFORE


def _as_flag(variable: str) -> Iterator[str]:
    """What a variable says, as the flag and its value."""
    if (match := ASSIGNED.fullmatch(variable)) and (flag := VARIABLES.get(match[1])):
        if flag != "--embeddings":
            yield from (flag, match[2])
        elif match[2].lower() not in OFF:
            yield flag
