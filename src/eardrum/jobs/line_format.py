"""The format of the lines of a batch, which a protocol implements."""

from __future__ import annotations

from typing import Any, Protocol

from eardrum.jobs.records import ItemRecord, JobRecord, NewItem
from eardrum.transcription import Transcript


class ParsedLine:
    """A line of an input file: an item, and its audio if the line holds it."""

    def __init__(self, item: NewItem, audio: bytes = b""):
        self.item = item
        self.audio = audio


class BatchLineFormat(Protocol):
    """The format of the lines of a batch's input file and output files."""

    def parse_line(self, line: bytes, endpoint: str) -> ParsedLine:
        """Parse a line. Called in a thread. An item with a mistake in its request has an `error`.

        Raises:
            EardrumError: the line is no request for this endpoint.
        """

    async def resolve_item(self, item: NewItem) -> None:
        """Find the item's model, and complete its request with the server's defaults; or set its `error`."""

    def render_line(self, job: JobRecord, item: ItemRecord, transcript: Transcript | None) -> dict[str, Any]:
        """Render the result of an item that has ended, with the transcript of a recording; or its error."""
