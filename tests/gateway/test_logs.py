"""Logs keep the last lines, and followers cost nothing."""

from __future__ import annotations

import asyncio
import logging

from eardrum.gateway import logs
from eardrum.gateway.logs import GatewayLogs, LogBuffer, LogBufferHandler


def count_bytes(log: LogBuffer) -> int:
    return sum(len(line.encode()) + 1 for line in log.get_lines())


def test_a_log_keeps_the_last_bytes() -> None:
    log = LogBuffer()
    for number in range(10_000):
        log.write(f"{number:04} " + "é" * 40)
    assert logs.MAX_BYTES - 100 < count_bytes(log) <= logs.MAX_BYTES
    assert log.get_lines()[-1].startswith("9999 ")
    assert log.get_lines()[0].startswith(f"{10_000 - len(log.get_lines()):04} ")


def test_empty_lines_do_not_pile_up() -> None:
    log = LogBuffer()
    for _ in range(50_000):
        log.write("")
    assert len(log.get_lines()) == logs.MAX_LINES


def test_a_long_line_is_cut() -> None:
    log = LogBuffer()
    log.write("x" * 1_000_000)
    (line,) = log.get_lines()
    assert len(line) < 2 * logs.MAX_LINE_BYTES
    assert line.endswith(f"[{1_000_000 - logs.MAX_LINE_BYTES} characters more]")


def test_a_log_shows_no_keys() -> None:
    shown: list[str] = []
    log = LogBuffer(shown.append)
    log.write('10.0.0.7 - "GET /v1/realtime?model=m&api_key=sk-secret&Token=sk-secret HTTP/1.1" 101')
    log.write("> Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-secret, other")
    log.write("--api-key-file=keys.txt, and ?page=2&key=")
    assert log.get_lines() == shown
    assert shown == [
        '10.0.0.7 - "GET /v1/realtime?model=m&api_key=[redacted]&Token=[redacted] HTTP/1.1" 101',
        "> Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.[redacted], other",
        "--api-key-file=keys.txt, and ?page=2&key=",
    ]


async def test_a_follower_gets_what_is_known_and_then_what_comes() -> None:
    log = LogBuffer()
    log.write("a")
    log.write("b")
    following = log.follow_lines()
    assert await anext(following) == ["a", "b"]
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.write("c")
    log.write("d")
    assert await waiting == ["c", "d"]
    log.close()
    assert await anext(following, None) is None


async def test_a_follower_without_history_begins_now() -> None:
    log = LogBuffer()
    log.write("a")
    following = log.follow_lines(history=False)
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.write("b")
    assert await waiting == ["b"]
    await following.aclose()


async def test_a_follower_that_is_late_finds_a_gap() -> None:
    log = LogBuffer()
    log.write("first")
    following = log.follow_lines()
    await anext(following)
    for number in range(logs.MAX_LINES + 10):
        log.write(str(number))
    lines = await anext(following)
    assert lines[:2] == ["[10 lines more]", "10"]
    assert lines[-1] == str(logs.MAX_LINES + 9)
    assert len(lines) == logs.MAX_LINES + 1
    await following.aclose()


async def test_what_was_written_before_the_end_is_still_read() -> None:
    log = LogBuffer()
    following = log.follow_lines()
    log.write("last words")
    log.close()
    assert [lines async for lines in following] == [["last words"]]
    assert [lines async for lines in log.follow_lines(history=False)] == []


def test_lines_of_a_model_are_also_in_the_log_of_all_models() -> None:
    all_logs = GatewayLogs()
    all_logs.get_model_log("a").write("one")
    all_logs.get_model_log("b").write("two")
    assert all_logs.get_model_log("a").get_lines() == ["one"]
    assert all_logs.models.get_lines() == ["a: one", "b: two"]
    assert all_logs.server.get_lines() == []


async def test_the_servers_log_is_written_from_any_thread() -> None:
    log = LogBuffer()
    logger = logging.getLogger("tests.logs")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(LogBufferHandler(log, logging.Formatter("%(levelname)s %(message)s")))
    await asyncio.to_thread(logger.warning, "early, from %s", "a thread")
    logger.info("here")
    following = log.follow_lines(history=False)
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    await asyncio.to_thread(logger.error, "there")
    assert await asyncio.wait_for(waiting, 60) == ["ERROR there"]
    assert log.get_lines() == ["WARNING early, from a thread", "INFO here", "ERROR there"]
    await following.aclose()
