"""How a foreign server is asked for a transcript, and what is tried next when it refuses. Decides; sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eardrum.errors import ConfigError
from eardrum.gateway.upstreams.form import Field
from eardrum.remote.refusal import Reply
from eardrum.types import Request, Task

TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
INFERENCE = "/inference"
"""Where whisper-server transcribes unless its command says otherwise."""

OPTIONS = ("transcriptions", "translations")
"""Options of models that a command or another server brings."""

VERBOSE, PLAIN = "verbose_json", "json"

FORMAT_WORDS = ("response_format", VERBOSE, "timestamp_granularities")
"""A refusal that has one of these in it is about the format of the answer and not about the audio."""


@dataclass(frozen=True, slots=True)
class Way:
    """A route by which a server may do a task."""

    path: str
    translate: bool = False
    """A field asks for the translation, as whisper-server wants it."""
    certain: bool = True
    """It is known, by the config or from its answers, that the server obeys that field; else its answer has to say so."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way of asking."""

    ways: tuple[Way, ...]
    """The first is taken; the others are left should there be nothing at its path."""
    format: str
    stream: bool

    @property
    def way(self) -> Way:
        """Where the request goes."""
        return self.ways[0]


@dataclass(slots=True)
class Habits:
    """What is known of one server. It is learned from requests that succeeded, and forgotten with its process."""

    transcribing: tuple[Way, ...]
    translating: tuple[Way, ...]
    streams: bool = True
    formats: dict[bool, str] = field(default_factory=lambda: {False: VERBOSE, True: VERBOSE})
    """What is asked for without streaming, and with it."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Habits:
        """What is known beforehand; the options are paths, `translations` empty where a field asks for a translation.

        Raises:
            ConfigError: an option is unknown, or no path.
        """
        for name, value in options.items():
            if name not in OPTIONS:
                raise ConfigError(
                    f"the option {name} is not one of {', '.join(OPTIONS)}, which models with `cmd` or `proxy` have."
                )
            if not isinstance(value, str) or not (value.startswith("/") or (name == "translations" and not value)):
                raise ConfigError(f"the option {name} must be a path such as {INFERENCE}, not {value!r}.")
        transcriptions, translations = options.get("transcriptions"), options.get("translations")
        paths = (transcriptions,) if transcriptions else (TRANSCRIPTIONS, INFERENCE)
        by_field = tuple(Way(path, translate=True, certain=translations == "") for path in paths)
        if translations:
            by_route: tuple[Way, ...] = (Way(translations),)
        else:
            by_route = by_field if translations == "" else (Way(TRANSLATIONS), *by_field)
        return cls(tuple(map(Way, paths)), by_route)

    def first(self, request: Request) -> Plan:
        """How the request is asked first."""
        ways = self.translating if request.task is Task.TRANSLATE else self.transcribing
        stream = request.partial and self.streams and ways[0].certain
        return Plan(ways, self.formats[stream], stream)

    def learn(self, plan: Plan, request: Request) -> None:
        """The plan has worked."""
        self.formats[plan.stream] = plan.format
        self.streams = self.streams and (plan.stream or not request.partial or not plan.way.certain)
        if request.task is Task.TRANSLATE:
            self.translating = plan.ways
        else:
            self.transcribing = plan.ways


def after(plan: Plan, refusal: Reply) -> Plan | None:
    """What to try once the plan was refused; None if another way of asking would not change that."""
    if nothing_there(refusal):
        ways = plan.ways[1:]
        return replace(plan, ways=ways, stream=plan.stream and ways[0].certain) if ways else None
    if refusal.status not in (200, 400, 415, 422):
        return None
    if plan.format == VERBOSE and any(word in refusal.text for word in FORMAT_WORDS):
        return replace(plan, format=PLAIN)
    if plan.stream and "stream" in refusal.text.lower():
        return replace(plan, format=VERBOSE, stream=False)
    return None


def nothing_there(reply: Reply) -> bool:
    """Whether the server has no such route. What it says about models that it does not have is another matter."""
    return reply.status in (404, 405, 501) and "model" not in reply.message.lower()


def fields(plan: Plan, request: Request, model: str) -> list[Field]:
    """The form's fields beside the file: those that we understand, and the client's others as it sent them."""
    words = request.words and plan.format == VERBOSE
    asked: list[Field] = [
        ("model", model),
        ("response_format", plan.format),
        ("language", request.language or ""),
        ("prompt", request.prompt),
        ("temperature", f"{request.temperature:g}" if request.temperature else ""),
        ("translate", "true" if plan.way.translate else ""),
        ("stream", "true" if plan.stream else ""),
        *(("timestamp_granularities[]", value) for value in ("word", "segment") if words),
    ]
    given = {name for name, _ in request.extra}
    if not given & {"hotwords", "keywords", "keywords[]"}:
        asked.append(("hotwords", ", ".join(request.hotwords)))
    ours = {name for name, value in asked if value}
    return [(name, value) for name, value in asked if value] + [item for item in request.extra if item[0] not in ours]
