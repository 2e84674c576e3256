"""A form with an audio file, sent on while the file is still coming in."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from eardrum.gateway.spool import Source
from eardrum.gateway.upstreams.container import HEAD_BYTES, Container, container, wav_header

Field = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Recording:
    """Audio to be sent: its beginning, and the rest as it comes."""

    head: bytes
    rest: AsyncIterator[bytes]
    size: int | None
    """Bytes of both; None as long as nobody knows."""
    kind: Container


async def recording(audio: Source, *, raw_pcm: bool) -> Recording:
    """The audio from its start, once enough of it is here to know its kind. Headerless samples become a WAV file."""
    if raw_pcm:
        return await _with_header(audio)
    chunks, head = audio.read(), b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            return Recording(head, chunks, None, container(head))
    return Recording(head, chunks, len(head), container(head))


async def _with_header(audio: Source) -> Recording:
    """A WAV file, which begins with its size: so all of it must be here before any of it is sent."""
    size = 0
    async for chunk in audio.read():
        size += len(chunk)
    head = wav_header(size)
    return Recording(head, audio.read(), len(head) + size, container(head))


class Form:
    """The body of a request in multipart/form-data: the fields, then the file."""

    def __init__(self, fields: Sequence[Field], file: Recording):
        boundary = uuid.uuid4().hex
        parts = [*(_part(boundary, name) + value for name, value in fields), _part(boundary, "file", file.kind)]
        self._before = "\r\n".join(parts).encode(errors="replace")
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.size = None if file.size is None else len(self._before) + file.size + len(self._after)
        """In bytes; None as long as nobody knows."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._before + self._file.head
        async for chunk in self._file.rest:
            yield chunk
        yield self._after


def _part(boundary: str, name: str, file: Container | None = None) -> str:
    """What precedes a part's content."""
    quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted}"'
    if file:
        head += f'; filename="{file.name}"\r\nContent-Type: {file.media_type}'
    return head + "\r\n\r\n"
