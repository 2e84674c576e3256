"""An utterance as a recording, for models that take no live audio: those of commands and other servers."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

from eardrum.errors import TooLargeError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.live import Ended, Final, Format, LiveEvent
from eardrum.text import joined
from eardrum.types import Request

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
"""Of a WAV file, up to its samples."""
BYTES = 2
"""Of a sample."""
LARGEST = 0xFFFFFFFF - HEADER.size
"""Its lengths have 32 bits."""


class Recording:
    """16-bit samples in a spool, read as a WAV file."""

    def __init__(self, spool: Spool, format: Format):
        self._spool = spool
        self._format = format

    async def read(self) -> AsyncIterator[bytes]:
        """The file from its start. The spool must be finished: the header tells its length."""
        yield wav_header(self._format, self._spool.size)
        async for piece in self._spool.read():
            yield piece


def wav_header(format: Format, size: int) -> bytes:
    """What stands before so many bytes of samples."""
    frame = BYTES * format.channels
    kind = (b"fmt ", 16, 1, format.channels, format.rate, format.rate * frame, frame, 8 * BYTES)
    return HEADER.pack(b"RIFF", HEADER.size - 8 + size, b"WAVE", *kind, b"data", size)


async def heard(service: Service, model: Model, request: Request, format: Format, audio: AsyncIterator[bytes]) -> list[LiveEvent]:
    """What a live session would say at its end.

    Raises:
        TooLargeError: there is more audio than an upload may have.
        EardrumError: anything else that went wrong.
    """
    most = min(service.settings.limits.upload_bytes, LARGEST)
    with service.spool() as spool:
        async for piece in audio:
            await spool.write(piece)
            if spool.size > most:
                raise TooLargeError(f"The utterance is larger than limits.upload_bytes allows ({most} bytes).")
        spool.finish()
        transcript = await service.transcribe(model, request, Recording(spool, format))
    text, summary = joined(segment.text for segment in transcript.segments), transcript.summary
    return [
        Final(1, 0.0, summary.duration, text, tuple(transcript.segments), summary.language),
        Ended(summary.duration, summary.language, summary.decode_s),
    ]
