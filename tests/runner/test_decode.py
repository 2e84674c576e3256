"""Any file to samples: whole, in dribs, damaged, lying, hostile."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eardrum.errors import AudioError
from eardrum.runner.decode import Decoder, index_follows_media
from eardrum.runner.inlet import CancelledInletError, Inlet
from tests.recordings import CODECS, encode, pcm, silence, speech, spoken, tone

SAMPLES = speech()[: 2 * 16_000]
FDS = Path("/proc/self/fd")
SLACK = 4096
"""Samples that codecs add as padding."""


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = len(list(FDS.iterdir()))
    yield
    assert len(list(FDS.iterdir())) <= before


def decoded(data: bytes, *, raw_pcm: bool = False, max_seconds: float = 60.0) -> np.ndarray:
    decoder = Decoder(Inlet.holding(data), raw_pcm=raw_pcm, max_seconds=max_seconds)
    blocks = list(decoder)
    assert decoder.samples == sum(map(len, blocks))
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def refused(data: bytes, **how: float) -> str:
    with pytest.raises(AudioError) as caught:
        decoded(data, **how)
    assert caught.value.status == 400
    assert caught.value.param == "file"
    return caught.value.message


def like(found: np.ndarray, expected: np.ndarray) -> float:
    """Correlation at the best of the small delays that codecs cause."""
    size = min(len(found), len(expected)) - 2 * SLACK
    middle = expected[SLACK : SLACK + size]
    return float(max(np.corrcoef(found[SLACK + d : SLACK + d + size], middle)[0, 1] for d in range(-1200, 1200, 1)))


def wav_header(size: int, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """A header that claims `size` bytes of samples."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + 36, 2**32 - 1)) + chunks


@pytest.mark.parametrize("rate", [None, 24_000])
@pytest.mark.parametrize("container", CODECS)
def test_every_container(container: str, rate: int | None) -> None:
    found = decoded(encode(SAMPLES, container, rate=rate))
    assert found.dtype == np.float32
    assert len(SAMPLES) <= len(found) <= len(SAMPLES) + SLACK
    assert np.abs(found).max() <= 1.5


@pytest.mark.parametrize("container", ["wav", "mp3", "m4a", "ogg"])
def test_the_samples_are_those_that_were_encoded(container: str) -> None:
    assert like(decoded(encode(SAMPLES, container)), SAMPLES) > 0.9


def test_lossless_samples_come_back_exactly() -> None:
    for container in ("wav", "flac"):
        np.testing.assert_allclose(decoded(encode(SAMPLES, container)), SAMPLES, atol=2 / 32768)


def test_channels_are_mixed() -> None:
    left, right = tone(1.0, 440), tone(1.0, 700)
    both = np.stack([left, right], axis=1)
    data = (both * 32767).astype("<i2").tobytes()
    found = decoded(wav_header(len(data), channels=2) + data)
    assert np.corrcoef(found, (left + right))[0, 1] > 0.99


@pytest.mark.parametrize("container", CODECS)
async def test_every_container_in_dribs(container: str) -> None:
    data = encode(SAMPLES[:16_000], container)
    inlet = Inlet()
    decoder = Decoder(inlet, raw_pcm=False, max_seconds=60)
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(decoder)))
    for start in range(0, len(data), 7):
        await inlet.feed(data[start : start + 7])
    inlet.finish()
    np.testing.assert_array_equal(np.concatenate(await reading), decoded(data))


async def test_samples_come_out_before_the_last_byte_is_in() -> None:
    data = spoken("mp3")
    inlet = Inlet()
    blocks = iter(Decoder(inlet, raw_pcm=False, max_seconds=60))
    await inlet.feed(data[: len(data) * 3 // 4])
    assert len(await asyncio.wait_for(asyncio.to_thread(next, blocks), 10)) > 16_000
    inlet.cancel()
    with pytest.raises(CancelledInletError):
        await asyncio.to_thread(list, blocks)


def test_only_an_index_at_the_end_makes_a_file_wait() -> None:
    last, first = encode(SAMPLES, "m4a"), encode(SAMPLES, "m4a", faststart=True)
    assert index_follows_media(last[:65536])
    assert not index_follows_media(first[:65536])
    for container in ("wav", "flac", "mp3", "ogg", "webm", "mkv"):
        assert not index_follows_media(encode(SAMPLES, container)[:65536])
    # Long enough that FFmpeg cannot find the media in its own buffer once it has read the index.
    np.testing.assert_array_equal(decoded(spoken("m4a")), decoded(encode(speech(), "m4a", faststart=True)))


@pytest.mark.parametrize(
    "head",
    [b"", b"\0" * 7, b"\0\0\0\0ftyp", b"\0\0\0\x08ftyp" * 10, b"\0\0\0\x04ftypmdat" * 3, b"\xff\xff\xff\xffftyp", b"RIFF" * 99],
)
def test_odd_heads_are_not_taken_for_an_index_at_the_end(head: bytes) -> None:
    assert not index_follows_media(head)


def test_the_header_says_how_long_it_is() -> None:
    decoder = Decoder(Inlet.holding(spoken("flac")), raw_pcm=False, max_seconds=60)
    next(blocks := iter(decoder))
    assert decoder.duration == pytest.approx(len(speech()) / 16_000, abs=0.01)
    list(blocks)


def test_an_empty_file_is_refused() -> None:
    assert "0 bytes" in refused(b"")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(seed: int) -> None:
    assert "cannot be decoded" in refused(np.random.default_rng(seed).bytes(50_000))


@pytest.mark.parametrize(
    "text", [b"x", b"Dear server, this is no MP3.\n" * 50, b"<html><body>Not found</body></html>", b"\0" * 9999]
)
def test_what_is_no_audio_is_refused(text: bytes) -> None:
    assert "cannot be decoded" in refused(text)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:4.0,\n{0}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {0}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {1} RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT4S">'
        '<Period><AdaptationSet mimeType="audio/wav"><Representation id="1" bandwidth="1">'
        "<BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    ],
    ids=["hls", "concat", "sdp", "dash"],
)
@pytest.mark.parametrize("scheme", ["relative", "", "file://", "http://"])
def test_playlists_are_refused_and_open_nothing(
    playlist: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recording = tmp_path / "a.wav"
    recording.write_bytes(encode(SAMPLES, "wav"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        names = {"relative": "a.wav", "http://": f"http://127.0.0.1:{port}/a.wav"}
        named = names.get(scheme, f"{scheme}{recording}")
        assert "cannot be decoded" in refused(playlist.format(named, port).encode())
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("container", ["mp3", "ogg", "flac", "webm", "wav"])
def test_a_truncated_file_is_worth_what_is_in_it(container: str) -> None:
    data = encode(SAMPLES, container)
    found = decoded(data[: len(data) // 2])
    assert 0.3 * len(SAMPLES) < len(found) < 0.7 * len(SAMPLES)


def test_a_file_that_breaks_off_before_its_first_sample_is_refused() -> None:
    for container in ("mp3", "ogg", "flac", "webm", "m4a"):
        refused(encode(SAMPLES, container)[:40])
    refused(encode(SAMPLES, "m4a")[:-2000])  # its index is gone


def test_a_file_without_one_good_packet_is_refused() -> None:
    data = encode(SAMPLES, "m4a", faststart=True)
    media = data.index(b"mdat") + 4
    assert "damaged" in refused(data[:media] + b"\xff" * (len(data) - media))


def test_damage_in_the_middle_costs_only_itself() -> None:
    data = bytearray(encode(SAMPLES, "mp3"))
    data[len(data) // 2 : len(data) // 2 + 800] = np.random.default_rng(1).bytes(800)
    assert len(decoded(bytes(data))) > 0.8 * len(SAMPLES)


@pytest.mark.parametrize("claimed", [0, 0x7FFFFFFF, 0xFFFFFFFF, 20 * len(SAMPLES)])
def test_a_wav_that_claims_too_much_or_nothing_is_read_to_its_end(claimed: int) -> None:
    assert len(decoded(wav_header(claimed) + pcm(SAMPLES))) == len(SAMPLES)


def test_a_wav_that_claims_too_little_ends_where_it_says() -> None:
    assert len(decoded(wav_header(2000) + pcm(SAMPLES))) == 1000


def test_a_wav_without_samples_is_empty() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((1, 2, 16_000, 0, "NONE", ""))
        output.writeframes(b"")
    assert len(decoded(file.getvalue())) == 0


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_video_without_sound_is_refused(container: str) -> None:
    assert "no audio track" in refused(encode(None, container))


def test_raw_samples() -> None:
    np.testing.assert_allclose(decoded(pcm(SAMPLES), raw_pcm=True), SAMPLES, atol=2 / 32768)
    assert decoded(b"\x00\x80\xff\x7f", raw_pcm=True).tolist() == [-1.0, 32767 / 32768]
    assert len(decoded(pcm(SAMPLES) + b"\x01", raw_pcm=True)) == len(SAMPLES), "half a sample is none"
    assert len(decoded(b"\x01", raw_pcm=True)) == 0


async def test_raw_samples_in_odd_dribs() -> None:
    inlet = Inlet()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(Decoder(inlet, raw_pcm=True, max_seconds=60))))
    data = pcm(SAMPLES[:3000])
    for start in range(0, len(data), 7):
        await inlet.feed(data[start : start + 7])
    inlet.finish()
    np.testing.assert_allclose(np.concatenate(await reading), SAMPLES[:3000], atol=2 / 32768)


@pytest.mark.parametrize("container", ["wav", "mp3", "m4a"])
def test_audio_longer_than_allowed_is_refused(container: str) -> None:
    assert "longer than" in refused(encode(SAMPLES, container), max_seconds=1.9)
    assert len(decoded(encode(SAMPLES, container), max_seconds=2.1)) >= len(SAMPLES)


def test_too_much_is_noticed_before_all_of_it_is_decoded() -> None:
    decoder = Decoder(Inlet.holding(encode(silence(120), "mp3")), raw_pcm=False, max_seconds=10)
    with pytest.raises(AudioError, match="longer than"):
        list(decoder)
    assert decoder.samples < 30 * 16_000


@pytest.mark.parametrize("container", ["ogg", "mp3", "flac"])
def test_a_chain_of_files_is_one_recording(container: str) -> None:
    data = encode(SAMPLES, container)
    assert len(decoded(data + data)) == pytest.approx(2 * len(SAMPLES), abs=SLACK)


@pytest.mark.parametrize("rates", [(44_100, 24_000), (16_000, 44_100)])
def test_a_change_of_format_in_mid_stream(rates: tuple[int, int]) -> None:
    chain = b"".join(encode(SAMPLES, "mp3", rate=rate) for rate in rates)
    found = decoded(chain)
    assert len(found) == pytest.approx(2 * len(SAMPLES), abs=2 * SLACK)
    assert like(found[-len(SAMPLES) :], SAMPLES) > 0.9, "the second part is distorted"


@pytest.mark.parametrize(
    ("container", "share"), [("mp3", 0.0), ("mp3", 0.001), ("mp3", 0.6), ("m4a", 0.0), ("m4a", 0.6), ("wav", 0.5)]
)
async def test_cancelling_ends_a_reader_that_waits(container: str, share: float) -> None:
    data = encode(SAMPLES, container)
    inlet = Inlet()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(Decoder(inlet, raw_pcm=False, max_seconds=60))))
    await inlet.feed(data[: int(len(data) * share)] or b"R")
    await asyncio.sleep(0.05)
    assert not reading.done()
    inlet.cancel()
    with pytest.raises(CancelledInletError):
        await asyncio.wait_for(reading, 20)


async def test_cancelling_ends_a_reader_of_raw_samples() -> None:
    inlet = Inlet()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(Decoder(inlet, raw_pcm=True, max_seconds=60))))
    await inlet.feed(pcm(SAMPLES))
    inlet.cancel()
    with pytest.raises(CancelledInletError):
        await asyncio.wait_for(reading, 20)


def test_raw_samples_that_never_come() -> None:
    assert "empty" in refused(b"", raw_pcm=True)


def test_a_header_that_promises_sound_that_does_not_come() -> None:
    flac = spoken("flac")
    assert "cannot be decoded" in refused(flac[:42] + b"garbage" * 1000)
