"""How a stream is cut into windows, on made-up speech probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.runner.segmenter import FRAMES_PER_SECOND, ChunkPacker, SegmenterConfig, SpeechChunk, SpeechSegmenter
from eardrum.runner.vad import FRAME_SAMPLES
from eardrum.transcription import SAMPLE_RATE

RULE = SegmenterConfig(max_s=10.0)
MAX = int(RULE.max_s * FRAMES_PER_SECOND)
PADDING = round(RULE.padding_s * FRAMES_PER_SECOND)
SILENCE = round(RULE.silence_s * FRAMES_PER_SECOND)

OPENAI_DEFAULTS = SegmenterConfig(max_s=10.0, threshold=0.5, silence_s=0.2, padding_s=0.3)
"""What a client asks for that spells out OpenAI's defaults of server_vad."""

LONG_PADDING = SegmenterConfig(max_s=10.0, padding_s=5.0)
"""The longest padding a client may ask for."""

# A trace is a list of runs: so many frames with such a probability, jittered a little.
runs = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.3, 0.39, 0.41, 0.7, 1.0])), min_size=1, max_size=12)
rules = st.builds(
    SegmenterConfig,
    max_s=st.sampled_from([10.0, 30.0]),
    threshold=st.sampled_from([0.2, 0.4, 0.6]),
    silence_s=st.floats(0.5, 2.0),
    padding_s=st.floats(0.0, 0.5),
    pack=st.booleans(),
)


def build_trace(*parts: tuple[int, float]) -> np.ndarray:
    return np.concatenate([np.full(count, probability, np.float32) for count, probability in parts])


def build_counted_samples(frames: int) -> np.ndarray:
    """Samples that say where in the stream they are."""
    return np.arange(frames * FRAME_SAMPLES, dtype=np.float32)


def cut_stream(probs: np.ndarray, rule: SegmenterConfig = RULE, blocks: Sequence[int] = ()) -> list[SpeechChunk]:
    """Feed blocks of these many frames, then the rest at once."""
    cutter = ChunkPacker(rule) if rule.pack else SpeechSegmenter(rule)
    samples, found, at = build_counted_samples(len(probs)), [], 0
    for size in (*blocks, len(probs)):
        end = min(at + size, len(probs))
        if end > at:
            found += cutter.feed(samples[at * FRAME_SAMPLES : end * FRAME_SAMPLES], probs[at:end])
        at = end
    return found + list(cutter.finish())


def get_frames(cut: SpeechChunk) -> range:
    (stretch,) = list_stretches(cut)
    return stretch


def list_stretches(cut: SpeechChunk) -> list[range]:
    """The frames of the stream that each piece of a cut holds."""
    found = []
    for (at, sample), (end, _) in zip(cut.pieces, [*cut.pieces[1:], (len(cut.audio), 0)], strict=True):
        assert at % FRAME_SAMPLES == sample % FRAME_SAMPLES == end % FRAME_SAMPLES == 0
        assert np.array_equal(cut.audio[at:end], np.arange(sample, sample + end - at, dtype=np.float32)), "not that place's audio"
        found.append(range(sample // FRAME_SAMPLES, (sample + end - at) // FRAME_SAMPLES))
    return found


@settings(deadline=None)
@given(runs, rules)
def test_speech_is_never_lost_or_doubled_and_windows_fit(parts: list[tuple[int, float]], rule: SegmenterConfig) -> None:
    probs = build_trace(*parts)
    found = cut_stream(probs, rule)
    covered = np.zeros(len(probs), int)
    for cut in found:
        assert 0 < len(cut.audio) <= rule.max_s * SAMPLE_RATE
        assert 0 <= cut.speech_start < cut.speech_end <= len(cut.audio)
        # float32 in the trace against float in the rule
        assert cut.speech >= np.float32(rule.threshold) or cut.speech == pytest.approx(probs[list_stretches(cut)[0].start])
        for stretch in list_stretches(cut):
            covered[stretch.start : stretch.stop] += 1
    assert np.all(covered <= 1), "windows overlap"
    assert np.all(covered[probs >= rule.threshold] == 1), "speech was lost"
    assert [cut.start for cut in found] == sorted(cut.start for cut in found)


@settings(deadline=None)
@given(runs, rules, st.lists(st.integers(1, 200), max_size=30))
def test_block_size_changes_nothing(parts: list[tuple[int, float]], rule: SegmenterConfig, blocks: list[int]) -> None:
    probs = build_trace(*parts)
    assert [(c.pieces, len(c.audio), c.speech_start, c.speech_end) for c in cut_stream(probs, rule, blocks)] == [
        (c.pieces, len(c.audio), c.speech_start, c.speech_end) for c in cut_stream(probs, rule)
    ]


@pytest.mark.parametrize("rule", [OPENAI_DEFAULTS, LONG_PADDING])
def test_a_clients_wishes_keep_windows_in_bounds(rule: SegmenterConfig) -> None:
    for spoken in (120, *range(280, MAX + 1)):
        probs = build_trace((200, 0.0), (spoken, 0.9), (200, 0.0))
        assert max(len(cut.audio) for cut in cut_stream(probs, rule)) <= rule.max_s * SAMPLE_RATE


@pytest.mark.parametrize("rule", [OPENAI_DEFAULTS, LONG_PADDING])
def test_a_clients_wishes_cut_alike_in_blocks_of_any_size(rule: SegmenterConfig) -> None:
    probs = build_trace((40, 0.0), (50, 0.9), (8, 0.0), (50, 0.9), (100, 0.0), (30, 0.9), (60, 0.0))
    whole = [get_frames(cut) for cut in cut_stream(probs, rule)]
    assert [get_frames(cut) for cut in cut_stream(probs, rule, [1] * len(probs))] == whole


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("max_s", [1.0, 3.0, 8.0])
def test_long_padding_leaves_room_for_speech_in_the_short_windows_of_a_server(max_s: float, pack: bool) -> None:
    rule = SegmenterConfig(max_s=max_s, padding_s=5.0, pack=pack)
    found = cut_stream(build_trace((400, 0.0), (200, 0.9), (400, 0.0)), rule)
    held = [frame for cut in found for stretch in list_stretches(cut) for frame in stretch]
    assert set(range(400, 600)) <= set(held)
    assert len(set(held)) == len(held)
    assert max(len(cut.audio) for cut in found) <= max_s * SAMPLE_RATE


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.39])
def test_no_speech_gives_no_windows(probability: float) -> None:
    assert cut_stream(build_trace((3000, probability))) == []
    assert cut_stream(np.empty(0, np.float32)) == []


def test_speech_gets_its_padding() -> None:
    (cut,) = cut_stream(build_trace((100, 0.0), (50, 0.9), (100, 0.0)))
    assert get_frames(cut) == range(100 - PADDING, 150 + PADDING)
    assert (cut.start + cut.speech_start, cut.start + cut.speech_end) == (100 * FRAME_SAMPLES, 150 * FRAME_SAMPLES)
    assert cut.speech == pytest.approx(0.9)


def test_padding_ends_where_the_stream_does() -> None:
    (cut,) = cut_stream(build_trace((2, 0.0), (50, 0.9), (3, 0.0)))
    assert get_frames(cut) == range(55)


def test_only_a_pause_that_is_long_enough_ends_a_window() -> None:
    short, long = build_trace((50, 0.9), (SILENCE - 1, 0.0), (50, 0.9)), build_trace((50, 0.9), (SILENCE + 1, 0.0), (50, 0.9))
    assert len(cut_stream(short)) == 1
    first, second = cut_stream(long)
    assert get_frames(first).stop <= get_frames(second).start


def test_speech_that_fades_goes_on_until_it_is_well_below_the_threshold() -> None:
    (cut,) = cut_stream(build_trace((50, 0.0), (20, 0.9), (60, 0.3), (100, 0.0)))
    assert cut.start + cut.speech_end == 130 * FRAME_SAMPLES
    assert cut_stream(build_trace((50, 0.0), (60, 0.3), (100, 0.0))) == [], "0.3 must not begin speech"


def test_a_full_window_is_cut_in_its_longest_pause() -> None:
    probs = build_trace((MAX - 100, 0.9), (5, 0.05), (20, 0.9), (11, 0.05), (30, 0.9), (5, 0.05), (200, 0.9))
    first, *_ = cut_stream(probs)
    assert get_frames(first).stop in range(MAX - 75, MAX - 64), "not in the pause of 11 frames"


def test_a_pause_early_in_the_window_is_not_worth_a_short_one() -> None:
    probs = build_trace((30, 0.9), (20, 0.05), (MAX, 0.9))
    first, *_ = cut_stream(probs)
    assert len(get_frames(first)) >= MAX * (1 - RULE.search)


def test_a_pause_at_the_very_end_of_a_window_does_not_make_it_longer() -> None:
    for spoken in range(MAX - 5, MAX + 5):
        first, *_ = cut_stream(build_trace((spoken, 0.9), (1, 0.0), (300, 0.9)))
        assert len(get_frames(first)) <= MAX


def test_without_a_pause_the_cut_is_where_speech_is_least_sure() -> None:
    probs = build_trace((250, 0.95), (9, 0.5), (300, 0.95))
    first, *_ = cut_stream(probs)
    assert get_frames(first).stop in range(250, 259)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_memory_stays_bounded_for_an_hour(probability: float) -> None:
    cutter, block = SpeechSegmenter(RULE), 156
    most, found = 0, 0
    samples, probs = np.zeros(block * FRAME_SAMPLES, np.float32), np.full(block, probability, np.float32)
    for _ in range(int(3600 * FRAMES_PER_SECOND / block)):
        for cut in cutter.feed(samples, probs):
            found += len(cut.audio)
            assert cut.audio.base is None, "a window keeps the buffer alive"
        held = cutter._samples if cutter._samples.base is None else cutter._samples.base
        most = max(most, len(held) // FRAME_SAMPLES)
    assert most <= MAX + PADDING + block
    found += sum(len(cut.audio) for cut in cutter.finish())
    assert found == int(3600 * FRAMES_PER_SECOND / block) * block * FRAME_SAMPLES * probability


def test_packed_windows_hold_as_much_speech_as_fits_and_no_pauses() -> None:
    probs = build_trace(*[(60, 0.9), (200, 0.0)] * 20)  # 1.9 s of speech and 6.4 s of pause, twenty times
    rule = SegmenterConfig(max_s=30.0, pack=True)
    found = cut_stream(probs, rule)
    assert len(found) == 2
    assert [len(cut.pieces) for cut in found] == [11, 9]
    assert all(len(cut.audio) <= 30 * SAMPLE_RATE for cut in found)
    assert found[0].speech_start == 0, "the stream begins with speech"
    assert found[1].speech_end == len(found[1].audio) - PADDING * FRAME_SAMPLES


FULL = SegmenterConfig(max_s=30.0, pack=True, silence_s=2.0, padding_s=1.0, search=0.25)


def test_packed_windows_of_sentences_are_nearly_full() -> None:
    """Sentences of 4.8 s with pauses of 0.4 s, as somebody reads."""
    found = cut_stream(build_trace(*[(150, 0.9), (12, 0.0)] * 60), FULL)
    assert all(25 * SAMPLE_RATE < len(cut.audio) <= 30 * SAMPLE_RATE for cut in found[:-1])
    for cut in found[:-1]:
        assert list_stretches(cut)[-1].stop % 162 in range(150, 162), "not cut in a pause"


def test_a_packed_window_is_cut_at_its_last_long_pause() -> None:
    late = int(29 * FRAMES_PER_SECOND)
    first, *_ = cut_stream(
        build_trace((late - 160, 0.9), (18, 0.0), (100, 0.9), (17, 0.0), (30, 0.9), (3, 0.0), (900, 0.9)), FULL
    )
    assert get_frames(first).stop in range(late - 42, late - 25)


def test_speech_that_does_not_fit_into_little_room_begins_a_window() -> None:
    pause = (80, 0.0)  # 2.6 s
    first, second, *_ = cut_stream(build_trace((750, 0.9), pause, (30, 0.9), (5, 0.0), (600, 0.9)), FULL)
    assert get_frames(first).stop <= 750 + 80
    assert list_stretches(second)[0].start > 750


def test_packed_windows_of_endless_speech_are_seamless() -> None:
    found = cut_stream(build_trace((3000, 0.9)), SegmenterConfig(max_s=30.0, pack=True))
    assert next(stretch for cut in found for stretch in list_stretches(cut)).start == 0
    ends = [list_stretches(cut)[-1].stop for cut in found]
    starts = [list_stretches(cut)[0].start for cut in found]
    assert ends[:-1] == starts[1:]
    assert ends[-1] == 3000
    assert len(found) <= 5, "pieces of half a window must not leave windows half empty"
