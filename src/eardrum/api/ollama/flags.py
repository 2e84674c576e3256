"""What a command line says of the model it serves, for the servers people use: llama-server, vLLM, whisper-server. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from eardrum.config.words import split

WEIGHTS = ("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo")
CONTEXT = ("-c", "--ctx-size", "--max-model-len")


@dataclass(frozen=True, slots=True)
class Flags:
    """The words of a command."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, command: str) -> Flags:
        """The words of a line; `--name=value` as two."""
        return cls(tuple(part for word in split(command) for part in (word.split("=", 1) if word.startswith("--") else [word])))

    @property
    def program(self) -> str:
        """The name of what is run."""
        return PurePath(self.words[0]).name if self.words else ""

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given."""
        return any(word in names for word in self.words)

    def value(self, *names: str) -> str:
        """What follows the first of these flags; empty if none is given."""
        pairs = zip(self.words, self.words[1:], strict=False)
        return next((value for word, value in pairs if word in names), "")

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
