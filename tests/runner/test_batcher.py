"""A thread per replica feeds the engine; futures carry what it heard, or how it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as threads
from typing import Self

import numpy as np
import pytest

from eardrum.engines.base import Engine, EngineOptions, EngineResult, Window
from eardrum.errors import AudioError
from eardrum.request_ids import RunnerLogFormatter, set_request_id, split_logged_id
from eardrum.runner.batcher import BRIEF_S, DecodedWindow, DecodeJob, WindowBatcher
from eardrum.runner.fair_queue import FairQueue, ServiceClass
from eardrum.transcription import SAMPLE_RATE, Capabilities, Priority, Segment, TranscriptionRequest
from tests.conftest import wait_for


class ScriptedEngine(Engine):
    """Not a model: says which windows it was given, waits where it is told to and fails where it is told to."""

    capabilities = Capabilities(max_batch=8)

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = Event()
        self.gate.set()
        self.entered = Event()
        self.closed = False
        self.failure: BaseException | None = None
        self.forgets = 0
        self.keyed = False

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        raise NotImplementedError

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        self.batches.append([window.request.prompt for window in windows])
        self.entered.set()
        assert self.gate.wait(60)
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        heard = [EngineResult([Segment(0.0, window.seconds, window.request.prompt)], "en") for window in windows]
        return heard[self.forgets :]

    def batch_key(self, window: Window) -> Hashable:
        return window.request.prompt[0] if self.keyed else None

    def close(self) -> None:
        self.closed = True


@contextmanager
def run_batcher(batch: int = 4, queue: FairQueue[DecodeJob] | None = None) -> Iterator[tuple[WindowBatcher, ScriptedEngine]]:
    engine = ScriptedEngine()
    batcher = WindowBatcher(engine, batch=batch, queue=queue)
    try:
        yield batcher, engine
    finally:
        engine.gate.set()
        batcher.close()
        assert engine.closed
        assert not [thread.name for thread in threads() if thread.name.startswith("engine")]


def create_window(name: str, priority: Priority = Priority.INTERACTIVE, start: float = 0.0, seconds: float = 0.1) -> Window:
    request = TranscriptionRequest(prompt=name, priority=priority)
    return Window(np.zeros(round(seconds * SAMPLE_RATE), np.float32), start, 1.0, (0.0, seconds), request)


def occupy_engine(batcher: WindowBatcher, engine: ScriptedEngine) -> Future[DecodedWindow]:
    """Keep the engine busy with one window, so that what is submitted next has to wait."""
    engine.gate.clear()
    future = batcher.submit(batcher.allocate_request_id(), create_window("first", Priority.LIVE))
    assert engine.entered.wait(60)
    return future


def get_text(future: Future[DecodedWindow]) -> str:
    return future.result(10).result.segments[0].text


def test_a_window_is_decoded_and_its_times_are_told() -> None:
    with run_batcher() as (batcher, engine):
        first = occupy_engine(batcher, engine)
        second = batcher.submit(batcher.allocate_request_id(), create_window("second"))
        time.sleep(0.05)
        engine.gate.set()
        assert (get_text(first), get_text(second)) == ("first", "second")
        assert first.result().decode_s >= 0.05
        assert second.result().queue_s >= 0.05
        assert batcher.decoded_windows == 2


def test_what_waits_is_decoded_together_up_to_the_limit_each_in_its_place() -> None:
    with run_batcher(batch=4) as (batcher, engine):
        occupy_engine(batcher, engine)
        futures = [batcher.submit(batcher.allocate_request_id(), create_window(f"w{i}")) for i in range(6)]
        engine.gate.set()
        assert [get_text(future) for future in futures] == [f"w{i}" for i in range(6)]
        assert [len(batch) for batch in engine.batches] == [1, 4, 2]


def test_live_goes_first_and_alone() -> None:
    with run_batcher(batch=8) as (batcher, engine):
        occupy_engine(batcher, engine)
        wanted = [
            create_window("bulk", Priority.BULK),
            create_window("file", start=40.0),
            create_window("clip"),
            create_window("live", Priority.LIVE),
            create_window("clip"),
        ]
        futures = [batcher.submit(batcher.allocate_request_id(), w) for w in wanted]
        engine.gate.set()
        assert [get_text(future) for future in futures] == ["bulk", "file", "clip", "live", "clip"]
        assert engine.batches[1] == ["live"]
        assert any(batch[:2] == ["clip", "clip"] for batch in engine.batches)


def test_a_batch_holds_windows_of_one_key() -> None:
    with run_batcher(batch=8) as (batcher, engine):
        engine.keyed = True
        occupy_engine(batcher, engine)
        futures = [batcher.submit(batcher.allocate_request_id(), create_window(name)) for name in ("a1", "b1", "a2", "b2")]
        engine.gate.set()
        assert [get_text(future) for future in futures] == ["a1", "b1", "a2", "b2"]
        assert engine.batches[1:] == [["a1", "a2"], ["b1", "b2"]]


def test_replicas_decode_side_by_side() -> None:
    engine = ScriptedEngine()
    engine.parallel = 2
    batcher = WindowBatcher(engine, batch=1)
    try:
        engine.gate.clear()
        futures = [batcher.submit(batcher.allocate_request_id(), create_window(name)) for name in ("one", "two")]
        wait_for(lambda: len(engine.batches) == 2)
        engine.gate.set()
        assert [get_text(future) for future in futures] == ["one", "two"]
    finally:
        batcher.close()
    assert not [thread.name for thread in threads() if thread.name.startswith("engine")]


def submit_file(batcher: WindowBatcher, name: str, windows: int) -> list[Future[DecodedWindow]]:
    """A recording's windows, the first of which begins like a clip."""
    request = batcher.allocate_request_id()
    return [batcher.submit(request, create_window(f"{name}{number}", start=30.0 * number)) for number in range(windows)]


def test_where_a_batch_takes_as_long_as_its_windows_only_files_share_one() -> None:
    with run_batcher() as (batcher, engine):
        engine.batches_clips = False
        occupy_engine(batcher, engine)
        futures = submit_file(batcher, "file", 7)
        engine.gate.set()
        assert [get_text(future) for future in futures] == [f"file{number}" for number in range(7)]
    assert engine.batches[1:] == [["file0"], ["file1", "file2", "file3", "file4"], ["file5", "file6"]]


def test_a_clip_beside_a_batch_of_files_is_decoded_at_once_by_a_reserved_call() -> None:
    engine = ScriptedEngine()
    engine.batches_clips, engine.reserved_calls = False, 1
    batcher = WindowBatcher(engine, batch=4)
    try:
        engine.gate.clear()
        with batcher._changed:  # nobody begins before all is there
            file = [batcher.submit(0, create_window(name, Priority.BULK)) for name in "abcdef"]
        wait_for(lambda: engine.batches == [list("abcd")])
        clip = batcher.submit(1, create_window("clip"))
        wait_for(lambda: engine.batches == [list("abcd"), ["clip"]])
        second = batcher.submit(2, create_window("second"))
        engine.gate.set()
        assert [get_text(future) for future in (clip, second, *file)] == ["clip", "second", *"abcdef"]
        assert ["e", "f"] in engine.batches, "clips do not keep files from sharing a batch"
    finally:
        engine.gate.set()
        batcher.close()


def test_a_reserved_call_takes_neither_files_nor_clips_that_wait_for_clips() -> None:
    engine = ScriptedEngine()
    engine.batches_clips, engine.reserved_calls = False, 1
    batcher = WindowBatcher(engine, batch=1)
    try:
        engine.gate.clear()
        first = batcher.submit(0, create_window("first"))
        wait_for(lambda: engine.batches == [["first"]])
        others = [batcher.submit(1, create_window("clip")), batcher.submit(2, create_window("file", Priority.BULK))]
        time.sleep(0.1)
        assert engine.batches == [["first"]], "two clips at once share the cores, and both end later"
        engine.gate.set()
        assert [get_text(future) for future in (first, *others)] == ["first", "clip", "file"]

        engine.gate.clear()
        futures = [batcher.submit(3, create_window(name, Priority.BULK)) for name in "ab"]
        wait_for(lambda: engine.batches[3:] == [["a"]])
        time.sleep(0.1)
        assert engine.batches[3:] == [["a"]], "the call is kept for clips"
        engine.gate.set()
        assert [get_text(future) for future in futures] == ["a", "b"]
    finally:
        engine.gate.set()
        batcher.close()


def test_a_brief_clip_is_decoded_beside_the_beginning_of_a_file_and_a_long_one_waits() -> None:
    engine = ScriptedEngine()
    engine.batches_clips, engine.reserved_calls = False, 1
    batcher = WindowBatcher(engine, batch=1)
    try:
        engine.gate.clear()
        beginning = batcher.submit(0, create_window("beginning", seconds=28.0))
        wait_for(lambda: engine.batches == [["beginning"]])
        long = batcher.submit(1, create_window("long", seconds=BRIEF_S + 1))
        time.sleep(0.1)
        assert engine.batches == [["beginning"]], "a third long window would slow the others"
        brief = batcher.submit(2, create_window("brief", seconds=BRIEF_S))
        wait_for(lambda: engine.batches == [["beginning"], ["brief"]])
        engine.gate.set()
        assert [get_text(future) for future in (beginning, long, brief)] == ["beginning", "long", "brief"]
    finally:
        engine.gate.set()
        batcher.close()


def test_a_window_that_ends_late_in_its_request_is_no_clip() -> None:
    queue = FairQueue[DecodeJob]()
    with run_batcher(queue=queue) as (batcher, engine):
        occupy_engine(batcher, engine)
        batcher.submit(1, create_window("late", start=27.0, seconds=28.0))
        batcher.submit(2, create_window("clip", start=0.0, seconds=28.0))
        assert [job.window.request.prompt for job in queue._queues[ServiceClass.FILE][1].items] == ["late"]
        assert [job.window.request.prompt for job in queue._queues[ServiceClass.CLIP][2].items] == ["clip"]
        engine.gate.set()


def test_a_short_window_of_a_fixed_length_costs_a_quarter_and_its_audio() -> None:
    queue = FairQueue[DecodeJob]()
    with run_batcher(queue=queue) as (batcher, engine):
        occupy_engine(batcher, engine)
        engine.capabilities = Capabilities(max_batch=8, fixed_window=True, max_window_s=30.0)
        batcher.submit(1, create_window("clip", seconds=4.0))
        batcher.submit(2, create_window("full", seconds=30.0))
        jobs = [line.items[0] for line in queue._queues[ServiceClass.CLIP].values()]
        assert [job.cost for job in jobs] == [7.5 + 3.0, 30.0]
        assert [job.padded_s for job in jobs] == [30.0, 30.0]
        engine.gate.set()


class SteppingEngine(ScriptedEngine):
    """Decodes in three steps; what is in `between` is called before the second and the third of the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.between: list[Callable[[], None]] = []
        self.ended: list[list[str]] = []

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        results = super().transcribe(windows)
        for _ in range(2):
            if self.between:
                self.between.pop(0)()
            self.before_step()
        self.ended.append([window.request.prompt for window in windows])
        return results


def run_interrupted(*between: Callable[[WindowBatcher, SteppingEngine], Future[DecodedWindow]]) -> tuple[SteppingEngine, list]:
    """A batch of files that is interrupted before its second step, its third one: the engine, and all results in order."""
    engine = SteppingEngine()
    batcher = WindowBatcher(engine, batch=2)
    submitted: list[Future[DecodedWindow]] = []
    engine.between = [lambda act=act: submitted.append(act(batcher, engine)) for act in between]
    try:
        with batcher._changed:  # nobody begins before all is there
            files = [batcher.submit(0, create_window(name, Priority.BULK)) for name in "ab"]
        wait(files, 60)
        wait(submitted, 60)
        return engine, [*files, *submitted]
    finally:
        batcher.close()


def test_live_speech_is_decoded_between_two_steps_of_a_batch_of_files() -> None:
    def speak(batcher: WindowBatcher, engine: SteppingEngine) -> Future[DecodedWindow]:
        time.sleep(0.1)
        return batcher.submit(1, create_window("live", Priority.LIVE))

    engine, futures = run_interrupted(speak)
    assert [get_text(future) for future in futures] == ["a", "b", "live"]
    assert engine.ended == [["live"], ["a", "b"]]


def test_a_clip_waits_for_live_speech_and_not_for_files() -> None:
    def send_both(batcher: WindowBatcher, engine: SteppingEngine) -> Future[DecodedWindow]:
        with batcher._changed:
            clip = batcher.submit(1, create_window("clip"))
            batcher.submit(2, create_window("live", Priority.LIVE))
        return clip

    engine, futures = run_interrupted(send_both)
    assert [get_text(future) for future in futures] == ["a", "b", "clip"]
    assert engine.ended == [["live"], ["clip"], ["a", "b"]]


def test_an_interruption_counts_as_no_part_of_the_batch_that_it_interrupts() -> None:
    def send_slow_clip(batcher: WindowBatcher, engine: SteppingEngine) -> Future[DecodedWindow]:
        engine.between.insert(0, lambda: time.sleep(0.5))  # now the first step of the clip
        return batcher.submit(1, create_window("clip"))

    _, futures = run_interrupted(send_slow_clip)
    file, _, clip = (future.result(60) for future in futures)
    assert clip.decode_s >= 0.5
    assert file.decode_s < 0.25, "each of two"


def test_a_clip_that_fails_between_two_steps_fails_alone() -> None:
    def send_bad_clip(batcher: WindowBatcher, engine: SteppingEngine) -> Future[DecodedWindow]:
        engine.failure = AudioError("Bad.")
        return batcher.submit(1, create_window("clip"))

    _, futures = run_interrupted(send_bad_clip)
    assert [get_text(future) for future in futures[:2]] == ["a", "b"]
    with pytest.raises(AudioError, match="Bad"):
        futures[2].result(60)


def test_files_do_not_interrupt_files_nor_clips() -> None:
    def send_file(batcher: WindowBatcher, engine: SteppingEngine) -> Future[DecodedWindow]:
        return batcher.submit(1, create_window("more", Priority.BULK))

    engine, futures = run_interrupted(send_file)
    assert get_text(futures[2]) == "more"
    assert engine.ended == [["a", "b"], ["more"]]


def test_a_reserved_call_takes_a_clip_that_waited_for_another_one_when_the_turn_of_a_file_comes() -> None:
    class HeldEngine(ScriptedEngine):
        def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
            held.append(windows[0].request.prompt)
            assert windows[0].request.prompt != "file" or may_end.wait(60)
            return super().transcribe(windows)

    held, may_end, engine = list[str](), Event(), HeldEngine()
    engine.batches_clips, engine.reserved_calls = False, 1
    batcher = WindowBatcher(engine, batch=1)
    try:
        with batcher._changed:  # nobody begins before all is there
            first = batcher.submit(0, create_window("first"))
            file = batcher.submit(1, create_window("file", Priority.BULK))
            second = batcher.submit(2, create_window("second"))
        assert [get_text(first), get_text(second)] == ["first", "second"]
        wait_for(lambda: sorted(held) == ["file", "first", "second"])
        assert not file.done(), "the file has its share after the first clip, and is still in decoding"
        may_end.set()
        assert get_text(file) == "file"
    finally:
        may_end.set()
        batcher.close()


def test_replicas_without_work_share_what_waits() -> None:
    engine = ScriptedEngine()
    engine.parallel, engine.batches_clips = 2, False
    batcher = WindowBatcher(engine, batch=4)
    try:
        engine.gate.clear()
        with batcher._changed:  # nobody begins before all is there
            futures = [batcher.submit(0, create_window(name, Priority.BULK)) for name in "abcd"]
        wait_for(lambda: len(engine.batches) == 2)
        engine.gate.set()
        assert [get_text(future) for future in futures] == list("abcd")
        assert engine.batches == [["a", "b"], ["c", "d"]]
        assert batcher.windows_ahead == 12
    finally:
        engine.gate.set()
        batcher.close()


def test_cancelling_drops_what_waits_and_nobody_elses() -> None:
    with run_batcher() as (batcher, engine):
        occupy_engine(batcher, engine)
        gone, stays = batcher.allocate_request_id(), batcher.allocate_request_id()
        assert gone != stays
        dropped = [batcher.submit(gone, create_window("gone", start=s)) for s in (0.0, 50.0)]
        kept = batcher.submit(stays, create_window("stays"))
        batcher.cancel(gone)
        assert all(future.cancelled() for future in dropped)
        engine.gate.set()
        assert get_text(kept) == "stays"
        assert not any("gone" in batch for batch in engine.batches)
        with pytest.raises(CancelledError):
            dropped[0].result()


def test_a_partial_that_has_become_a_final_goes_before_other_partials_and_stays_when_those_are_dropped() -> None:
    with run_batcher(batch=1) as (batcher, engine):
        occupy_engine(batcher, engine)
        partials, finals = batcher.allocate_request_id(), batcher.allocate_request_id()
        batcher.submit(batcher.allocate_request_id(), create_window("another", Priority.LIVE), ServiceClass.PARTIAL)
        adopted = batcher.submit(partials, create_window("adopted", Priority.LIVE), ServiceClass.PARTIAL)
        batcher.reassign(partials, finals)
        dropped = batcher.submit(partials, create_window("dropped", Priority.LIVE), ServiceClass.PARTIAL)
        batcher.cancel(partials)
        engine.gate.set()
        assert get_text(adopted) == "adopted"
        assert dropped.cancelled()
        assert engine.batches[1] == ["adopted"]


def test_a_window_in_hand_that_has_become_a_final_is_decoded_to_the_end() -> None:
    with run_batcher() as (batcher, engine):
        engine.gate.clear()
        partials, w = batcher.allocate_request_id(), create_window("adopted", Priority.LIVE)
        future = batcher.submit(partials, w, ServiceClass.PARTIAL)
        assert engine.entered.wait(60)
        batcher.reassign(partials, batcher.allocate_request_id())
        batcher.cancel(partials)
        assert not w.cancelled
        engine.gate.set()
        assert get_text(future) == "adopted"


def test_cancelling_tells_the_engine_about_windows_it_is_decoding() -> None:
    with run_batcher() as (batcher, engine):
        engine.gate.clear()
        gone, w = batcher.allocate_request_id(), create_window("gone")
        future = batcher.submit(gone, w)
        assert engine.entered.wait(60)
        batcher.cancel(gone)
        assert w.cancelled
        engine.gate.set()
        wait([future], 10)
        assert get_text(batcher.submit(batcher.allocate_request_id(), create_window("next"))) == "next"


def test_a_future_cancelled_in_the_middle_of_decoding_does_no_harm() -> None:
    with run_batcher() as (batcher, engine):
        future = occupy_engine(batcher, engine)
        assert future.cancel()
        engine.gate.set()
        assert get_text(batcher.submit(batcher.allocate_request_id(), create_window("next"))) == "next"


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), AudioError("too odd")])
def test_an_engines_exception_reaches_every_window_of_its_batch_and_no_other(failure: Exception) -> None:
    with run_batcher(batch=2) as (batcher, engine):
        occupy_engine(batcher, engine).add_done_callback(lambda _: setattr(engine, "failure", failure))
        futures = [batcher.submit(batcher.allocate_request_id(), create_window(f"w{i}")) for i in range(4)]
        engine.gate.set()
        assert [future.exception(10) for future in futures[:2]] == [failure, failure]
        assert [get_text(future) for future in futures[2:]] == ["w2", "w3"]


class LibraryPanic(BaseException):
    """What a library in Rust raises where its code has a bug: no `Exception`."""


def test_a_panic_of_a_library_fails_its_window_and_the_next_one_is_decoded() -> None:
    with run_batcher(batch=1) as (batcher, engine):
        engine.failure = LibraryPanic("index out of bounds")
        future = batcher.submit(batcher.allocate_request_id(), create_window("w0"))
        assert "LibraryPanic: index out of bounds" in str(future.exception(10))
        assert get_text(batcher.submit(batcher.allocate_request_id(), create_window("w1"))) == "w1"


@pytest.mark.parametrize("failure", [AudioError("broken"), RuntimeError("a bug")])
def test_a_failed_batch_names_its_requests_in_the_log(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with run_batcher(batch=2) as (batcher, engine):
        occupy_engine(batcher, engine).add_done_callback(lambda _: setattr(engine, "failure", failure))
        futures = []
        for name in ("req_b", "req_a"):
            context = Context()
            context.run(set_request_id, name)
            futures.append(context.run(batcher.submit, batcher.allocate_request_id(), create_window(name)))
        engine.gate.set()
        wait(futures)
    line = RunnerLogFormatter().format(caplog.records[-1]).splitlines()[0]
    assert split_logged_id(line)[1] == "req_a,req_b"


def test_an_engine_that_forgets_a_window_fails_it_instead_of_hanging() -> None:
    with run_batcher(batch=2) as (batcher, engine):
        occupy_engine(batcher, engine).add_done_callback(lambda _: setattr(engine, "forgets", 1))
        futures = [batcher.submit(batcher.allocate_request_id(), create_window(f"w{i}")) for i in range(2)]
        engine.gate.set()
        assert isinstance(futures[1].exception(10), ValueError)


def test_close_finishes_the_batch_in_hand() -> None:
    with run_batcher() as (batcher, engine):
        future = occupy_engine(batcher, engine)
        engine.gate.set()
        batcher.close()
        assert get_text(future) == "first"


def test_close_cancels_what_waits() -> None:
    with run_batcher(batch=1) as (batcher, engine):
        first = occupy_engine(batcher, engine)
        waiting = batcher.submit(batcher.allocate_request_id(), create_window("waiting"))
        closing = Thread(target=batcher.close)
        closing.start()
        while not batcher._closed:
            closing.join(0.01)
        engine.gate.set()
        closing.join(60)
        assert first.done()
        assert waiting.cancelled()
