"""Speech of other servers: texts in parts, and WAV files whatever their headers say."""

from __future__ import annotations

import asyncio
import struct

import pytest
from aiohttp import web

from eardrum.errors import UpstreamError
from eardrum.gateway.upstreams.external import ExternalUpstream
from eardrum.gateway.upstreams.speech import WavReader
from eardrum.speech import SpeechBegun, SpeechFormat, SpeechRequest, SpeechSummary
from tests.upstreams import UpstreamCall, fake_upstream

SAMPLES = bytes(range(200))


def build_wav(*, rate: int = 22_050, channels: int = 1, bits: int = 16, size: int = 200, extra: bytes = b"") -> bytes:
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * 2, 2, bits)
    return (
        b"RIFF\xff\xff\xff\xffWAVE" + b"fmt " + struct.pack("<I", 16) + head + extra + b"data" + struct.pack("<I", size) + SAMPLES
    )


def read(data: bytes, step: int, content_type: str = "audio/wav") -> tuple[bytes, int]:
    reader = WavReader("http://there")
    reader.start_file(content_type)
    found = b"".join(reader.feed(data[at : at + step]) for at in range(0, len(data), step))
    return found, reader.rate


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("size", [200, 0, 0xFFFFFFFF])
def test_samples_are_found_whatever_length_is_claimed(step: int, size: int) -> None:
    assert read(build_wav(size=size), step) == (SAMPLES, 22_050)


def test_other_chunks_are_skipped() -> None:
    assert read(build_wav(extra=b"LIST\x05\0\0\0abcde\0"), 3) == (SAMPLES, 22_050)


def test_samples_without_a_header() -> None:
    assert read(SAMPLES, 3, "audio/pcm") == (SAMPLES, 24_000)


def test_a_wav_that_is_called_something_else() -> None:
    assert read(build_wav(), 50, "application/octet-stream") == (SAMPLES, 22_050)


@pytest.mark.parametrize("content_type", ["audio/mpeg", "", "text/plain"])
def test_another_format_is_an_error(content_type: str) -> None:
    with pytest.raises(UpstreamError, match="http://there answered with"):
        read(SAMPLES, 10, content_type)


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"bits": 24}])
def test_another_sample_format_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(UpstreamError, match="not 1 and 16"):
        read(build_wav(**wrong), 1000)


def test_two_files_behind_each_other() -> None:
    reader = WavReader("http://there")
    found = b""
    for _ in range(2):
        reader.start_file("audio/wav")
        found += reader.feed(build_wav())
    assert found == SAMPLES * 2
    assert reader.duration == pytest.approx(200 / 22_050)
    reader.start_file("audio/wav")
    with pytest.raises(UpstreamError, match="a WAV of 16000 Hz, after one of 22050 Hz"):  # it would be played too fast
        reader.feed(build_wav(rate=16_000))


def test_a_file_without_a_rate_is_an_error() -> None:
    with pytest.raises(UpstreamError, match=r"a WAV of 0 Hz\."):
        read(build_wav(rate=0), 1000)


async def answer_speech(call: UpstreamCall, _: web.Request) -> web.Response:
    """Say the number of characters of the text in one sample."""
    wav = build_wav()[: -len(SAMPLES)] + struct.pack("<h", len(call.json["input"]))
    return web.Response(body=wav, content_type="audio/wav")


@pytest.mark.parametrize(
    ("format", "parts"), [(SpeechFormat.PCM, ["One.", "Two. Three."]), (SpeechFormat.WAV, ["One. Two. Three."])]
)
async def test_only_samples_are_asked_for_in_parts(format: SpeechFormat, parts: list[str]) -> None:
    """Two WAVs one behind the other would be heard as the first one only."""
    with fake_upstream(answer_speech) as server:
        upstream = ExternalUpstream(server.url)
        try:
            async with asyncio.timeout(10):
                begun, *audio, summary = [
                    event async for event in upstream.speak(SpeechRequest(format=format), "One. Two. Three.")
                ]
        finally:
            await upstream.close()
    assert [call.json["input"] for call in server.calls] == parts
    assert isinstance(begun, SpeechBegun)
    assert isinstance(summary, SpeechSummary)
    assert summary.characters == sum(map(len, parts))
    lengths = b"".join(struct.pack("<h", len(part)) for part in parts)
    assert b"".join(piece for piece in audio if isinstance(piece, bytes)).endswith(lengths)
