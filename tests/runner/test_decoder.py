"""Any file to samples: whole, in dribs, damaged, lying, hostile."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from eardrum.errors import AudioError
from eardrum.runner.byte_pipe import BytePipe, PipeCancelledError
from eardrum.runner.decoder import UNSAFE, AudioDecoder
from eardrum.runner.ogg import compute_checksum
from tests.recordings import CODECS, create_silence, create_tone, encode, encode_pcm, encode_speech, load_speech, shift_timestamps

pytestmark = pytest.mark.slow


SAMPLES = load_speech()[: 2 * 16_000]
FDS = Path("/proc/self/fd")
SLACK = 4096
"""Samples that codecs add as padding."""


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = len(list(FDS.iterdir()))
    yield
    assert len(list(FDS.iterdir())) <= before


def decode_with_warnings(
    data: bytes, *, raw_pcm: bool = False, max_seconds: float = 60.0, live: bool = False
) -> tuple[np.ndarray, str]:
    """The samples of a file, and the warnings that come with them."""
    decoder = AudioDecoder(BytePipe.from_bytes(data), raw_pcm=raw_pcm, max_seconds=max_seconds, live=live)
    blocks = list(decoder)
    assert decoder.samples == sum(map(len, blocks))
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32), " ".join(decoder.warnings)


def decode_samples(data: bytes, **how: float) -> np.ndarray:
    return decode_with_warnings(data, **how)[0]


def get_refusal(data: bytes, **how: float) -> str:
    with pytest.raises(AudioError) as caught:
        decode_samples(data, **how)
    assert caught.value.status == 400
    assert caught.value.param == "file"
    return caught.value.message


def measure_likeness(found: np.ndarray, expected: np.ndarray) -> float:
    """Correlation at the best of the small delays that codecs cause."""
    size = min(len(found), len(expected)) - 2 * SLACK
    middle = expected[SLACK : SLACK + size]
    return float(max(np.corrcoef(found[SLACK + d : SLACK + d + size], middle)[0, 1] for d in range(-1200, 1200, 1)))


def locate_piece(found: np.ndarray, piece: np.ndarray) -> float:
    """Seconds at which a piece of the original is found again."""
    size = 1 << int(np.ceil(np.log2(len(found) + len(piece))))
    matches = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(piece, size)))
    return int(np.argmax(matches[: len(found)])) / 16_000


def build_wav_header(size: int, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """A header that claims `size` bytes of samples."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + 36, 2**32 - 1)) + chunks


@pytest.mark.parametrize("rate", [None, 24_000])
@pytest.mark.parametrize("container", CODECS)
def test_every_container(container: str, rate: int | None) -> None:
    found = decode_samples(encode(SAMPLES, container, rate=rate))
    assert found.dtype == np.float32
    assert len(SAMPLES) - (1024 if container == "caf" else 0) <= len(found) <= len(SAMPLES) + SLACK
    assert np.abs(found).max() <= 1.5


@pytest.mark.parametrize(("muxer", "codec"), [("nut", "pcm_s16le"), ("sox", "pcm_s32le"), ("ircam", "pcm_s16le")])
def test_rarer_containers(muxer: str, codec: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=muxer) as output:
        track = output.add_stream(codec, rate=48_000)
        track.layout = "mono"
        resampler = av.AudioResampler(track.codec_context.format, track.layout, 48_000)
        frame = av.AudioFrame.from_ndarray(SAMPLES[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(track.encode(resampled))
        output.mux(track.encode(None))
    assert measure_likeness(decode_samples(file.getvalue()), SAMPLES) > 0.95


@pytest.mark.parametrize("container", ["wav", "mp3", "m4a", "ogg"])
def test_the_samples_are_those_that_were_encoded(container: str) -> None:
    assert measure_likeness(decode_samples(encode(SAMPLES, container)), SAMPLES) > 0.9


def test_lossless_samples_come_back_exactly() -> None:
    for container in ("wav", "flac"):
        np.testing.assert_allclose(decode_samples(encode(SAMPLES, container)), SAMPLES, atol=2 / 32768)


def test_channels_are_mixed() -> None:
    left, right = create_tone(1.0, 440), create_tone(1.0, 700)
    both = np.stack([left, right], axis=1)
    data = (both * 32767).astype("<i2").tobytes()
    found = decode_samples(build_wav_header(len(data), channels=2) + data)
    assert np.corrcoef(found, (left + right))[0, 1] > 0.99


@pytest.mark.parametrize("container", CODECS)
async def test_every_container_in_dribs(container: str) -> None:
    data = encode(SAMPLES[:16_000], container)
    inlet = BytePipe()
    decoder = AudioDecoder(inlet, raw_pcm=False, max_seconds=60)
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(decoder)))
    for start in range(0, len(data), 7):
        await inlet.feed(data[start : start + 7])
    inlet.finish()
    np.testing.assert_array_equal(np.concatenate(await reading), decode_samples(data))


async def test_samples_come_out_before_the_last_byte_is_in() -> None:
    data = encode_speech("mp3")
    inlet = BytePipe()
    blocks = iter(AudioDecoder(inlet, raw_pcm=False, max_seconds=60))
    await inlet.feed(data[: len(data) * 3 // 4])
    assert len(await asyncio.wait_for(asyncio.to_thread(next, blocks), 60)) > 16_000
    inlet.cancel()
    with pytest.raises(PipeCancelledError):
        await asyncio.to_thread(list, blocks)


def parse_boxes(data: bytes) -> dict[bytes, bytes]:
    """The boxes of an MP4 by their kinds."""
    found, at = {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        found[data[at + 4 : at + 8]] = data[at : at + size]
        at += size
    return found


def build_box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def move_index(moov: bytes, by: int) -> bytes:
    """The index of media that lies so many bytes further back."""
    at = moov.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", moov, at)
    offsets = [offset + by for offset in struct.unpack_from(f">{count}I", moov, at + 4)]
    return moov[: at + 4] + struct.pack(f">{count}I", *offsets) + moov[at + 4 + 4 * count :]


def put_index_last(first: bytes) -> bytes:
    """An M4A with its index at the end, and something else before its media."""
    parts = parse_boxes(encode_speech("m4a"))
    return parts[b"ftyp"] + first + parts[b"free"] + parts[b"mdat"] + move_index(parts[b"moov"], len(first))


def build_reversed_aiff() -> bytes:
    """An AIFF that describes its samples behind them."""
    data = encode_speech("aiff")
    at = data.index(b"SSND")
    return data[:12] + data[at:] + data[12:at]


def build_preview() -> bytes:
    """A QuickTime film that begins with its preview."""
    pnot, parts = build_box(b"pnot", bytes(12)), parse_boxes(encode_speech("mov"))
    rest = b"".join(part for kind, part in parts.items() if kind != b"moov")
    return pnot + rest + move_index(parts[b"moov"], len(pnot))


SOUGHT: dict[str, Callable[[], bytes]] = {
    "index last": lambda: encode_speech("m4a"),
    "index last behind 100 KB of room": lambda: put_index_last(build_box(b"free", bytes(100_000))),
    "index last behind 2 MB of room": lambda: put_index_last(build_box(b"skip", bytes(2_000_000))),
    "mov": lambda: encode_speech("mov"),
    "mov with a preview": build_preview,
    "caf": lambda: encode_speech("caf"),
    "aiff": build_reversed_aiff,
}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("what", SOUGHT)
def test_what_must_be_sought_in_is_read_as_a_file(what: str, live: bool) -> None:
    found, warnings = decode_with_warnings(SOUGHT[what](), live=live)
    assert len(found) == pytest.approx(len(load_speech()), abs=SLACK)
    assert locate_piece(found, load_speech()[160_000:192_000]) == pytest.approx(10, abs=0.05)
    assert not warnings


async def test_a_file_that_must_be_sought_in_may_come_slowly() -> None:
    data = put_index_last(build_box(b"free", bytes(1_100_000)))
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(AudioDecoder(inlet, raw_pcm=False, max_seconds=60))))
    for start in range(0, len(data), 50_000):
        await inlet.feed(data[start : start + 50_000])
    inlet.finish()
    np.testing.assert_array_equal(np.concatenate(await reading), decode_samples(data))


@pytest.mark.parametrize("live", [False, True])
async def test_what_is_no_audio_is_refused_before_all_of_it_is_here(live: bool) -> None:
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(AudioDecoder(inlet, raw_pcm=False, max_seconds=60, live=live))))
    for _ in range(3):
        await inlet.feed(b"Dear server, this is no MP3.\n" * 20_000)
    try:
        with pytest.raises(AudioError, match="cannot be decoded"):
            await asyncio.wait_for(asyncio.shield(reading), 60)
    finally:
        inlet.cancel()


@pytest.mark.parametrize(
    "head",
    [b"\0" * 7, b"\0\0\0\0ftyp", b"\0\0\0\x08ftyp" * 10, b"\0\0\0\x04ftypmdat" * 3, b"\xff\xff\xff\xffftyp", b"caff", b"OggS"],
)
def test_odd_heads_are_refused(head: bytes) -> None:
    assert "cannot be decoded" in get_refusal(head)


@pytest.mark.parametrize("container", CODECS)
def test_a_live_container_loses_nothing_of_its_beginning(container: str) -> None:
    data = encode(load_speech(), container, faststart=container in ("m4a", "mp4"))
    live, whole = decode_samples(data, live=True), decode_samples(data)
    assert len(whole) - len(live) < 0.03 * 16_000
    piece = load_speech()[5 * 16_000 : 8 * 16_000]
    assert locate_piece(live, piece) == pytest.approx(locate_piece(whole, piece), abs=0.01)


def test_a_live_mp4_in_fragments_loses_nothing_of_its_beginning() -> None:
    data = shift_timestamps(
        encode_speech("m4a"), "mp4", lambda at: at, movflags="frag_keyframe+empty_moov", frag_duration="500000"
    )
    assert len(decode_samples(data)) == pytest.approx(len(load_speech()), abs=SLACK)
    assert len(decode_samples(data, live=True)) == len(decode_samples(data))


def test_the_header_says_how_long_it_is() -> None:
    decoder = AudioDecoder(BytePipe.from_bytes(encode_speech("flac")), raw_pcm=False, max_seconds=60)
    next(blocks := iter(decoder))
    assert decoder.duration == pytest.approx(len(load_speech()) / 16_000, abs=0.01)
    list(blocks)


def test_an_empty_file_is_refused() -> None:
    assert "0 bytes" in get_refusal(b"")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(seed: int) -> None:
    assert "cannot be decoded" in get_refusal(np.random.default_rng(seed).bytes(50_000))


@pytest.mark.parametrize(
    "text", [b"x", b"Dear server, this is no MP3.\n" * 50, b"<html><body>Not found</body></html>", b"\0" * 9999]
)
def test_what_is_no_audio_is_refused(text: bytes) -> None:
    assert "cannot be decoded" in get_refusal(text)


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
        assert "cannot be decoded" in get_refusal(playlist.format(named, port).encode())
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_codec_that_reads_past_its_samples_is_refused() -> None:
    head = b"MP+\x07" + (10).to_bytes(4, "little") + bytes(20)
    assert "Musepack 7" in get_refusal(head + bytes(4000))
    assert [av.codec.Codec(name, "r").name for name in UNSAFE] == [*UNSAFE], "FFmpeg calls them so"


@pytest.mark.parametrize("container", ["mp3", "ogg", "flac", "webm", "wav"])
def test_a_truncated_file_is_worth_what_is_in_it(container: str) -> None:
    data = encode(SAMPLES, container)
    found = decode_samples(data[: len(data) // 2])
    assert 0.3 * len(SAMPLES) < len(found) < 0.7 * len(SAMPLES)


def test_a_file_that_breaks_off_before_its_first_sample_is_refused() -> None:
    for container in ("mp3", "ogg", "flac", "webm", "m4a"):
        get_refusal(encode(SAMPLES, container)[:40])
    get_refusal(encode(SAMPLES, "m4a")[:-2000])  # its index is gone


def test_a_file_without_one_good_packet_is_refused() -> None:
    data = encode(SAMPLES, "m4a", faststart=True)
    media = data.index(b"mdat") + 4
    assert "damaged" in get_refusal(data[:media] + b"\xff" * (len(data) - media))


def test_damage_in_the_middle_costs_only_itself() -> None:
    data = bytearray(encode(SAMPLES, "mp3"))
    data[len(data) // 2 : len(data) // 2 + 800] = np.random.default_rng(1).bytes(800)
    assert len(decode_samples(bytes(data))) > 0.8 * len(SAMPLES)


def split_ogg_pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("lost", [-2, -3])
def test_a_lost_page_of_an_ogg_is_told_and_moves_nothing(lost: int, gone: bool, live: bool) -> None:
    pages = split_ogg_pages(encode(load_speech()[: 6 * 16_000 - 4000], "ogg"))
    whole = decode_samples(b"".join(pages))
    middle = len(pages[lost]) // 2
    pages[lost] = b"" if gone else pages[lost][:middle] + bytes(20) + pages[lost][middle + 20 :]
    found, warnings = decode_with_warnings(b"".join(pages), live=live)
    assert len(found) == pytest.approx(len(whole), abs=SLACK)
    assert locate_piece(found, whole[-8000:]) == pytest.approx((len(whole) - 8000) / 16_000, abs=0.05)
    assert "A page of the file is missing or damaged." in warnings


def test_a_last_page_of_an_ogg_that_is_damaged_is_told() -> None:
    data = bytearray(encode(load_speech(), "ogg"))
    data[-20] ^= 1
    assert "its end is missing" in decode_with_warnings(bytes(data))[1]


def test_a_station_that_was_tuned_in_to_has_lost_nothing() -> None:
    pages = split_ogg_pages(encode(load_speech(), "ogg"))
    on_air = [page[:18] + struct.pack("<I", 5000 + number) + page[22:] for number, page in enumerate(pages[3:])]
    on_air = [page[:22] + struct.pack("<I", compute_checksum(page)) + page[26:] for page in on_air]
    found, warnings = decode_with_warnings(b"".join(pages[:2] + on_air))
    assert len(found)
    assert not warnings


@pytest.mark.parametrize("claimed", [0, 0x7FFFFFFF, 0xFFFFFFFF, 20 * len(SAMPLES)])
def test_a_wav_that_claims_too_much_or_nothing_is_read_to_its_end(claimed: int) -> None:
    assert len(decode_samples(build_wav_header(claimed) + encode_pcm(SAMPLES))) == len(SAMPLES)


def test_a_wav_that_claims_too_little_ends_where_it_says() -> None:
    assert len(decode_samples(build_wav_header(2000) + encode_pcm(SAMPLES))) == 1000


def test_a_wav_without_samples_is_empty() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((1, 2, 16_000, 0, "NONE", ""))
        output.writeframes(b"")
    assert len(decode_samples(file.getvalue())) == 0


PIECES = (load_speech()[: 3 * 16_000], load_speech()[3 * 16_000 : 6 * 16_000])

CLOCKS = {
    # what it is: (made from, FFmpeg's name, options)
    "mkv": ("mkv", "matroska", {}),
    "mp4": ("mp4", "mp4", {"movflags": "faststart"}),
    "m4a": ("m4a", "ipod", {}),
    "webm": ("webm", "webm", {}),
    "ogg": ("ogg", "ogg", {}),
    "ts": ("mkv", "mpegts", {}),
    "flv": ("m4a", "flv", {}),
    "fragments": ("m4a", "mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
}


def shift_clock(kind: str, move: Callable[[float], float | None]) -> bytes:
    source, muxer, options = CLOCKS[kind]
    return shift_timestamps(encode(np.concatenate(PIECES), source), muxer, move, **options)


def locate_pieces(found: np.ndarray) -> tuple[float, float]:
    """Where the middles of the two pieces are, less where they were."""
    one, two = (piece[16_000 : 2 * 16_000] for piece in PIECES)
    return locate_piece(found, one) - 1, locate_piece(found, two) - 4


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in CLOCKS if kind != "fragments"])
def test_sound_that_begins_late_is_late(kind: str, live: bool) -> None:
    found, warnings = decode_with_warnings(shift_clock(kind, lambda at: at + 5), live=live)
    assert locate_pieces(found) == pytest.approx((5, 5), abs=0.1)
    assert len(found) / 16_000 == pytest.approx(11, abs=0.2)
    assert not warnings


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", CLOCKS)
def test_a_recorder_that_paused_leaves_a_gap(kind: str, live: bool) -> None:
    found, warnings = decode_with_warnings(shift_clock(kind, lambda at: at if at < 3 else at + 20), live=live)
    assert locate_pieces(found) == pytest.approx((0, 20), abs=0.1)
    assert len(found) / 16_000 == pytest.approx(26, abs=0.2)
    assert "no audio from 3.0 to 23.0 s" in warnings


def test_silence_that_was_not_sent_keeps_its_place() -> None:
    """Opus sends a packet in 0.4 s where nobody speaks."""
    found, warnings = decode_with_warnings(shift_clock("webm", lambda at: at if at < 1 or at > 2.5 or at % 0.4 < 0.02 else None))
    assert locate_pieces(found)[1] == pytest.approx(0, abs=0.1)
    assert len(found) / 16_000 == pytest.approx(6, abs=0.1)
    assert not warnings


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("source", "muxer"), [("mkv", "matroska"), ("webm", "webm"), ("mkv", "mpegts")])
def test_a_clock_that_begins_anew_goes_on(source: str, muxer: str, live: bool) -> None:
    one, two = (shift_timestamps(encode(piece, source), muxer, lambda at: at + 2) for piece in PIECES)
    found, _ = decode_with_warnings(one + two, live=live)
    first, second = locate_pieces(found)
    assert second - first in (pytest.approx(0, abs=0.2), pytest.approx(2, abs=0.2))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["mkv", "webm"])
def test_a_wild_timestamp_means_nothing(kind: str, live: bool) -> None:
    once = iter([20_000.0])
    found, _ = decode_with_warnings(shift_clock(kind, lambda at: next(once, at) if at > 3 else at), max_seconds=86_400, live=live)
    assert locate_pieces(found) == pytest.approx((0, 0), abs=0.1)
    assert len(found) / 16_000 == pytest.approx(6, abs=0.2)


@pytest.mark.parametrize("live", [False, True])
def test_a_gap_longer_than_may_be_is_not_believed(live: bool) -> None:
    data = shift_clock("mkv", lambda at: at if at < 3 else at + 50_000)
    found, warnings = decode_with_warnings(data, max_seconds=3600, live=live)
    assert locate_pieces(found) == pytest.approx((0, 0), abs=0.1)
    assert "jump to 50,003 s" in warnings


@pytest.mark.parametrize("kind", ["mkv", "webm", "mp4", "ts"])
def test_a_stretch_that_was_lost_does_not_shift_the_rest(kind: str) -> None:
    found, warnings = decode_with_warnings(shift_clock(kind, lambda at: at if at < 2.2 or at > 3.2 else None))
    assert locate_pieces(found) == pytest.approx((0, 0), abs=0.1)
    assert len(found) / 16_000 == pytest.approx(6, abs=0.2)
    assert "no audio from 2.2 to 3.2 s" in warnings


def test_damaged_packets_are_told_and_do_not_shift_the_rest() -> None:
    data = bytearray(encode(np.concatenate(PIECES), "m4a", faststart=True))
    at = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 5 // 12
    data[at : at + 2500] = b"\xff" * 2500
    found, warnings = decode_with_warnings(bytes(data))
    assert locate_pieces(found) == pytest.approx((0, 0), abs=0.05)
    assert "packets, the first at 2." in warnings


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("container", [kind for kind in CODECS if kind not in ("ts", "mov", "caf")])
def test_a_file_that_breaks_off_says_so(container: str, live: bool) -> None:
    data = encode(SAMPLES, container, faststart=container in ("m4a", "mp4"))
    found, warnings = decode_with_warnings(data[: len(data) * 6 // 10], live=live)
    assert 0.3 * len(SAMPLES) < len(found) < 0.75 * len(SAMPLES)
    assert "breaks off at" in warnings or (container == "aac" and "A packet at" in warnings)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("container", CODECS)
def test_a_sound_file_has_no_warnings(container: str, live: bool) -> None:
    assert not decode_with_warnings(encode(SAMPLES, container), live=live)[1]


def test_an_ogg_that_breaks_off_between_two_pages_says_so() -> None:
    data = encode_speech("ogg")
    assert "its end is missing" in decode_with_warnings(data[: data.rindex(b"OggS")])[1]


@pytest.mark.parametrize("claimed", [0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_that_does_not_know_its_length_is_not_taken_for_broken(claimed: int) -> None:
    assert not decode_with_warnings(build_wav_header(claimed) + encode_pcm(SAMPLES))[1]


def test_what_stands_behind_the_samples_of_a_wav_belongs_to_it() -> None:
    data = build_wav_header(2 * len(SAMPLES)) + encode_pcm(SAMPLES) + b"LIST" + struct.pack("<I", 300_000) + bytes(300_000)
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert not decode_with_warnings(data)[1]


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(5000), b"APETAGEX" + bytes(300)])
def test_what_stands_behind_an_mp3_is_no_damage(tail: bytes) -> None:
    assert not decode_with_warnings(encode(SAMPLES, "mp3") + tail)[1]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_video_without_sound_is_refused(container: str) -> None:
    assert "no audio track" in get_refusal(encode(None, container))


def test_raw_samples() -> None:
    np.testing.assert_allclose(decode_samples(encode_pcm(SAMPLES), raw_pcm=True), SAMPLES, atol=2 / 32768)
    assert decode_samples(b"\x00\x80\xff\x7f", raw_pcm=True).tolist() == [-1.0, 32767 / 32768]
    assert len(decode_samples(encode_pcm(SAMPLES) + b"\x01", raw_pcm=True)) == len(SAMPLES), "half a sample is none"
    assert len(decode_samples(b"\x01", raw_pcm=True)) == 0


async def test_raw_samples_in_odd_dribs() -> None:
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(AudioDecoder(inlet, raw_pcm=True, max_seconds=60))))
    data = encode_pcm(SAMPLES[:3000])
    for start in range(0, len(data), 7):
        await inlet.feed(data[start : start + 7])
    inlet.finish()
    np.testing.assert_allclose(np.concatenate(await reading), SAMPLES[:3000], atol=2 / 32768)


@pytest.mark.parametrize("container", ["wav", "mp3", "m4a", "ogg"])
def test_audio_longer_than_allowed_is_refused(container: str) -> None:
    assert "longer than" in get_refusal(encode(SAMPLES, container), max_seconds=1.9)
    assert len(decode_samples(encode(SAMPLES, container), max_seconds=2.1)) >= len(SAMPLES)


def test_too_much_is_noticed_before_all_of_it_is_decoded() -> None:
    decoder = AudioDecoder(BytePipe.from_bytes(encode(create_silence(120), "mp3")), raw_pcm=False, max_seconds=10)
    with pytest.raises(AudioError, match="longer than"):
        list(decoder)
    assert decoder.samples < 30 * 16_000


@pytest.mark.parametrize("container", ["ogg", "mp3", "flac"])
def test_a_chain_of_files_is_one_recording(container: str) -> None:
    data = encode(SAMPLES, container)
    assert len(decode_samples(data + data)) == pytest.approx(2 * len(SAMPLES), abs=SLACK)


def build_ogg(codec: str, rate: int | None = None) -> bytes:
    """An Ogg of Opus, or of FLAC, which can be of any rate."""
    return shift_timestamps(encode(SAMPLES, codec, rate=rate), "ogg", lambda at: at)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "links",
    [[("flac", 44_100), ("flac", 16_000)], [("ogg", None), ("flac", 22_050)], [("flac", 8_000), ("ogg", None)]],
)
def test_a_chained_ogg_may_change_its_rate_and_its_codec(links: list[tuple[str, int | None]], live: bool) -> None:
    chain = b"".join(build_ogg(codec, rate) for codec, rate in links)
    found, warnings = decode_with_warnings(chain, live=live)
    assert len(found) == pytest.approx(2 * len(SAMPLES), abs=2 * SLACK)
    middle = SAMPLES[8_000:24_000]
    assert locate_piece(found[: len(SAMPLES)], middle) == pytest.approx(0.5, abs=0.02)
    assert locate_piece(found[len(SAMPLES) :], middle) == pytest.approx(0.5, abs=0.05)
    assert not warnings


def test_a_link_of_a_chain_that_cannot_be_decoded_costs_only_itself() -> None:
    good, bad = build_ogg("ogg"), bytearray(build_ogg("flac"))
    bad[28:80] = bytes(52)
    for chain in (good + bad + good, bad + good + good):
        found, warnings = decode_with_warnings(bytes(chain))
        assert len(found) == pytest.approx(2 * len(SAMPLES), abs=SLACK)
        assert "damaged" in warnings


@pytest.mark.parametrize("rates", [(44_100, 24_000), (16_000, 44_100)])
def test_a_change_of_format_in_mid_stream(rates: tuple[int, int]) -> None:
    chain = b"".join(encode(SAMPLES, "mp3", rate=rate) for rate in rates)
    found = decode_samples(chain)
    assert len(found) == pytest.approx(2 * len(SAMPLES), abs=2 * SLACK)
    assert measure_likeness(found[-len(SAMPLES) :], SAMPLES) > 0.9, "the second part is distorted"


@pytest.mark.parametrize(
    ("container", "share"), [("mp3", 0.0), ("mp3", 0.001), ("mp3", 0.6), ("m4a", 0.0), ("m4a", 0.6), ("wav", 0.5)]
)
async def test_cancelling_ends_a_reader_that_waits(container: str, share: float) -> None:
    data = encode(SAMPLES, container)
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(AudioDecoder(inlet, raw_pcm=False, max_seconds=60))))
    await inlet.feed(data[: int(len(data) * share)] or b"R")
    await asyncio.sleep(0.05)
    assert not reading.done()
    inlet.cancel()
    with pytest.raises(PipeCancelledError):
        await asyncio.wait_for(reading, 60)


async def test_cancelling_ends_a_reader_of_raw_samples() -> None:
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(AudioDecoder(inlet, raw_pcm=True, max_seconds=60))))
    await inlet.feed(encode_pcm(SAMPLES))
    inlet.cancel()
    with pytest.raises(PipeCancelledError):
        await asyncio.wait_for(reading, 60)


def test_raw_samples_that_never_come() -> None:
    assert "empty" in get_refusal(b"", raw_pcm=True)


def test_a_header_that_promises_sound_that_does_not_come() -> None:
    flac = encode_speech("flac")
    assert "cannot be decoded" in get_refusal(flac[:42] + b"garbage" * 1000)


@pytest.mark.parametrize("container", ["wav", "flac", "ogg", "mp3", "m4a", "webm"])
def test_a_container_declared_as_raw_is_decoded_as_what_it_is(container: str) -> None:
    data = encode_speech(container)
    if container == "mp3" and not data.startswith(b"ID3"):
        data = b"ID3\x04\x00\x00\x00\x00\x00\x00" + data
    assert np.array_equal(decode_samples(data, raw_pcm=True), decode_samples(data))


def test_raw_samples_are_raw_whatever_they_are() -> None:
    for samples in (b"\xff\xfb" * 50, b"RIFF" + b"\0" * 96, b"\0\0\0\0fty" + b"\0" * 93, b"ID" * 50, b"\1", b"\1\0\2"):
        assert len(decode_samples(samples, raw_pcm=True)) == len(samples) // 2
