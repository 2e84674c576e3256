from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from bench.health import find_highest
from bench.soak_answers import (
    RefusedAnswerError,
    SoakTally,
    WrongAnswerError,
    check_error,
    check_ollama_lines,
    check_status,
    check_text,
    parse_event_data,
)
from bench.soak_followers import EVENTS, LOGS, StreamFollower
from bench.soak_samples import MemorySample, find_median, take_sample
from eardrum.concurrency import MAX_POOL_THREADS, install_thread_pool


def build_error(code: str, message: str = "Something happened.") -> dict[str, Any]:
    return {"message": message, "type": "server_error", "param": None, "code": code}


def build_body(code: str) -> bytes:
    return json.dumps({"error": build_error(code)}).encode()


def test_a_text_may_differ_by_some_words_and_not_by_most() -> None:
    check_text(
        "Please enter your agent number, followed by the pound key!", "Please enter your age number followed by the pound key."
    )
    for heard in ("Please enter.", "", "They have been carried away by monkeys"):
        with pytest.raises(WrongAnswerError):
            check_text(heard, "Please enter your agent number followed by the pound key.")


def test_documented_errors_are_told_from_others() -> None:
    check_status(200, b"whatever")
    with pytest.raises(RefusedAnswerError, match="model_unloaded"):
        check_status(503, build_body("model_unloaded"))
    for status, said in (
        (500, build_body("model_unloaded")),
        (500, build_body("internal_error")),
        (404, build_body("model_not_found")),
        (500, b"Internal Server Error"),
        (503, b""),
        (503, b'{"error": "model_unloaded"}'),
        (503, b"[]"),
    ):
        with pytest.raises(WrongAnswerError):
            check_status(status, said)


@pytest.mark.parametrize("bad", [None, "busy", {}, {"code": "busy"}, build_error(""), {"code": ["busy"], "message": "No."}])
def test_what_is_no_error_object_is_wrong(bad: Any) -> None:
    with pytest.raises(WrongAnswerError):
        check_error(bad)


def test_ollamas_answers() -> None:
    assert check_ollama_lines(200, b'{"response": "a"}\n{"response": "b", "done": true}\n') == [
        {"response": "a"},
        {"response": "b", "done": True},
    ]
    for status, said in ((503, b'{"error": "It was unloaded."}'), (200, b'{"response": "a"}\n{"error": "It was unloaded."}\n')):
        with pytest.raises(RefusedAnswerError):
            check_ollama_lines(status, said)
    for status, said in (
        (200, b""),
        (200, b'{"response": "a'),
        (404, b'{"error": "No such model."}'),
        (500, b'{"error": {"message": "Not in these words."}}'),
        (503, b"{}"),
        (200, b"1\n"),
    ):
        with pytest.raises(WrongAnswerError):
            check_ollama_lines(status, said)


def test_events_are_whole_or_wrong() -> None:
    assert parse_event_data(b'event: a\ndata: {"a": 1}\n\ndata: [DONE]\n\n') == [{"a": 1}, None]
    with pytest.raises(WrongAnswerError):
        parse_event_data(b'data: {"a": 1}\n\ndata: {"a":')


def test_the_tally_names_what_was_wrong() -> None:
    tally = SoakTally(wrong=["upload: 500"])
    tally.right["upload"] += 2
    tally.refused["busy"] += 1
    assert tally.count == 4
    assert "upload 2" in str(tally)
    assert "1 busy" in str(tally)
    assert "Wrong: upload: 500." in str(tally)


def test_medians_of_a_stretch_leave_out_the_rest() -> None:
    samples = [
        MemorySample(float(at), rss, 10 + at, 3, {}, 2, 0.0) for at, rss in enumerate((900.0, 70.0, 71.0, 500.0, 72.0, 900.0))
    ]
    assert find_median(samples, 1, 5, lambda one: one.rss_mb) == 71.5
    with pytest.raises(ValueError, match="No sample"):
        find_median(samples, 6, 9, lambda one: one.rss_mb)


async def test_a_sample_names_the_threads_of_a_process() -> None:
    install_thread_pool()
    before = take_sample(psutil.Process(), 0.0)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(asyncio.to_thread(time.sleep, 0.2))
    after = take_sample(psutil.Process(), 1.0)
    assert (before.pool_threads, after.pool_threads) == (0, min(3, MAX_POOL_THREADS))
    assert after.other_threads == before.other_threads


async def test_a_sample_tells_clients_from_other_descriptors() -> None:
    accepted = asyncio.Future[asyncio.StreamWriter]()
    server = await asyncio.start_server(lambda reader, writer: accepted.set_result(writer), "127.0.0.1")
    async with server:
        before = take_sample(psutil.Process(), 0.0)
        _, client = await asyncio.open_connection(*server.sockets[0].getsockname())
        ours = await accepted
        after = take_sample(psutil.Process(), 1.0)
        for end in (client, ours):
            end.close()
            await end.wait_closed()
    assert after.connections == before.connections + 1
    assert after.descriptors == before.descriptors + 1  # the client's own end


def test_of_a_hundred_looks_one_may_be_slow() -> None:
    assert find_highest([5.0] * 200 + [900.0]) == 5.0
    assert find_highest([5.0] * 100 + [900.0] * 3) == 900.0
    assert find_highest([7.0]) == 7.0


async def run_follower(path: str, *said: bytes, stays: bool = True, status: int = 200) -> StreamFollower:
    """A follower of a server that says this, and then ends or not."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for piece in said:
            await response.write(piece)
        if stays:
            await over.wait()
        return response

    over = asyncio.Event()
    app = web.Application()
    app.router.add_get(path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    follower = StreamFollower(path)
    async with aiohttp.ClientSession() as http:
        task = asyncio.create_task(follower.follow(http, runner.addresses[0][1]))
        done, _ = await asyncio.wait([task], timeout=0.2 if stays else 10)
        assert bool(done) is bool(follower.lost)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    over.set()
    await runner.cleanup()
    return follower


EVENT = b'event:message\ndata:{"type": "activity", "data": "{\\"id\\": 1}"}\n\n'


async def test_a_follower_that_hears_is_not_lost() -> None:
    follower = await run_follower(EVENTS, EVENT[:20], EVENT[20:], EVENT)
    assert (follower.lost, follower.bytes > 100) == ("", True)


async def test_followers_are_lost_when_the_stream_ends_or_is_none() -> None:
    assert (await run_follower(EVENTS, EVENT, stays=False)).lost == f"{EVENTS} ended"
    assert (await run_follower(EVENTS, status=500, stays=False)).lost == f"{EVENTS}: 500"
    assert "surprise" in (await run_follower(EVENTS, EVENT.replace(b"activity", b"surprise"), stays=False)).lost
    assert (await run_follower(EVENTS, EVENT.replace(b'"activity"', b'"activity'), stays=False)).lost


async def test_tracebacks_in_the_log_are_collected_whole_with_the_line_before() -> None:
    traceback = "ERROR failed\nTraceback (most recent call last):\n  File x\n    y()\nKeyError: 'method'"
    lines = f"INFO GET /health 200\n{traceback}\nINFO GET /health 200\n".encode()
    assert (await run_follower(LOGS, lines)).tracebacks == [traceback]
