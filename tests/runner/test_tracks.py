"""Which of several audio tracks is heard, and that none of it is lost while that is found out."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from eardrum.errors import InvalidRequestError, StorageFullError
from eardrum.runner import tracks
from eardrum.runner.byte_pipe import BytePipe, PipeCancelledError, ScratchFile
from eardrum.runner.decoder import AudioDecoder
from tests.recordings import RATE, TRACK_CODECS, Samples, create_noise, create_silence, create_tone, load_speech
from tests.recordings import encode_tracks as recorded

pytestmark = pytest.mark.slow


MARKING = ("matroska", "webm", "mp4", "mov")
"""Those that can mark a track as the default one. They mark the first if they are not told."""

VOICE = load_speech()[: 3 * RATE]
FDS = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = len(list(FDS.iterdir()))
    yield
    assert len(list(FDS.iterdir())) <= before


def decode_track(data: bytes, wanted: int | None = None, *, live: bool = False) -> tuple[int, int, Samples]:
    decoder = AudioDecoder(BytePipe.from_bytes(data), raw_pcm=False, max_seconds=3600, live=live, audio_track=wanted)
    samples = np.concatenate(list(decoder))
    return decoder.audio_track, decoder.audio_tracks, samples


def is_like(found: Samples, expected: Samples) -> bool:
    """The same sound at the same time, but for the delays of codecs."""
    size = min(len(found), len(expected)) - 4000
    best = max(np.corrcoef(found[2000 + d : 2000 + d + size], expected[2000 : 2000 + size])[0, 1] for d in range(-1600, 1600, 4))
    return bool(best > 0.8)


@pytest.mark.parametrize("container", TRACK_CODECS)
def test_a_silent_first_track_is_passed_over_though_it_is_the_default_one(container: str) -> None:
    number, count, found = decode_track(recorded(create_silence(3), VOICE, create_tone(3), container=container))
    assert (number, count) == (2, 3)
    assert is_like(found, VOICE)
    assert len(found) == pytest.approx(len(VOICE), abs=2000)


@pytest.mark.parametrize("container", TRACK_CODECS)
def test_the_first_track_is_heard_if_there_is_anything_on_it(container: str) -> None:
    late = np.concatenate([create_silence(1), VOICE[: 2 * RATE]])
    number, _, found = decode_track(recorded(late, create_tone(3), container=container))
    assert number == 1
    assert is_like(found, late)
    assert len(found) == pytest.approx(len(late), abs=2000)


@pytest.mark.parametrize("container", MARKING)
def test_the_default_track_comes_first(container: str) -> None:
    number, _, found = decode_track(recorded(create_tone(3), VOICE, create_noise(3, 0.1), container=container, marked=[2]))
    assert number == 2
    assert is_like(found, VOICE)
    assert decode_track(recorded(VOICE, create_silence(3), create_tone(3), container=container, marked=[2]))[0] == 1
    assert decode_track(recorded(create_silence(3), create_silence(3), VOICE, container=container, marked=[2]))[0] == 3


def test_of_several_default_tracks_the_first_comes_first() -> None:
    assert decode_track(recorded(create_tone(2), VOICE, create_noise(2), marked=[2, 3]))[0] == 2
    assert decode_track(recorded(create_tone(2), create_silence(2), VOICE, marked=[2, 3]))[0] == 3


def test_a_commentary_is_not_meant() -> None:
    assert decode_track(recorded(create_tone(2), VOICE, marked=[], aside=1))[0] == 2
    assert decode_track(recorded(create_tone(2), create_silence(2), marked=[], aside=1))[0] == 1


@pytest.mark.parametrize("container", TRACK_CODECS)
@pytest.mark.parametrize("live", [False, True])
def test_the_track_that_was_asked_for_is_heard(container: str, live: bool) -> None:
    data = recorded(create_tone(3), create_silence(3), VOICE, container=container)
    assert [decode_track(data, wanted, live=live)[:2] for wanted in (1, 2, 3)] == [(1, 3), (2, 3), (3, 3)]
    assert is_like(decode_track(data, 3)[2], VOICE)
    assert not decode_track(data, 2)[2].any()


def test_a_track_that_is_not_there_is_refused() -> None:
    for data, raw, told in (
        (recorded(VOICE, VOICE), False, "2 audio tracks, numbered 1 to 2"),
        (recorded(VOICE), False, "one audio track"),
        (b"\0\0" * 1000, True, "one audio track"),
    ):
        decoder = AudioDecoder(BytePipe.from_bytes(data), raw_pcm=raw, max_seconds=60, audio_track=3)
        with pytest.raises(InvalidRequestError, match=told) as caught:
            list(decoder)
        assert caught.value.param == "audio_track"


def test_silence_on_all_tracks_is_silence() -> None:
    number, count, found = decode_track(recorded(create_silence(4), create_silence(2)))
    assert (number, count, len(found)) == (1, 2, 4 * RATE)
    assert not found.any()


def test_a_faint_voice_is_sound_and_the_last_bit_is_not() -> None:
    faint = VOICE * np.float32(10 ** (-70 / 20) / np.abs(VOICE).max())
    assert decode_track(recorded(faint, create_tone(3)))[0] == 1
    last_bit = np.asarray(np.random.default_rng(1).integers(-1, 2, 3 * RATE) / 32767, np.float32)
    assert decode_track(recorded(last_bit, VOICE))[0] == 2


def test_tracks_of_any_channels_and_rates() -> None:
    """Each has its own format, which is what the samples of the one that is chosen late are held back in."""
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format="matroska") as output:
        forms = ((48_000, "5.1", create_silence(2)), (44_100, "stereo", VOICE[: 2 * RATE]))
        streams = [output.add_stream("pcm_s16le", rate=rate, layout=layout) for rate, layout, _ in forms]
        for stream, (rate, layout, sound) in zip(streams, forms, strict=True):
            resampler = av.AudioResampler("s16", layout, rate)
            frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(stream.encode(resampled))
        output.close()
        number, _, found = decode_track(Path(file.name).read_bytes())
    assert number == 2
    assert is_like(found, VOICE[: 2 * RATE])
    assert len(found) == pytest.approx(2 * RATE, abs=10)


def test_a_track_that_is_silent_for_very_long_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    late = np.concatenate([create_silence(20), VOICE])
    other = np.concatenate([create_silence(5), create_tone(18)])
    assert decode_track(recorded(late, other))[0] == 1
    monkeypatch.setattr("eardrum.runner.decoder.MAX_HELD_S", 10.0)
    number, _, found = decode_track(recorded(late, other))
    assert number == 2
    assert len(found) == len(other)
    np.testing.assert_allclose(np.flatnonzero(np.abs(found) > 0.1)[0], 5 * RATE, atol=100)
    assert np.abs(found[5 * RATE + 100 :]).reshape(-1)[:-100].max() < 0.6
    assert found[5 * RATE :].std() == pytest.approx(other[5 * RATE :].std(), rel=0.01), "nothing is lost or twice"


def test_live_the_other_track_is_heard_after_some_seconds() -> None:
    number, _, found = decode_track(recorded(create_silence(6), np.tile(VOICE, 2)), live=True)
    assert number == 2
    assert is_like(found, np.tile(VOICE, 2))


async def test_the_first_samples_come_before_the_last_byte() -> None:
    data = recorded(np.tile(VOICE, 8), np.tile(VOICE, 8))
    inlet = BytePipe()
    blocks = iter(AudioDecoder(inlet, raw_pcm=False, max_seconds=3600))
    await inlet.feed(data[: len(data) // 2])
    assert len(await asyncio.wait_for(asyncio.to_thread(next, blocks), 60)) > 0
    inlet.cancel()
    with pytest.raises(PipeCancelledError):
        await asyncio.to_thread(list, blocks)


async def test_giving_up_leaves_nothing_behind() -> None:
    data = recorded(create_silence(60), np.tile(VOICE, 20))
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(AudioDecoder(inlet, raw_pcm=False, max_seconds=3600))))
    await inlet.feed(data[: len(data) * 3 // 4])
    await asyncio.sleep(0.2)
    assert not reading.done()
    inlet.cancel()
    with pytest.raises(PipeCancelledError):
        await asyncio.wait_for(reading, 60)


def test_long_sound_is_held_back_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracks, "MEMORY_BYTES", 1000)
    number, _, found = decode_track(recorded(create_silence(12), np.tile(VOICE, 4)))
    assert number == 2
    np.testing.assert_allclose(found, np.tile(VOICE, 4), atol=2 / 32768)


def test_a_full_disk_is_told() -> None:
    track = tracks.AudioTrack(1, None)
    track._sound = ScratchFile(0, tracks.HOLD_PURPOSE)
    track._sound._file, track._sound._on_disk = Path("/dev/full").open("wb", buffering=0), True  # noqa: SIM115
    frame = av.AudioFrame.from_ndarray(VOICE[None], format="flt", layout="mono")
    frame.sample_rate = RATE
    with pytest.raises(StorageFullError, match="audio_track"):
        track.hold_frame(frame)
    track.close()
