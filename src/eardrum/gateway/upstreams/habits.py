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

GUESSES = 3
"""So often in a row a server must have served another way of asking, after refusals that named no reason, until it is asked so at
once: one that is in trouble for a moment keeps its times."""


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
    tried: tuple[tuple[str, bool], ...] = ()
    """Formats, with streaming or without, that were refused on this way."""
    guessed: bool = False
    """Whether a refusal that named no reason led here."""
    words: bool = False
    """Whether word times are asked for although the answer can do without."""

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
    """What is asked for where times are wanted, without streaming and with it."""
    has_verbose_text: bool = False
    """Whether a text has ever come in verbose_json: an empty one then means silence."""
    guesses: int = 0
    """Guessed plans in a row that have worked."""
    gives_words: bool = True
    """Whether word times may be asked for by those who can do without: no more, once the server has refused them."""

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

    def first(self, request: Request) -> Plan | None:
        """How the request is asked first: for no more than it needs, since what is more may be what a server gets wrong."""
        return self._plan(self.translating if request.task is Task.TRANSLATE else self.transcribing, request)

    def after(self, plan: Plan, refusal: Reply, request: Request) -> Plan | None:
        """What to try once the plan was refused; None if another way of asking would not change that."""
        other = PLAIN if plan.format == VERBOSE else VERBOSE
        if nothing_there(refusal):
            return self._plan(plan.ways[1:], request)
        if plan.words and (refusal.names_the_format or refusal.leaves_the_cause_open):
            self.gives_words = self.gives_words and not refusal.names_the_format
            return replace(plan, words=False)
        if refusal.names_the_format:
            return _next(plan, (other, plan.stream), (other, False))
        if not refusal.leaves_the_cause_open:
            return None
        unstreamed = ((self._format(plan.way, request, stream=False), False), (PLAIN, False)) if plan.stream else ()
        if plan.stream and "stream" in refusal.text.lower():
            return _next(plan, *unstreamed)
        found = _next(plan, *unstreamed, *_in_json(plan.way, request), guessed=True)
        return found or (self._plan(plan.ways[1:], request) if refusal.status == 501 else None)

    def instead(self, plan: Plan, request: Request) -> Plan | None:
        """What to try if an answer cannot be read, or has no text in it although there may be one; None if nothing is left."""
        return _next(plan, *_in_json(plan.way, request), guessed=True)

    def doubts_silence(self, plan: Plan) -> bool:
        """Whether an answer without a text may come of the way it was asked for: some servers have the text in json only."""
        return plan.format == VERBOSE and not self.has_verbose_text

    def learn(self, plan: Plan, request: Request, *, silent: bool = False) -> None:
        """The plan has worked; with a text, or `silent` without."""
        if request.task is Task.TRANSLATE:
            self.translating = plan.ways
        else:
            self.transcribing = plan.ways
        if plan.guessed:
            self.guesses += not silent
            if silent or self.guesses < GUESSES:
                return
        elif plan.format == VERBOSE:
            self.guesses = 0
            self.has_verbose_text = self.has_verbose_text or not silent
        if request.times or request.words:
            self.formats[plan.stream] = plan.format
        self.streams = self.streams and (plan.stream or not request.partial or not plan.way.certain)

    def _plan(self, ways: tuple[Way, ...], request: Request) -> Plan | None:
        if not ways:
            return None
        stream = request.partial and self.streams and ways[0].certain
        form = self._format(ways[0], request, stream=stream)
        return Plan(ways, form, stream, words=request.words_if_any and self.gives_words and form == VERBOSE)

    def _format(self, way: Way, request: Request, *, stream: bool) -> str:
        if not way.certain:
            return VERBOSE  # where a server says what it has done
        return self.formats[stream] if request.times or request.words else PLAIN


def _next(plan: Plan, *others: tuple[str, bool], guessed: bool = False) -> Plan | None:
    """The plan in the first of the other formats that was not tried yet, with streaming or without."""
    tried = (*plan.tried, (plan.format, plan.stream))
    for form, stream in others:
        if (form, stream) not in tried:
            return replace(plan, format=form, stream=stream, tried=tried, guessed=guessed or plan.guessed)
    return None


def _in_json(way: Way, request: Request) -> tuple[tuple[str, bool], ...]:
    """Word times, and what a server has done, are in verbose_json only."""
    return () if request.words or not way.certain else ((PLAIN, False),)


def nothing_there(reply: Reply) -> bool:
    """Whether the server has no such route. What it says about models that it does not have is another matter."""
    return reply.status in (404, 405) and "model" not in reply.message.lower()


def fields(plan: Plan, request: Request, model: str) -> list[Field]:
    """The form's fields beside the file: those that we understand, and the client's others as it sent them."""
    words = (request.words or plan.words) and plan.format == VERBOSE
    asked: list[Field] = [
        ("model", model),
        ("response_format", plan.format),
        ("language", request.language or ""),
        ("prompt", request.prompt),
        ("temperature", f"{request.temperature:g}" if request.temperature else ""),
        ("audio_track", str(request.audio_track or "")),
        ("translate", "true" if plan.way.translate else ""),
        ("stream", "true" if plan.stream else ""),
        *(("timestamp_granularities[]", value) for value in ("word", "segment") if words),
    ]
    given = {name for name, _ in request.extra}
    if not given & {"hotwords", "keywords", "keywords[]"}:
        asked.append(("hotwords", ", ".join(request.hotwords)))
    ours = {name for name, value in asked if value}
    return [(name, value) for name, value in asked if value] + [item for item in request.extra if item[0] not in ours]
