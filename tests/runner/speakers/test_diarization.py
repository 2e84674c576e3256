"""Speaker diarization: recordings of dialogues go in, turns come out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import combinations, cycle, islice, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from eardrum.concurrency import cancel_and_wait
from eardrum.engines.base import EngineOptions
from eardrum.errors import AudioError
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.speakers.diarization import SpeakerJob, match_known_voices
from eardrum.runner.speakers.voice_encoder import GRAPH_PATH, VoiceEncoder
from eardrum.runner.vad import VadModel
from eardrum.speakers import SpeakerRequest, SpeakerTurns, VoicePrint
from tests.dialogues import Dialogue, build_dialogue, measure_error
from tests.recordings import (
    RATE,
    Samples,
    create_noise,
    create_silence,
    decode_file,
    encode,
    load_announcements,
    load_prompts,
    load_speech,
)

pytestmark = pytest.mark.slow

T = TypeVar("T")

TURNS = 9
MAX_ERROR = 0.08
MIN_RIGHT = 0.9
"""Share of the dialogues in which the number of speakers must be right."""


@cache
def load_voices() -> dict[str, list[Samples]]:
    """Clips of five voices: two read books, two are on the phone, in English and French, and one is synthetic and German."""
    spec = find_spec("moonshine_voice")
    assert spec
    assert spec.submodule_search_locations
    book = decode_file(Path(spec.submodule_search_locations[0]) / "assets" / "two_cities.wav")
    return {
        "sense": cut_clips(load_speech()),
        "cities": cut_clips(book),
        "english": [samples for _, samples, _ in load_announcements() if len(samples) > 2 * RATE],
        "french": load_prompts("fr"),
        "german": load_prompts("de"),
    }


def cut_clips(samples: Samples, seconds: int = 4) -> list[Samples]:
    return [samples[at : at + seconds * RATE] for at in range(0, len(samples) - seconds * RATE, seconds * RATE)]


@cache
def build_dialogues() -> list[tuple[tuple[str, ...], Dialogue]]:
    """A dialogue of each two voices, and of each three."""
    made = []
    for number, names in enumerate([*combinations(load_voices(), 2), *combinations(load_voices(), 3)]):
        clips = [islice(cycle(load_voices()[name]), number, None, 2) for name in names]
        order = np.random.default_rng(number).permutation(np.resize(range(len(names)), TURNS))
        made.append((names, build_dialogue([(int(at), next(clips[at])) for at in order], gap_s=(0.1, 0.3, 0.6)[number % 3])))
    return made


@pytest.fixture(scope="module")
def batcher() -> Iterator[WindowBatcher]:
    made = WindowBatcher(VoiceEncoder.load(GRAPH_PATH, EngineOptions()), batch=8)
    yield made
    made.close()


async def run_job(batcher: WindowBatcher, sound: bytes, find: Callable[[SpeakerJob], Awaitable[T]], **wanted: int) -> T:
    job = SpeakerJob(SpeakerRequest(**wanted), batcher=batcher, vad=VadModel(), max_seconds=3600)

    async def feed() -> None:
        await job.pipe.feed(sound)
        job.pipe.finish()

    async with asyncio.timeout(60):
        feeding = asyncio.ensure_future(feed())
        try:
            return await find(job)
        finally:
            await cancel_and_wait(feeding)


async def find_turns(batcher: WindowBatcher, samples: Samples, **wanted: int) -> SpeakerTurns:
    return await run_job(batcher, encode(samples, "wav"), SpeakerJob.find_turns, **wanted)


async def find_voice(batcher: WindowBatcher, samples: Samples) -> VoicePrint:
    return await run_job(batcher, encode(samples, "wav"), SpeakerJob.find_voice)


def count_speakers(found: SpeakerTurns) -> int:
    return len({turn.speaker for turn in found.turns})


async def test_dialogues_of_two_and_three_voices(batcher: WindowBatcher) -> None:
    errors, right = [], 0
    for _, dialogue in build_dialogues():
        found = await find_turns(batcher, dialogue.samples)
        errors.append(measure_error(found.turns, dialogue))
        right += count_speakers(found) == dialogue.speakers
    assert len(errors) == 20
    assert np.mean(errors) <= MAX_ERROR
    assert right / len(errors) >= MIN_RIGHT


async def test_a_known_number_of_speakers(batcher: WindowBatcher) -> None:
    _, dialogue = build_dialogues()[-1]
    found = await find_turns(batcher, dialogue.samples, min_speakers=3, max_speakers=3)
    assert count_speakers(found) == 3
    assert measure_error(found.turns, dialogue) <= MAX_ERROR
    assert count_speakers(await find_turns(batcher, dialogue.samples, max_speakers=2)) == 2
    assert count_speakers(await find_turns(batcher, dialogue.samples, max_speakers=1)) == 1


async def test_one_voice(batcher: WindowBatcher) -> None:
    for clips in load_voices().values():
        found = await find_turns(batcher, np.concatenate(clips)[: 40 * RATE])
        assert count_speakers(found) == 1


@pytest.mark.parametrize("samples", [create_silence(5), create_noise(5), create_silence(0.01)], ids=["silence", "noise", "short"])
async def test_nobody(batcher: WindowBatcher, samples: Samples) -> None:
    assert await find_turns(batcher, samples) == SpeakerTurns()
    assert (await find_voice(batcher, samples)).values == ()


async def test_turns_are_in_order_and_apart(batcher: WindowBatcher) -> None:
    _, dialogue = build_dialogues()[0]
    turns = (await find_turns(batcher, dialogue.samples)).turns
    assert turns[0].speaker == 0
    assert all(turn.start < turn.end for turn in turns)
    assert all(one.end <= other.start + 1e-6 for one, other in pairwise(turns))


async def test_a_voice_is_known_again(batcher: WindowBatcher) -> None:
    names = ["sense", "english", "french"]
    known = [await find_voice(batcher, load_voices()[name][1]) for name in names]
    again = np.array([(await find_voice(batcher, load_voices()[name][2])).values for name in reversed(names)])
    assert match_known_voices(again, known) == {0: 2, 1: 1, 2: 0}
    other = np.array([(await find_voice(batcher, load_voices()["german"][0])).values])
    assert match_known_voices(other, known) == {}, "nobody is renamed to the nearest"
    assert known[0].compare(known[0]) == pytest.approx(1.0, abs=1e-4)


async def test_no_audio_is_the_clients_error(batcher: WindowBatcher) -> None:
    with pytest.raises(AudioError, match="cannot be decoded"):
        await run_job(batcher, b"no sound", SpeakerJob.find_turns)
