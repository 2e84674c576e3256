"""Replicas of a model, which are servers in this process that speak as runners do, and may hang, refuse and end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from eardrum.errors import NoReplicaError, RunnerCrashedError
from eardrum.gateway.metrics import CURRENT_MODEL_WAIT, ModelWait
from eardrum.gateway.upstreams import replicas as module
from eardrum.gateway.upstreams import runner as runner_module
from eardrum.gateway.upstreams.failover import ReplicatedUpstream
from eardrum.gateway.upstreams.replicas import WAIT_S, ReplicaRules, ReplicaSet, ReplicaState
from eardrum.live import SessionSettings
from eardrum.speech import SpeechBegun, SpeechFormat, SpeechRequest
from eardrum.transcription import Capabilities, Segment, TranscriptionRequest, TranscriptionSummary, WindowCheckpoint
from tests.gateway.upstreams.silent_ends import end_silently, skip_without_silent_ends
from tests.ports import find_free_port

TOKEN = "0123456789abcdef0123"
WINDOWS = 6


class Recording:
    """Some bytes, any number of times."""

    async def read(self) -> AsyncIterator[bytes]:
        yield b"audio"


@dataclass
class FakeRunner:
    """A server that answers as a runner does: each window is one segment with its number."""

    port: int = field(default_factory=find_free_port)
    token: str = TOKEN
    engine: str = "moonshine"
    status: str = "ok"
    instance: str = "first"
    batch_s: float = 0.0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Unset while it hangs."""
    breaks_at: int = -1
    """The window at which it drops the connection, once."""
    vanishes_at: int = -1
    """The window at which the connection ends, once, without a word to the other end: as if a firewall forgot it."""
    pause_s: float = 0.0
    requests: list[dict] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    cancelled: int = 0
    runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.go.set()
        app = web.Application()
        app.router.add_get("/health", self.get_health)
        app.router.add_post("/transcribe", self.transcribe)
        app.router.add_post("/speak", self.speak)
        app.router.add_post("/live", self.live)
        app.router.add_delete("/transcribe/{name}", self.cancel)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self.runner:
            await self.runner.cleanup()
            self.runner = None

    async def get_health(self, request: web.Request) -> web.Response:
        await self.go.wait()
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return web.json_response({}, status=401)
        facts = {"status": self.status, "instance": self.instance, "engine": self.engine, "batch_s": self.batch_s}
        return web.json_response({**facts, "capabilities": Capabilities(("en",)).to_json(), "placement": {"device": "cpu"}})

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(request.headers["x-eardrum-request"])
        self.requests.append(asked)
        response = web.StreamResponse()
        await response.prepare(request)
        await self._write(response, "opened", {"duration": 9.0})
        for n in range((asked["resume"] or {"windows": 0})["windows"], WINDOWS):
            await self.go.wait()
            if n == self.breaks_at:
                self.breaks_at = -1
                await asyncio.sleep(0.1)  # what was written before has arrived
                assert request.transport
                request.transport.abort()
                return response
            if n == self.vanishes_at:
                self.vanishes_at = -1
                await asyncio.sleep(0.1)  # what was written before has arrived
                assert request.transport
                end_silently(request.transport)
                return response
            await asyncio.sleep(self.pause_s)
            self.decoded.append(n)
            await self._write(response, "segment", Segment(n, n + 1, str(n)).to_json())
            await self._write(response, "checkpoint", WindowCheckpoint(n + 1, n + 1).to_json())
        await self._write(response, "summary", TranscriptionSummary("en", 9.0, windows=WINDOWS).to_json())
        return response

    async def speak(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        if self.breaks_at >= 0:
            self.breaks_at = -1
            assert request.transport
            request.transport.abort()
            return response
        await self._write(response, "begun", {"size": None})
        return response

    async def live(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({})
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    async def cancel(self, request: web.Request) -> web.Response:
        self.cancelled += 1
        return web.Response(status=204)

    async def _write(self, response: web.StreamResponse, kind: str, data: dict) -> None:
        await response.write(json.dumps({kind: data}).encode() + b"\n")


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions come soon after each other, and a busy machine does not look like a replica that hangs."""
    for name, seconds in (("PROBE_INTERVAL_S", 0.05), ("RETRY_INTERVAL_S", 0.02), ("ANSWER_S", 20.0), ("LOST_AFTER_S", 20.0)):
        monkeypatch.setattr(module, name, seconds)


@asynccontextmanager
async def run_replicas(
    *runners: FakeRunner, token: str = TOKEN, find_wait_s: Callable[[], float] = lambda: WAIT_S
) -> AsyncIterator[ReplicaSet]:
    for runner in runners:
        await runner.start()
    replicas = ReplicaSet(ReplicaRules("m", "moonshine", find_batch_timeout=lambda: 5.0, find_wait_s=find_wait_s))
    replicas.set_addresses([runner.address for runner in runners], token)
    try:
        yield replicas
    finally:
        await replicas.close()
        for runner in runners:
            runner.go.set()
            await runner.stop()


async def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- the other side has no event
            await asyncio.sleep(0.005)


async def wait_for_states(replicas: ReplicaSet, *states: ReplicaState) -> None:
    await wait_until(lambda: tuple(replica.state for replica in replicas) == states)


async def transcribe(replicas: ReplicaSet, texts: list[str] | None = None) -> list[str]:
    """The texts of the segments."""
    texts = [] if texts is None else texts
    async with aclosing(ReplicatedUpstream(replicas).transcribe(TranscriptionRequest(), Recording())) as events:
        async for event in events:
            if isinstance(event, Segment):
                texts.append(event.text)
    return texts


ALL = [str(n) for n in range(WINDOWS)]


async def test_work_goes_to_the_replica_with_the_fewest_requests() -> None:
    runners = [FakeRunner(pause_s=0.05) for _ in range(3)]
    async with run_replicas(*runners) as replicas:
        await wait_for_states(replicas, *[ReplicaState.READY] * 3)
        assert await asyncio.gather(*(transcribe(replicas) for _ in range(6))) == [ALL] * 6
        assert [len(runner.requests) for runner in runners] == [2, 2, 2]
        assert [status.requests for status in replicas.statuses] == [0, 0, 0]


async def test_the_log_names_the_replica_that_served_a_request_last() -> None:
    runners = [FakeRunner(breaks_at=3), FakeRunner()]
    async with run_replicas(*runners) as replicas:
        await wait_for_states(replicas, *[ReplicaState.READY] * 2)
        CURRENT_MODEL_WAIT.set(wait := ModelWait())
        assert await transcribe(replicas) == ALL
        assert len(runners[0].requests) == len(runners[1].requests) == 1
        assert wait.to_facts() == {"replica": runners[1].address}


async def test_a_broken_connection_costs_the_window_in_hand_only() -> None:
    runners = [FakeRunner(breaks_at=3), FakeRunner(breaks_at=3)]
    async with run_replicas(*runners) as replicas:
        await wait_for_states(replicas, *[ReplicaState.READY] * 2)
        assert await transcribe(replicas) == ALL
        assert sorted(runners[0].decoded + runners[1].decoded) == list(range(WINDOWS)), "each window once"
        assert [status.moved for status in replicas.statuses] == [1, 1]


async def test_a_replica_that_hangs_gets_no_work_and_its_own_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    monkeypatch.setattr(module, "LOST_AFTER_S", 0.4)
    runners = [FakeRunner(pause_s=0.02), FakeRunner(pause_s=0.02)]
    async with run_replicas(*runners) as replicas:
        await wait_for_states(replicas, *[ReplicaState.READY] * 2)
        texts: list[str] = []
        working = asyncio.create_task(transcribe(replicas, texts))
        await wait_until(lambda: texts)
        hung, other = runners if runners[0].requests else runners[::-1]
        hung.go.clear()
        assert await asyncio.wait_for(working, 30) == ALL
        assert not set(hung.decoded) & set(other.decoded), "nothing was decoded twice"
        assert len(hung.requests) == 1
        assert await transcribe(replicas) == ALL
        assert len(hung.requests) == 1
        (status,) = [status for status in replicas.statuses if status.address == hung.address]
        assert (status.state, status.requests, status.moved) == (ReplicaState.SILENT, 0, 1)
        assert "does not answer" in status.detail
        hung.go.set()
        await wait_for_states(replicas, *[ReplicaState.READY] * 2)


async def test_it_comes_back_by_itself_and_a_new_process_knows_nothing_of_the_old() -> None:
    runners = [FakeRunner(), FakeRunner(pause_s=0.05)]
    async with run_replicas(*runners) as replicas:
        await wait_for_states(replicas, *[ReplicaState.READY] * 2)
        await runners[0].stop()
        await wait_for_states(replicas, ReplicaState.SILENT, ReplicaState.READY)
        assert await transcribe(replicas) == ALL
        await runners[0].start()
        await wait_for_states(replicas, *[ReplicaState.READY] * 2)
        texts: list[str] = []
        working = asyncio.create_task(transcribe(replicas, texts))
        await wait_until(lambda: runners[1].decoded or runners[0].decoded)
        for runner in runners:
            runner.instance = "second"  # as after a restart of its machine, of which the connection tells nothing
        assert await asyncio.wait_for(working, 30) == ALL


async def test_a_connection_that_ends_silently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_silent_ends()
    monkeypatch.setattr(runner_module, "KEEPALIVE_S", 1.0)
    runner = FakeRunner(vanishes_at=3)
    async with run_replicas(runner) as replicas:
        assert await asyncio.wait_for(transcribe(replicas), 30) == ALL
        assert len(runner.requests) == 2


async def test_work_waits_as_long_as_the_config_says_now() -> None:
    waits = [600.0]
    async with run_replicas(find_wait_s=lambda: waits[0]) as replicas:
        waits[0] = 0.05  # as after a reload
        with pytest.raises(NoReplicaError):
            await asyncio.wait_for(transcribe(replicas), 30)


async def test_one_that_drains_gets_no_work_and_its_sessions_move() -> None:
    runners = [FakeRunner(pause_s=0.05)]
    async with run_replicas(*runners, find_wait_s=lambda: 0.05) as replicas:
        await wait_for_states(replicas, ReplicaState.READY)
        working = asyncio.create_task(transcribe(replicas))

        async def stream() -> None:
            async with aclosing(ReplicatedUpstream(replicas).stream_live(SessionSettings(), speak_for_ever())) as events:
                async for _ in events:
                    pass

        session = asyncio.create_task(stream())
        await wait_until(lambda: len(runners[0].requests) == 2)
        runners[0].status = "draining"
        with pytest.raises(RunnerCrashedError, match="is about to end"):
            await asyncio.wait_for(session, 30)
        assert await working == ALL, "a recording is finished"
        with pytest.raises(NoReplicaError, match="it finishes its requests, and ends"):
            await transcribe(replicas)


async def speak_for_ever() -> AsyncIterator[bytes]:
    yield bytes(320)
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("habits", "says"),
    [
        ({"token": "x" * 20}, "it requires another token"),
        ({"engine": "parrot"}, "it runs the engine parrot, and not moonshine"),
        ({"batch_s": 6.0}, "it has worked on one batch for 6 s"),
    ],
)
async def test_one_that_cannot_serve_is_not_used(habits: dict, says: str) -> None:
    unfit, fit = FakeRunner(**habits), FakeRunner()
    async with run_replicas(unfit, fit) as replicas:
        await replicas.wait_ready(30)
        await wait_until(lambda: says in replicas.statuses[0].detail)
        for _ in range(3):
            assert await transcribe(replicas) == ALL
        assert unfit.requests == []


async def test_without_any_the_reasons_are_told() -> None:
    nobody = FakeRunner()
    replicas = ReplicaSet(ReplicaRules("m", "moonshine", find_batch_timeout=lambda: 5.0))
    replicas.set_addresses([nobody.address], TOKEN)
    await wait_until(lambda: "refused" in replicas.statuses[0].detail)
    with pytest.raises(NoReplicaError, match=rf"No replica of m takes requests \({nobody.address}: .*refused"):
        await replicas.wait_ready(0.05)
    await replicas.close()


async def test_a_refusal_of_all_is_told_at_once() -> None:
    async with run_replicas(FakeRunner(), token="y" * 20) as replicas:
        with pytest.raises(NoReplicaError, match="it requires another token"):
            await asyncio.wait_for(replicas.wait_ready(300), 30)


async def test_something_else_at_the_address() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html>Hello</html>")

    app, port = web.Application(), find_free_port()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    replicas = ReplicaSet(ReplicaRules("m", "moonshine", find_batch_timeout=lambda: 5.0))
    replicas.set_addresses([f"http://127.0.0.1:{port}"], TOKEN)
    try:
        with pytest.raises(NoReplicaError, match="the server at this address is not a runner"):
            await asyncio.wait_for(replicas.wait_ready(300), 30)
    finally:
        await replicas.close()
        await runner.cleanup()


async def test_an_address_that_the_config_leaves_out_finishes_its_work() -> None:
    runners = [FakeRunner(pause_s=0.05), FakeRunner()]
    await runners[1].start()
    async with run_replicas(runners[0]) as replicas:
        await wait_for_states(replicas, ReplicaState.READY)
        working = asyncio.create_task(transcribe(replicas))
        await wait_until(lambda: runners[0].decoded)
        replicas.set_addresses([runners[1].address], TOKEN)
        await replicas.wait_ready(30)
        assert await transcribe(replicas) == ALL
        assert not working.done()
        assert len(runners[0].requests) == len(runners[1].requests) == 1
        assert await working == ALL
    await runners[1].stop()


async def test_a_client_that_leaves_cancels_the_work() -> None:
    runner = FakeRunner(pause_s=0.05)
    async with run_replicas(runner) as replicas:
        await wait_for_states(replicas, ReplicaState.READY)
        async with aclosing(ReplicatedUpstream(replicas).transcribe(TranscriptionRequest(), Recording())) as events:
            async for event in events:
                if isinstance(event, Segment):
                    break
        assert runner.cancelled == 1
        assert replicas.statuses[0].requests == 0


async def test_a_text_is_spoken_by_another_one_before_the_first_audio() -> None:
    runners = [FakeRunner(breaks_at=0), FakeRunner(breaks_at=0), FakeRunner()]
    async with run_replicas(*runners) as replicas:
        await wait_for_states(replicas, *[ReplicaState.READY] * 3)
        speech = ReplicatedUpstream(replicas).speak(SpeechRequest(format=SpeechFormat.PCM), "Hello.")
        async with aclosing(speech) as events:
            assert isinstance(await anext(events), SpeechBegun)
            with pytest.raises(RunnerCrashedError, match="in the middle of its answer"):  # these fakes say no more
                await anext(events)
        assert sum(status.moved for status in replicas.statuses) == 3
