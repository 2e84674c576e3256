"""The socket, between a client and a session that follows a script."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import requests

from eardrum import config
from eardrum.api.realtime import routes
from eardrum.errors import BusyError, EardrumError, RunnerCrashedError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinalTranscript,
    FinishCommand,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SessionSettings,
    UtteranceCleared,
    UtteranceCommitted,
)
from eardrum.transcription import TranscriptionSummary
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for

SILENCE = base64.b64encode(bytes(4800)).decode()


class ScriptedLiveSession:
    """Takes what it is given, and says what the script makes of it."""

    def __init__(self, model: Model, settings: SessionSettings, script: Callable[[object], list[LiveEvent | EardrumError]]):
        self.told: list[object] = [settings]
        self.bytes = 0
        self.free = asyncio.Event()
        self.free.set()
        self._script = script
        self.summary = TranscriptionSummary("en", 0.1)
        self.model = model
        self._events: asyncio.Queue[LiveEvent | EardrumError] = asyncio.Queue()

    async def feed(self, audio: bytes) -> None:
        await self.free.wait()
        self.bytes += len(audio)
        self._record(audio)

    async def configure(self, settings: SessionSettings) -> None:
        self._record(ConfigureCommand(settings))

    async def commit(self) -> None:
        self._record(CommitCommand())

    async def clear(self) -> None:
        self._record(ClearCommand())

    async def finish(self) -> None:
        self._record(FinishCommand())

    async def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        while not isinstance(event := await self._events.get(), SessionEnded):
            if isinstance(event, EardrumError):
                raise event
            yield event
        yield event

    def _record(self, what: object) -> None:
        if not isinstance(what, bytes):
            self.told.append(what)
        for event in self._script(what):
            self._events.put_nowait(event)


def script_for(what: object) -> list[LiveEvent | EardrumError]:
    """What a session says to a client that commits by itself."""
    match what:
        case CommitCommand():
            return [UtteranceCommitted(1, 0, 1), PartialTranscript(1, "One", " to", 0, 1), FinalTranscript(1, 0, 1, "One two.")]
        case ClearCommand():
            return [UtteranceCleared(1)]
        case FinishCommand():
            return [UtteranceCommitted(2, 1, 2), FinalTranscript(2, 1, 2, "Last words."), SessionEnded(2.0)]
    return []


class ScriptedGateway:
    """A gateway whose sessions follow a script."""

    def __init__(self, gateway: GatewayUnderTest) -> None:
        self.gateway = gateway
        self.sessions: list[ScriptedLiveSession] = []
        self.open = self.waiting = 0
        self.script: Callable[[object], list[LiveEvent | EardrumError]] = script_for
        self.refusal: EardrumError | None = None
        self.loads = asyncio.Event()
        self.loads.set()

    @asynccontextmanager
    async def open_session(self, _: Service, model: Model, settings: SessionSettings) -> AsyncIterator[ScriptedLiveSession]:
        if self.refusal:
            raise self.refusal
        self.waiting += 1
        try:
            await self.loads.wait()
        finally:
            self.waiting -= 1
        self.sessions.append(ScriptedLiveSession(model, settings, self.script))
        self.open += 1
        try:
            yield self.sessions[-1]
        finally:
            self.open -= 1

    def build_url(self, query: str = "?intent=transcription") -> str:
        return f"{self.gateway.url}/v1/realtime{query}"


@pytest.fixture
def scripted_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    models = {"second": {"source": "moonshine-tiny-en"}, "elsewhere": {"proxy": "http://127.0.0.1:9"}}
    with run_gateway(limits={"stall_timeout": 1}, models=models, default_model="moonshine-tiny-en") as gateway:
        set_up = ScriptedGateway(gateway)
        monkeypatch.setattr(routes, "open_session", set_up.open_session)
        yield set_up


@asynccontextmanager
async def connect_socket(url: str, **named: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, **named) as socket:
        yield socket


async def receive_until(socket: aiohttp.ClientWebSocketResponse, *kinds: str) -> list[dict[str, Any]]:
    """The events up to the last of these, each of which comes once at least."""
    missing, events = set(kinds), []
    async with asyncio.timeout(60):
        while missing:
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.TEXT, (message, events)
            events.append(json.loads(message.data))
            missing.discard(events[-1]["type"])
    return events


async def send_event(socket: aiohttp.ClientWebSocketResponse, kind: str, **fields: object) -> None:
    await socket.send_json({"type": kind, **fields})


COMPLETED = "conversation.item.input_audio_transcription.completed"


async def test_a_commit_by_hand(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url()) as socket:
        (created,) = await receive_until(socket, "session.created")
        assert created["session"]["type"] == "transcription"
        await send_event(
            socket, "session.update", session={"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        )
        await receive_until(socket, "session.updated")
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await send_event(socket, "input_audio_buffer.commit")
        events = await receive_until(socket, COMPLETED)
        assert "".join(event.get("delta", "") for event in events) == events[-1]["transcript"] == "One two."
        await send_event(socket, "input_audio_buffer.clear")
        await receive_until(socket, "input_audio_buffer.cleared")
        assert socket.get_extra_info("socket") is not None
    (session,) = scripted_gateway.sessions
    settings = session.told[0]
    assert isinstance(settings, SessionSettings)
    assert (settings.endpointing, session.bytes, session.told[1:]) == (None, 4800, [CommitCommand(), ClearCommand()])
    await asyncio.to_thread(wait_for, lambda: not scripted_gateway.open)


async def test_a_client_may_send_all_at_once_and_wait(scripted_gateway: ScriptedGateway) -> None:
    """Its pongs are seen while nobody acts on what it has sent."""
    scripted_gateway.loads.clear()
    async with connect_socket(scripted_gateway.build_url(), autoping=False) as socket:
        for _ in range(100):
            await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await send_event(socket, "input_audio_buffer.commit")
        await receive_until(socket, "session.created")
        scripted_gateway.gateway.loop.call_soon_threadsafe(scripted_gateway.loads.set)
        await receive_until(socket, COMPLETED)
    assert scripted_gateway.sessions[0].bytes == 480_000


async def test_a_client_that_leaves_while_its_model_loads_and_it_is_not_read(scripted_gateway: ScriptedGateway) -> None:
    """It has sent more than the server queues, so its disconnect lies behind audio that nothing takes yet."""
    scripted_gateway.loads.clear()
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await receive_until(socket, "session.created")
        for _ in range(47):
            await send_event(socket, "input_audio_buffer.append", audio=base64.b64encode(bytes(72_000)).decode())
        await asyncio.sleep(0.5)  # until the server reads no more
        assert scripted_gateway.waiting == 1
        socket._response.connection.transport.abort()
        await asyncio.to_thread(wait_for, lambda: not scripted_gateway.waiting, 10)
    assert not scripted_gateway.sessions


async def test_mistakes_are_answered_and_the_session_stays_open(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await socket.send_str("{")
        await socket.send_bytes(b"\0\0")
        await send_event(socket, "response.create", event_id="x")
        events = await receive_until(socket, "session.created", "error")
        while len(events) < 4:
            events += await receive_until(socket, "error")
        assert [event["error"]["event_id"] for event in events[1:]] == [None, None, "x"]
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await send_event(socket, "input_audio_buffer.commit")
        await receive_until(socket, COMPLETED)


async def test_a_session_that_breaks_is_told_and_the_connection_closed(scripted_gateway: ScriptedGateway) -> None:
    scripted_gateway.script = lambda what: [RunnerCrashedError("It died.")] if isinstance(what, bytes) else []
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        events = await receive_until(socket, "error")
        assert events[-1]["error"]["code"] == "model_crashed"
        assert (await socket.receive()).data == 1011
        assert socket.close_code == 1011


async def test_a_model_without_room_is_told_with_the_code_for_later(scripted_gateway: ScriptedGateway) -> None:
    scripted_gateway.refusal = BusyError("Too many sessions.", retry_after=1)
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        assert (await receive_until(socket, "error"))[-1]["error"]["message"] == "Too many sessions."
        assert (await socket.receive()).data == 1013


async def test_a_model_that_does_not_exist(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url("?intent=transcription&model=nobody")) as socket:
        assert (await receive_until(socket, "error"))[-1]["error"]["code"] == "model_not_found"
        assert (await socket.receive()).data == 1008


async def test_a_client_that_takes_nothing_in_is_hung_up_on(scripted_gateway: ScriptedGateway) -> None:
    """What is written for it stays within what the network holds."""
    long = "word " * 20_000
    scripted_gateway.script = lambda what: (
        [FinalTranscript(1, 0, 1, long), FinalTranscript(2, 0, 1, long)] if isinstance(what, bytes) else []
    )
    async with connect_socket(scripted_gateway.build_url(), max_msg_size=0) as socket:
        await receive_until(socket, "session.created")
        transport = socket._response.connection.transport
        transport.pause_reading()
        for _ in range(200):
            await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions and not scripted_gateway.open)
        transport.resume_reading()
        while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        assert socket.close_code == 1006


@pytest.mark.slow
async def test_a_client_that_sends_faster_than_the_session_takes_is_not_read_on_without_end(
    scripted_gateway: ScriptedGateway,
) -> None:
    piece = base64.b64encode(bytes(3 << 20)).decode()
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions)
        session = scripted_gateway.sessions[0]
        scripted_gateway.gateway.loop.call_soon_threadsafe(session.free.clear)
        sent = 0

        async def push() -> None:
            nonlocal sent
            for _ in range(40):
                await send_event(socket, "input_audio_buffer.append", audio=piece)
                sent += 1

        pushing = asyncio.ensure_future(push())
        await asyncio.sleep(1.5)
        assert sent < 25, "16 MiB wait here, the network may hold 32 more"
        scripted_gateway.gateway.loop.call_soon_threadsafe(session.free.set)
        await asyncio.wait_for(pushing, 60)
        await asyncio.to_thread(wait_for, lambda: session.bytes == 4800 + 40 * (3 << 20))


async def test_a_client_that_vanishes_leaves_nothing(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.open == 1)
        socket._response.connection.transport.abort()
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.open == 0)


async def test_the_last_words_are_sent_when_the_server_ends(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions)
        scripted_gateway.gateway.loop.call_soon_threadsafe(scripted_gateway.gateway.service.end_followers)
        assert (await receive_until(socket, COMPLETED))[-1]["transcript"] == "Last words."
        assert (await socket.receive()).data == 1001


async def test_a_refused_commit_says_which(scripted_gateway: ScriptedGateway) -> None:
    scripted_gateway.script = lambda what: (
        [CommandRefused(EardrumError("Nothing there."))] if isinstance(what, CommitCommand) else []
    )
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await send_event(socket, "input_audio_buffer.commit", event_id="c")
        assert (await receive_until(socket, "error"))[-1]["error"]["event_id"] == "c"


async def test_another_model_before_audio_takes_the_place_of_the_first(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url()) as socket:
        for name in ("whisper-1", "second"):
            await send_event(socket, "session.update", session={"audio": {"input": {"transcription": {"model": name}}}})
            await receive_until(socket, "session.updated")
            await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions and scripted_gateway.open == 1)
        await asyncio.to_thread(wait_for, lambda: len(scripted_gateway.sessions) == 2 and scripted_gateway.open == 1)
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions[1].bytes)
        assert [session.model.id for session in scripted_gateway.sessions] == ["moonshine-tiny-en", "second"]
        assert scripted_gateway.open == 1


async def test_a_model_of_another_server_is_refused_by_name(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(scripted_gateway.build_url()) as socket:
        await send_event(socket, "session.update", session={"audio": {"input": {"transcription": {"model": "elsewhere"}}}})
        error = (await receive_until(socket, "error"))[-1]["error"]
        assert (error["code"], error["param"]) == ("unsupported_feature", "model")
        assert "elsewhere" in error["message"]
        assert "moonshine-tiny-en" in error["message"]


async def test_the_config_may_say_the_rate() -> None:
    with run_gateway(realtime_sample_rate=16_000) as gateway:
        async with connect_socket(f"{gateway.url}/v1/realtime") as socket:
            (created,) = await receive_until(socket, "session.created")
        answer = await asyncio.to_thread(requests.post, f"{gateway.url}/v1/realtime/client_secrets", timeout=10)
    formats = [session["audio"]["input"]["format"] for session in (created["session"], answer.json()["session"])]
    assert formats == [{"type": "audio/pcm", "rate": 16_000}] * 2


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?intent=conversation", 400),
        ("?rate=fast", 400),
        ("?rate=1", 400),
        ("?rate=99999999999999999999", 400),
        ("?language=klingon", 400),
    ],
)
async def test_an_address_that_makes_no_sense_is_refused(scripted_gateway: ScriptedGateway, query: str, status: int) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connect_socket(scripted_gateway.build_url(query)):
            pass
    assert refused.value.status == status


async def test_the_address_may_say_the_rate(scripted_gateway: ScriptedGateway) -> None:
    async with connect_socket(
        scripted_gateway.build_url("?intent=transcription&rate=16000"), headers={"OpenAI-Beta": "realtime=v1"}
    ) as socket:
        await receive_until(socket, "transcription_session.created")
        await send_event(socket, "transcription_session.update", session={"input_audio_format": "pcm16"})
        await receive_until(socket, "transcription_session.updated")
    await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions)
    settings = scripted_gateway.sessions[0].told[0]
    assert isinstance(settings, SessionSettings)
    assert settings.format.rate == 16_000


async def test_the_address_may_say_the_language_until_an_update_does(scripted_gateway: ScriptedGateway) -> None:
    """speaches' clients say it there."""
    async with connect_socket(scripted_gateway.build_url("?intent=transcription&language=en-US")) as socket:
        (created,) = await receive_until(socket, "session.created")
        assert created["session"]["audio"]["input"]["transcription"]["language"] == "en-US"
        await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
        await asyncio.to_thread(wait_for, lambda: scripted_gateway.sessions)
        settings = scripted_gateway.sessions[0].told[0]
        assert isinstance(settings, SessionSettings)
        assert settings.request.language == "en"
        update = {"audio": {"input": {"transcription": {"language": "English"}}}}
        await send_event(socket, "session.update", session=update)
        updated = (await receive_until(socket, "session.updated"))[-1]
        assert updated["session"]["audio"]["input"]["transcription"]["language"] == "English"


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (("realtime", "openai-insecure-api-key.k", "openai-beta.realtime-v1"), "realtime"),
        (("openai-insecure-api-key.k", "other"), "other"),
        (("openai-insecure-api-key.k",), "openai-insecure-api-key.k"),
        ((), None),
    ],
)
async def test_a_subprotocol_is_agreed_on(scripted_gateway: ScriptedGateway, offered: tuple[str, ...], taken: str | None) -> None:
    async with connect_socket(scripted_gateway.build_url(), protocols=offered) as socket:
        assert socket.protocol == taken
        first = json.loads((await socket.receive()).data)["type"]
        assert first == ("transcription_session.created" if "openai-beta.realtime-v1" in offered else "session.created")


@pytest.fixture
def gateway_with_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    with run_gateway(api_keys=("sk-1",)) as gateway:
        set_up = ScriptedGateway(gateway)
        monkeypatch.setattr(routes, "open_session", set_up.open_session)
        yield set_up


KEY = {"authorization": "Bearer sk-1"}


def create_secret(stage: ScriptedGateway, path: str = "client_secrets", **body: object) -> requests.Response:
    return requests.post(f"{stage.gateway.url}/v1/realtime/{path}", json=body, headers=KEY, timeout=10)


async def test_keys_open_the_socket(gateway_with_keys: ScriptedGateway) -> None:
    for named in ({"headers": KEY}, {"protocols": ("realtime", "openai-insecure-api-key.sk-1")}):
        async with connect_socket(gateway_with_keys.build_url(), **named) as socket:
            await receive_until(socket, "session.created")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connect_socket(gateway_with_keys.build_url(), protocols=("realtime", "openai-insecure-api-key.sk-2")):
            pass
    assert refused.value.status == 401


async def test_a_client_secret_opens_the_socket_and_brings_its_configuration(gateway_with_keys: ScriptedGateway) -> None:
    session = {"type": "transcription", "audio": {"input": {"turn_detection": None, "transcription": {"model": "whisper-1"}}}}
    answer = (
        await asyncio.to_thread(
            create_secret, gateway_with_keys, session=session, expires_after={"anchor": "created_at", "seconds": 60}
        )
    ).json()
    assert answer["value"].startswith("ek_")
    assert answer["session"]["audio"]["input"]["turn_detection"] is None
    async with connect_socket(
        gateway_with_keys.build_url(""), protocols=("realtime", f"openai-insecure-api-key.{answer['value']}")
    ) as socket:
        (created,) = await receive_until(socket, "session.created")
        assert created["session"]["audio"] == answer["session"]["audio"]
        assert created["session"]["audio"]["input"]["transcription"]["model"] == "whisper-1"
    headers = {"authorization": f"Bearer {answer['value']}"}
    for path in ("/v1/models", "/v1/realtime/client_secrets"):
        refused = await asyncio.to_thread(requests.get, f"{gateway_with_keys.gateway.url}{path}", headers=headers, timeout=10)
        assert refused.status_code == 401


async def test_a_page_from_anywhere_may_use_the_secret_that_was_made_for_it(
    gateway_with_keys: ScriptedGateway, scripted_gateway: ScriptedGateway
) -> None:
    """Where nobody needs a key, any page could have one made."""
    for set_up, allowed in ((gateway_with_keys, True), (scripted_gateway, False)):
        value = (await asyncio.to_thread(create_secret, set_up)).json()["value"]
        named = {"origin": "https://elsewhere.example", "protocols": ("realtime", f"openai-insecure-api-key.{value}")}
        if allowed:
            async with connect_socket(set_up.build_url(), **named) as socket:
                await receive_until(socket, "session.created")
            continue
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect_socket(set_up.build_url(), **named):
                pass
        assert refused.value.status == 403
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connect_socket(gateway_with_keys.build_url(), origin="https://elsewhere.example", headers=KEY):
            pass
    assert refused.value.status == 403


async def test_the_betas_key_and_an_expired_one(gateway_with_keys: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = (
        await asyncio.to_thread(create_secret, gateway_with_keys, "transcription_sessions", input_audio_format="g711_ulaw")
    ).json()
    assert (answer["input_audio_format"], answer["object"]) == ("g711_ulaw", "realtime.transcription_session")
    value, expires = answer["client_secret"]["value"], answer["client_secret"]["expires_at"]
    headers = {"authorization": f"Bearer {value}", "openai-beta": "realtime=v1"}
    async with connect_socket(gateway_with_keys.build_url(), headers=headers) as socket:
        (created,) = await receive_until(socket, "transcription_session.created")
        assert created["session"]["input_audio_format"] == "g711_ulaw"
    monkeypatch.setattr(time, "time", lambda: expires + 1)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connect_socket(gateway_with_keys.build_url(), headers=headers):
            pass
    assert refused.value.status == 401


async def test_a_secret_that_is_not_valid_is_refused_where_everybody_is_let_in(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration would be missing."""
    answer = (await asyncio.to_thread(create_secret, scripted_gateway)).json()
    monkeypatch.setattr(time, "time", lambda: answer["expires_at"] + 1)
    for value in ("ek_0", answer["value"]):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect_socket(scripted_gateway.build_url(), headers={"authorization": f"Bearer {value}"}):
                pass
        assert refused.value.status == 401


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"session": {"type": "realtime"}}, "unsupported_feature"),
        ({"session": {"audio": {"input": {"transcription": {"model": "nobody"}}}}}, "model_not_found"),
        ({"session": 1}, "invalid_value"),
        ({"expires_after": {"seconds": 9}}, "invalid_value"),
        ({"expires_after": {"seconds": 7201}}, "invalid_value"),
        ({"expires_after": {"anchor": "never"}}, "invalid_value"),
    ],
)
def test_a_secret_that_cannot_be_is_refused(gateway_with_keys: ScriptedGateway, body: dict[str, Any], code: str) -> None:
    answer = create_secret(gateway_with_keys, **body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] == code


def test_what_else_openai_has_is_refused_by_name(scripted_gateway: ScriptedGateway) -> None:
    url = scripted_gateway.gateway.url
    answer = requests.post(f"{url}/v1/realtime/calls", data=b"v=0", timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_implemented")
    assert requests.get(f"{url}/v1/realtime/client_secrets", timeout=10).status_code == 405
    bad = requests.post(f"{url}/v1/realtime/client_secrets", data=b"{", timeout=10)
    assert (bad.status_code, bad.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_nothing_is_left_of_many_connections(scripted_gateway: ScriptedGateway) -> None:
    async def one() -> None:
        async with connect_socket(scripted_gateway.build_url()) as socket:
            await send_event(socket, "input_audio_buffer.append", audio=SILENCE)
            await send_event(socket, "input_audio_buffer.commit")
            await receive_until(socket, COMPLETED)

    await asyncio.gather(*(one() for _ in range(30)))
    await asyncio.to_thread(wait_for, lambda: not scripted_gateway.open)
    gc.collect()
    assert not [task for task in asyncio.all_tasks(scripted_gateway.gateway.loop) if "Line" in repr(task)]


def test_a_server_of_recordings_that_is_the_default_does_not_get_the_sockets() -> None:
    ears = {"proxy": "http://127.0.0.1:9", "capabilities": {"inputs": ["audio"]}}
    realtime = routes.RealtimeRoutes(Service(config.Settings.model_validate({"models": {"ears": ears}})))

    def scope(model: str) -> dict[str, Any]:
        return {"type": "websocket", "path": "/v1/realtime", "query_string": f"model={model}".encode(), "headers": []} | {
            "subprotocols": []
        }

    assert realtime.route(scope("whisper-1"))
    assert not realtime.route(scope("ears")), "who names it gets it, whatever it does with a socket"
