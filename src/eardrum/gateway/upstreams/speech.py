"""Speaks with an external server: Kokoro-FastAPI, speaches, LocalAI, a cloud, anything like OpenAI's `/v1/audio/speech`.

For protocols that need samples. A request of OpenAI's own protocol is forwarded as it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from eardrum.errors import EmptyTextError, UpstreamError
from eardrum.gateway.upstreams.http_client import OutgoingRequest, UpstreamResponse
from eardrum.openai_replies import UpstreamReply
from eardrum.speech import OUTPUT_RATE, SpeechBegun, SpeechEvent, SpeechFormat, SpeechRequest, SpeechSummary
from eardrum.spoken_text import SentenceCutter, cut_text

SPEECH_PATH = "/v1/audio/speech"

REQUEST_CHARS = 1000
"""Characters of a request, except of the first one: that holds a single sentence, so that the first audio comes soon."""

MAX_ERROR_BYTES = 1 << 16

MAX_HEADER_BYTES = 1 << 16
"""Bytes in which the samples of a WAV must begin."""

RAW_TYPES = ("audio/pcm", "audio/l16", "application/octet-stream")
"""Media types of samples without a header."""


class UpstreamSynthesizer:
    """Synthesizes with one external server. Closing an iterator cancels its request."""

    def __init__(self, send_request: Callable[[OutgoingRequest], Awaitable[UpstreamResponse]], address: str, model: str):
        self._send_request = send_request
        self._address = address
        self.model = model

    async def speak(self, request: SpeechRequest, text: str | AsyncIterator[str]) -> AsyncGenerator[SpeechEvent, None]:
        """Send the text in parts that end at sentences, and yield the audio as it comes.

        Samples are asked for as WAV, whose header tells their rate. Other formats are passed on as they come, and their text is
        sent as a whole: two files of most formats, one behind the other, are no longer one file.

        Raises:
            UpstreamError: the server refuses, or answers with something else than audio.
            EmptyTextError: the text holds nothing that can be spoken.
        """
        wav = WavReader(self._address) if request.format is SpeechFormat.PCM else None
        characters = parts = 0
        has_begun = False
        async for part in _group_sentences(text) if wav else _join_text(text):
            characters, parts = characters + len(part), parts + 1
            response = await self._request_audio(request, part)
            try:
                if wav:
                    wav.start_file(response.content_type)
                while chunk := await response.read_chunk():
                    audio = wav.feed(chunk) if wav else chunk
                    if audio and not has_begun:
                        has_begun = True
                        yield SpeechBegun(None, wav.rate if wav else request.sample_rate)
                    if audio:
                        yield audio
            finally:
                response.release()
        if not parts:
            raise EmptyTextError("The text holds nothing that can be spoken: send letters or digits.")
        yield SpeechSummary(characters, parts, wav.duration if wav else 0.0)

    async def _request_audio(self, request: SpeechRequest, text: str) -> UpstreamResponse:
        """Request the audio of a part of the text."""
        wanted = SpeechFormat.WAV if request.format is SpeechFormat.PCM else request.format
        body = {"model": self.model, "input": text, "response_format": wanted, "speed": request.speed}
        # The field is required in OpenAI's API, and servers have defaults for names that they do not know.
        encoded = json.dumps(body | {"voice": request.voice or "alloy"}).encode()
        response = await self._send_request(
            OutgoingRequest("POST", SPEECH_PATH, [(b"content-type", b"application/json")], encoded)
        )
        if response.status == 200 and response.content_type not in ("application/json", "text/html"):
            return response
        try:
            content = await response.read_body(MAX_ERROR_BYTES)
        finally:
            response.release()
        reply = UpstreamReply(SPEECH_PATH, response.status, {}, content)
        raise UpstreamError(f"{self._address} answered {response.status} to a text: {reply.message}")


async def _group_sentences(text: str | AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield the text in parts: the first sentence, then as many as are there."""
    if isinstance(text, str):
        sentences = cut_text(text)
        for part in (*sentences[:1], *_join_sentences(sentences[1:])):
            yield part
        return
    cutter = SentenceCutter()
    async for piece in text:
        for part in _join_sentences(cutter.feed(piece)):
            yield part
    for part in _join_sentences(cutter.finish()):
        yield part


async def _join_text(text: str | AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield all sentences of the text as one part."""
    whole = text if isinstance(text, str) else "".join([piece async for piece in text])
    if sentences := cut_text(whole):
        yield " ".join(sentences)


def _join_sentences(sentences: list[str]) -> list[str]:
    parts: list[str] = []
    for sentence in sentences:
        if parts and len(parts[-1]) + len(sentence) < REQUEST_CHARS:
            parts[-1] += f" {sentence}"
        else:
            parts.append(sentence)
    return parts


class WavReader:
    """Reads the samples of WAV files that arrive in pieces. Lengths in headers are ignored: many servers write false ones."""

    def __init__(self, address: str):
        self.rate = OUTPUT_RATE
        """Hz."""
        self._address = address
        self._head: bytearray | None = None
        """The bytes of a header that is not complete; None in the samples."""
        self._rest = b""
        """Half a sample."""
        self._samples = 0

    @property
    def duration(self) -> float:
        """Seconds of audio so far."""
        return self._samples / self.rate

    def start_file(self, content_type: str) -> None:
        """Begin another file.

        Raises:
            UpstreamError: it is neither a WAV nor samples.
        """
        is_raw = content_type in RAW_TYPES
        if not is_raw and "wav" not in content_type:
            raise UpstreamError(f"{self._address} answered with {content_type or 'no content type'} to a request for audio/wav.")
        self._head, self._rest = bytearray(), b""

    def feed(self, data: bytes) -> bytes:
        """Return the samples that `data` completes.

        Raises:
            UpstreamError: the header is no WAV's of 16 bits and one channel, or has no rate or another one than the file before.
        """
        if self._head is not None:
            self._head += data
            if len(self._head) < 12:
                return b""
            if not self._head.startswith(b"RIFF"):  # samples without a header
                data, self._head = bytes(self._head), None
            elif (at := self._find_samples(self._head)) is None:
                return b""
            else:
                data, self._head = bytes(self._head[at:]), None
        data = self._rest + data
        whole = len(data) - len(data) % 2
        self._rest = data[whole:]
        self._samples += whole // 2
        return data[:whole]

    def _find_samples(self, head: bytearray) -> int | None:
        """Return where the samples begin; None if more of the header must arrive."""
        at = 12
        while at + 8 <= len(head):
            name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
            if name == b"data":
                return at + 8
            if name == b"fmt " and at + 24 <= len(head):
                kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at + 8)
                if (channels, bits) != (1, 16) or kind not in (1, 0xFFFE):
                    raise UpstreamError(
                        f"{self._address} answered with a WAV of {channels} channels and {bits} bits, not 1 and 16."
                    )
                if not rate or (self._samples and rate != self.rate):
                    before = f", after one of {self.rate} Hz" if self._samples else ""
                    raise UpstreamError(f"{self._address} answered with a WAV of {rate} Hz{before}.")
                self.rate = rate
            at += 8 + size + size % 2
        if len(head) > MAX_HEADER_BYTES:
            raise UpstreamError(f"{self._address} answered with a WAV whose samples do not begin.")
        return None
