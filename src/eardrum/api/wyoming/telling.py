"""What comes out of a live session, as events of the protocol. Pure."""

from __future__ import annotations

from eardrum.api.wyoming.frames import Event
from eardrum.live import Ended, Failed, Final, LiveEvent, Partial, Refused
from eardrum.text import separator


class Telling:
    """The answer to one utterance of the client, which may be several of the session's: endless speech is cut.

    With `streaming` the text goes out in chunks as soon as it is never taken back. Joined, they are the transcript.
    """

    def __init__(self, language: str | None = None, *, streaming: bool = True):
        self._language = language or ""
        self._streaming = streaming
        self._started = False
        self._whole = ""
        """The text of the session's finished utterances."""
        self._told = 0
        """Characters that went out in chunks."""

    def take(self, event: LiveEvent) -> list[Event]:
        """What the client is told because of this.

        Raises:
            EardrumError: the utterance has no text, and why.
        """
        match event:
            case Partial(stable=stable):
                return self._chunk(self._with(stable)) if stable else []
            case Final(text=text, language=language):
                self._language = language or self._language
                self._whole = self._with(text)
                return self._chunk(self._whole) if text else []
            case Ended(language=language):
                self._language = language or self._language
                return self.end()
            case Failed(error=error) | Refused(error=error):
                raise error
        return []

    def end(self) -> list[Event]:
        """The transcript; the streamed one ends behind it, because those who do not stream read no further."""
        spoken = {"language": self._language} if self._language else {}
        transcript = Event("transcript", {"text": self._whole, **spoken})
        return [*self._start(), transcript, Event("transcript-stop")] if self._streaming else [transcript]

    def _with(self, text: str) -> str:
        return self._whole + separator(self._whole, text) + text

    def _chunk(self, text: str) -> list[Event]:
        new, self._told = text[self._told :], len(text)
        return [*self._start(), Event("transcript-chunk", {"text": new})] if new and self._streaming else []

    def _start(self) -> list[Event]:
        if self._started:
            return []
        self._started = True
        return [Event("transcript-start", {"language": self._language} if self._language else {})]
