"""How fast text becomes speech with the embedded voice, and how soon the first audio of a long text is there."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection
from statistics import median

from bench.figure import BenchFigure, SeriesComparison
from bench.server import run_server

TEXT = (
    "The train to London leaves from platform nine at half past ten. Please turn off the lights in the kitchen and close the "
    "window before you go. She bought three loaves of bread, a bottle of milk and a newspaper. Nobody knew why the old clock in "
    "the hall had stopped. The weather will be cloudy tomorrow, with a chance of rain in the evening. "
)
SENTENCES = [f"{sentence.strip()}." for sentence in TEXT.split(". ") if sentence.strip()]
LONG_CHARS = 2000
BYTES_PER_S = 48_000
"""Of PCM at 24 kHz."""
FIRST_PACKET = 4096


def measure(quick: bool) -> list[BenchFigure]:
    """Time of synthesis per second of audio, and the time to the first audio, of the whole text and of a short one."""
    count, repetitions = (10, 2) if quick else (100, 10)
    texts = [SENTENCES[number % len(SENTENCES)] for number in range(count)]
    long = (TEXT * (LONG_CHARS // len(TEXT) + 1))[:LONG_CHARS]
    with run_server() as server:
        _speak(server.port, "Ready.")
        took, lasted = [], []
        for text in texts:
            began = time.perf_counter()
            size, _ = _speak(server.port, text)
            took.append(time.perf_counter() - began)
            lasted.append(size / BYTES_PER_S)
        firsts, wholes = [], []
        for _ in range(repetitions):
            began = time.perf_counter()
            _, first = _speak(server.port, long)
            firsts.append(first)
            wholes.append(time.perf_counter() - began)
    note = f"Real-time factor over HTTP: {sum(took) / sum(lasted):.4f}; {count} sentences, {sum(lasted):.0f} s of audio."
    after = f"{1000 * median(firsts):.0f} ms, the last after {1000 * median(wholes):.0f}"
    first_note = f"First audio of {LONG_CHARS} characters after {after}."
    return [
        BenchFigure(
            "speech-rtf", "text to speech", "the length of the audio", "s", took, lasted, SeriesComparison.TIMES_LESS, 20, note
        ),
        BenchFigure(
            "speech-first",
            "first audio of a long text",
            "all of its audio",
            "s",
            firsts,
            wholes,
            SeriesComparison.TIMES_LESS,
            5,
            first_note,
        ),
    ]


def _speak(port: int, text: str) -> tuple[int, float]:
    """Bytes of PCM, and seconds until the first of them."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    body = json.dumps({"model": "tts-1", "voice": "alloy", "input": text, "response_format": "pcm"})
    connection.request("POST", "/v1/audio/speech", body, {"content-type": "application/json"})
    response = connection.getresponse()
    size = len(response.read1(FIRST_PACKET))
    first = time.perf_counter() - began
    size += len(response.read())
    connection.close()
    assert response.status == 200, size
    return size, first
