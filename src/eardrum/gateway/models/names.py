"""Maps model names to engines and Hugging Face repositories by the names that engines declare. Pure: reads nothing from disk."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from msgspec import Struct

from eardrum.engines import registry
from eardrum.engines.registry import EngineCard
from eardrum.errors import ModelNotFoundError

HUB_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]{0,95}/\w[\w.-]{0,95}(/\w[\w.-]{0,91}\.bin)?", re.ASCII)
"""Matches ids of the hub, and of a file of a repository that holds many models (`ggerganov/whisper.cpp/ggml-base.bin`).

Strictly: names come from clients, and ids become folders and arguments of commands.
"""

MAX_NAME_LENGTH = 512
"""Characters of a name, which may be the path of a folder. Longer names are unknown, and are not compared."""

MAX_QUOTED_LENGTH = 80
"""Characters of an unknown name that an error repeats."""

DEFAULT_ALIASES = (
    *("whisper-1", "gpt-4o-transcribe", "gpt-4o-transcribe-diarize", "gpt-4o-mini-transcribe", "gpt-transcribe"),
    *("gpt-live-transcribe", "gpt-realtime-whisper"),
)
"""Names that many clients always send. They stand for the default model unless the config defines them."""

VOICE_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""The same for models that speak."""

DATED_NAME = re.compile(r"(.+)-\d{4}-\d{2}-\d{2}", re.ASCII)
"""OpenAI's names of snapshots: `gpt-4o-mini-transcribe-2025-12-15`."""

OLD_DATED_NAME = re.compile(r"(tts-1(?:-hd)?)-\d{4}", re.ASCII)
"""The same in older names: `tts-1-1106`."""

LATEST_TAG = ":latest"
"""The tag that Ollama's clients add to names without one. It has no meaning here."""


class ModelMatch(Struct, frozen=True):
    """An engine and a Hugging Face repository that a name may stand for."""

    card: EngineCard
    repository: str

    @property
    def sort_key(self) -> tuple[bool, int]:
        """Sorts installed engines first, then by the engines' rank."""
        return bool(self.card.missing_packages), self.card.rank


def find_matches(name: str, engine: str = "") -> list[ModelMatch]:
    """All meanings of a name, the best first; only those of `engine`, if given.

    A name is a short name that an engine declares (`large-v3`), an id with its owner (`nvidia/parakeet-tdt-0.6b-v3`), or
    such an id without its owner. With an `engine`, any id is a match: it may be a fine-tuned model.
    """
    if len(name) > MAX_NAME_LENGTH:
        return []
    cards = [registry.find_card(engine)] if engine else registry.list_cards().values()
    found = [match for card in cards for match in _match_card(card, name)]
    if engine and not found and is_hub_id(name):
        found = [ModelMatch(registry.find_card(engine), name)]
    return sorted(found, key=lambda match: match.sort_key)


def list_spellings(name: str) -> tuple[str, ...]:
    """The name as sent, then with `:latest` added or removed."""
    if len(name) > MAX_NAME_LENGTH:
        return (name,)
    bare = name.removesuffix(LATEST_TAG)
    if bare != name:
        return (name, bare) if bare else (name,)
    return (name, name + LATEST_TAG) if name and ":" not in name else (name,)


def list_meanings(name: str) -> tuple[str, ...]:
    """The spellings of a name, then those of a default alias without the date of a snapshot."""
    bare = name.removesuffix(LATEST_TAG)
    dated = DATED_NAME.fullmatch(bare) or OLD_DATED_NAME.fullmatch(bare)
    is_alias = dated and dated[1] in (*DEFAULT_ALIASES, *VOICE_ALIASES)
    return list_spellings(name) + (list_spellings(dated[1]) if dated and is_alias else ())


def is_hub_id(name: str) -> bool:
    """Whether the name has the form of a repository id at the hub."""
    return len(name) <= MAX_NAME_LENGTH and bool(HUB_ID.fullmatch(name))


def quote_name(name: str) -> str:
    """Quote a name for a message, on one line and shortened."""
    return repr(name if len(name) <= MAX_QUOTED_LENGTH else name[:MAX_QUOTED_LENGTH] + "...")


def choose_match(name: str, engine: str = "") -> ModelMatch:
    """Return the best meaning of a name.

    Raises:
        ModelNotFoundError: the name is unknown or ambiguous; the message lists alternatives.
    """
    found = find_matches(name, engine)
    if not found:
        prefix = f"The engine {registry.find_card(engine).name} knows no" if engine else "No engine here knows a"
        raise ModelNotFoundError(f"{prefix} model {quote_name(name)}.{_suggest_names(name, engine)}")
    best = [match for match in found if match.sort_key == found[0].sort_key]
    if len({(match.card.name, match.repository) for match in best}) > 1:
        meanings = ", ".join(f"{match.repository} (engine {match.card.name})" for match in best)
        raise ModelNotFoundError(f"{quote_name(name)} is ambiguous: {meanings}. Use the full name, or set the engine.")
    return found[0]


def _match_card(card: EngineCard, name: str) -> Iterator[ModelMatch]:
    wanted = name.lower()
    if repository := {known.lower(): repository for known, repository in card.names.items()}.get(wanted):
        yield ModelMatch(card, repository)
    elif "/" in name:
        if is_hub_id(name) and any(fnmatchcase(wanted, pattern) for pattern in card.repositories):
            yield ModelMatch(card, name)
    else:
        ids = {*card.names.values(), *(known for known in card.names if "/" in known)}
        for repository in sorted({card.names.get(id, id) for id in ids if id.rpartition("/")[2].lower() == wanted}):
            yield ModelMatch(card, repository)


def _suggest_names(name: str, engine: str) -> str:
    if len(name) > MAX_NAME_LENGTH:
        return f" A name has at most {MAX_NAME_LENGTH} characters."
    cards = [registry.find_card(engine)] if engine else registry.list_cards().values()
    known = {known.lower(): known for card in cards for known in card.names}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)]
    return f" Close to it: {', '.join(close)}." if close else " `eardrum engines` lists the known names."
