"""What another config changes for a server that runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eardrum.config import Settings
from eardrum.gateway.inventory import Model

OF_A_COMMAND = ("cmd", "cmdStop", "env", "proxy", "checkEndpoint", "timeouts")
"""What of a model's entry its process, or the way to it, is made of. Everything else can change while it runs."""

AT_THE_START = (
    *("host", "port", "tls_certificate", "tls_key", "model_dir", "spool_dir", "cache_dir"),
    *("limits", "log", "logLevel", "upstream", "origins", "wyoming"),
)
"""Settings that are read once, when the server is started."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Models by their ids. The unchanged ones are not told."""

    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    """Loaded anew by their next request."""
    removed: frozenset[str] = frozenset()
    later: tuple[str, ...] = ()
    """Settings that are other ones too, but count from the next start of the server on."""
    default: str = ""
    """The default model, if it is another one."""

    def __str__(self) -> str:
        """In words, for the log and for whoever asked."""
        parts = [f"{word}: {', '.join(sorted(models))}" for word, models in self._models() if models]
        if self.default:
            parts.append(f"the default model: {self.default}")
        if self.later:
            parts.append(f"from the next start on: {', '.join(self.later)}")
        return "; ".join(parts) or "no model is another one"

    def _models(self) -> tuple[tuple[str, frozenset[str]], ...]:
        return ("added", self.added), ("changed", self.changed), ("removed", self.removed)


def between(old: Mapping[str, Model], new: Mapping[str, Model], later: tuple[str, ...] = ()) -> Changes:
    """How `new` models differ from `old` ones. What was not named by a config does not go with it."""
    both = old.keys() & new.keys()
    return Changes(
        added=frozenset(new.keys() - old.keys()),
        changed=frozenset(id for id in both if _made_of(old[id]) != _made_of(new[id])),
        removed=frozenset(id for id in old.keys() - new.keys() if old[id].origin in ("config", "peer")),
        later=later,
    )


def effective(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The new settings, less those that are read at the start only; the names of those that differ."""
    later = tuple(name for name in AT_THE_START if getattr(old, name) != getattr(new, name))
    return new.model_copy(update={name: getattr(old, name) for name in later}), later


def _made_of(model: Model) -> dict[str, Any]:
    made: dict[str, Any] = {name: getattr(model, name) for name in ("engine", "source", "options", "batch", "python", "key")}
    return made | {name: getattr(model.entry, name) for name in OF_A_COMMAND if model.entry and model.foreign}
