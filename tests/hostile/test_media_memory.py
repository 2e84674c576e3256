"""Small files that promise much: no header makes a runner take hundreds of MB, and none takes the length limit by surprise."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from eardrum.errors import AudioError
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import MAX_RATE, MIN_RATE, AudioDecoder

MOST_GROWN_MB = 200


def build_wav(rate: int, *, channels: int = 1, width: int = 1, size: int = 60_000) -> bytes:
    size -= size % (channels * width)
    block = channels * width
    form = struct.pack("<HHIIHH", 1, channels, rate, min(rate * block, 2**32 - 1), block, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", len(body) + size) + body + np.random.default_rng(7).bytes(size)


def build_flac(rate: int, samples: int = 60_000) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        noise = np.random.default_rng(7).integers(-3000, 3000, samples).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(noise[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def build_one_packet(size: int) -> bytes:
    """A Matroska file whose whole sound is one block."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_u8", rate=48_000, layout="stereo")
        packet = av.Packet(bytes(size))
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 48_000)
        container.mux(packet)
    return file.getvalue()


def get_refusal(data: bytes, *, max_seconds: float = 24 * 3600.0, live: bool = False) -> str:
    with pytest.raises(AudioError) as caught:
        list(AudioDecoder(BytePipe.from_bytes(data), raw_pcm=False, max_seconds=max_seconds, live=live))
    return caught.value.message


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("rate", [1, 10, 100, MIN_RATE - 1, MAX_RATE + 1, 2**31 - 1])
def test_rates_that_are_no_sound_are_refused(rate: int, live: bool) -> None:
    assert f"{rate:,} samples a second" in get_refusal(build_wav(rate, size=2_000), live=live)


@pytest.mark.parametrize("rate", [1, 10, 100])
def test_the_same_in_flac(rate: int) -> None:
    assert f"{rate:,} samples a second" in get_refusal(build_flac(rate, 5_000))


@pytest.mark.parametrize("rate", [MIN_RATE, MAX_RATE])
def test_rates_at_the_bounds_are_heard(rate: int) -> None:
    blocks = list(AudioDecoder(BytePipe.from_bytes(build_wav(rate, size=20_000)), raw_pcm=False, max_seconds=60))
    assert sum(map(len, blocks)) == pytest.approx(20_000 / rate * 16_000, abs=64)


def test_the_length_is_checked_before_the_samples_are_made() -> None:
    decoder = AudioDecoder(BytePipe.from_bytes(build_wav(MIN_RATE)), raw_pcm=False, max_seconds=10)
    with pytest.raises(AudioError, match=r"longer than 10 s.*limits\.audio_duration"):
        list(decoder)
    assert decoder.samples == 0


def test_a_file_of_the_longest_length_is_heard() -> None:
    blocks = list(AudioDecoder(BytePipe.from_bytes(build_wav(8_000, size=80_000)), raw_pcm=False, max_seconds=10))
    assert sum(map(len, blocks)) == pytest.approx(160_000, abs=64)


GROWN = """
import json, sys
from pathlib import Path
from eardrum.errors import EardrumError
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.process_tuning import keep_freed_memory, limit_arenas

def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10

limit_arenas()
keep_freed_memory()
pipe = BytePipe.from_bytes(Path(sys.argv[1]).read_bytes())
before, samples = most(), 0
try:
    for block in AudioDecoder(pipe, raw_pcm=False, max_seconds=24 * 3600):
        samples += len(block)
except (EardrumError, MemoryError):
    pass
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high water mark is told by Linux")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: build_wav(1), id="wav of 1 Hz"),
        pytest.param(lambda: build_wav(50), id="wav of 50 Hz"),
        pytest.param(lambda: build_flac(100), id="flac of 100 Hz"),
        pytest.param(lambda: build_wav(48_000, channels=512, size=30_000_000), id="512 channels"),
        pytest.param(lambda: build_one_packet(40_000_000), id="one packet"),
    ],
)
def test_no_file_takes_much_memory(data: object, tmp_path: Path) -> None:
    assert callable(data)
    file = tmp_path / "hostile"
    file.write_bytes(data())
    done = subprocess.run([sys.executable, "-c", GROWN, file], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) < MOST_GROWN_MB
