"""One connection against sessions that follow a script: order, errors, limits, shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from eardrum.api.wyoming import server, utterance
from eardrum.api.wyoming.protocol import WyomingEvent, encode_event
from eardrum.config.settings import WyomingSettings
from eardrum.errors import ModelLoadError, RunnerCrashedError
from eardrum.live import AudioEncoding, AudioFormat, PartialTranscript, UtteranceFailed
from tests.api.wyoming.scripted_sessions import SessionScript, WyomingClient, create_settings, run_server, wait_until

START = ["transcript-start", "transcript-chunk"]


async def test_an_utterance_as_home_assistant_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("transcribe", language="en")
        await client.send_utterance(b"\1\0" * 100)
        assert [event.type for event in await client.receive_answer()] == [
            "transcript-start",
            "transcript-chunk",
            "transcript",
            "transcript-stop",
        ]
    ((model, asked, session),) = script.opened
    assert (model.id, asked.request.language, asked.endpointing) == ("moonshine-tiny-en", "en", None)
    assert asked.format == AudioFormat(AudioEncoding.PCM16, 16_000, 1)
    assert session.audio == b"\1\0" * 100


async def test_chunks_come_while_somebody_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("audio-chunk", b"\0\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: script.opened)
        script.session.says.put_nowait(PartialTranscript(1, "lights", " on", 0.0, 0.5))
        start, chunk = await client.receive_event(), await client.receive_event()
        assert (start.type, chunk) == ("transcript-start", WyomingEvent("transcript-chunk", {"text": "lights"}))
        await client.send_event("audio-stop")
        assert await client.receive_text() == "lights off"


async def test_several_utterances_and_wishes_for_the_next_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    script.loads.clear()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("transcribe", language="en", context={"prompt": "x"})
        await client.send_utterance(b"\0\1\2", width=1, rate=8000, channels=3)
        await client.send_utterance(b"\1\0")  # before the first one has its answer
        await asyncio.sleep(0.05)
        assert script.asked == 1
        script.loads.set()
        assert [await client.receive_text(), await client.receive_text()] == ["lights off"] * 2
        await client.send_utterance(b"\1\0")
        assert await client.receive_text() == "lights off"
    wishes = [(asked.request.language, asked.request.prompt) for _, asked, _ in script.opened]
    assert wishes == [("en", "x"), (None, ""), (None, "")]
    assert script.opened[0][1].format == AudioFormat(AudioEncoding.PCM16, 8_000, 3)
    assert script.opened[0][2].audio == b"\0\x80\0\x81\0\x82"


async def test_no_audio_is_an_empty_transcript_and_needs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("transcribe")
        await client.send_event("audio-start", rate=16000, width=2, channels=1)
        await client.send_event("audio-stop")
        assert await client.receive_text() == ""
        await client.send_utterance()
        assert await client.receive_text() == "lights off"
    assert len(script.opened) == 1


async def test_who_begins_again_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("transcribe", language="en")
        await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: script.opened)
        first = script.session
        await client.send_utterance(b"\2\0")
        assert await client.receive_text() == "lights off"
        assert (first.left, first.is_finished) == (True, False)
    assert script.session.audio == b"\2\0"
    assert [asked.request.language for _, asked, _ in script.opened] == ["en", "en"]


async def test_who_begins_again_may_wish_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("transcribe", language="en")
        await client.send_event("audio-chunk", b"\1\0")
        await client.send_event("transcribe")
        await client.send_utterance(b"\2\0")
        assert await client.receive_text() == "lights off"
    assert [asked.request.language for _, asked, _ in script.opened][-1] is None


async def test_the_format_of_the_next_utterance_may_come_before_the_answer_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    script.loads.clear()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_utterance()
        await client.send_event("audio-start", rate=48_000, width=2, channels=1)
        await client.send_event("ping")
        assert await client.receive_event() == WyomingEvent("pong", {"text": None})
        script.loads.set()
        assert await client.receive_text() == "lights off"
        await client.send_event("audio-chunk", b"\1\0")
        await client.send_event("audio-stop")
        assert await client.receive_text() == "lights off"
        await client.send_event("audio-chunk", b"\1\0")
        await client.send_event("audio-stop")
        assert await client.receive_text() == "lights off"
    assert [asked.format.rate for _, asked, _ in script.opened] == [16_000, 48_000, 16_000]


async def test_ping_describe_and_what_we_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    script.loads.clear()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_utterance()
        for name in ("select-program", "run-pipeline", "voice-stopped", "handle"):
            await client.send_event(name, b"payload" * 50_000, name="eardrum")
        await client.send_event("ping", text="x")
        await client.send_event("describe", b"payload" * 50_000)
        assert await client.receive_event() == WyomingEvent("pong", {"text": "x"})
        info = await client.receive_event()
        assert info
        assert (info.type, info.data["asr"][0]["models"][0]["name"]) == ("info", "moonshine-tiny-en")
        script.loads.set()
        assert [event.type for event in await client.receive_answer()] == [*START, "transcript", "transcript-stop"]


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "invalid_value", "not a Wyoming event"),
        (encode_event(WyomingEvent("transcribe", {"language": "tlh"})), "invalid_value", "Unknown language 'tlh'"),
        (encode_event(WyomingEvent("audio-start", {"rate": -1})), "invalid_value", "rate must be"),
    ],
)
async def test_what_makes_no_sense_is_told_and_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, data: bytes, code: str, says: str
) -> None:
    async with run_server(monkeypatch, SessionScript()) as (_, connect):
        client = await connect()
        await client.send_raw(data)
        error = await client.receive_event()
        assert error
        assert (error.type, error.data["code"]) == ("error", code)
        assert says in error.data["text"]
        assert await client.receive_event() is None


@pytest.mark.parametrize(
    ("wishes", "code", "says"),
    [
        ({"name": "large-v9"}, "model_not_found", "There is no model 'large-v9'. Models: moonshine-tiny-en"),
        ({"language": "de"}, "unsupported_feature", "moonshine-tiny-en does not support German (de)"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, wishes: dict[str, str], code: str, says: str
) -> None:
    async with run_server(monkeypatch, SessionScript()) as (_, connect):
        client = await connect()
        await client.send_event("transcribe", **wishes)
        await client.send_utterance()
        (error,) = await client.receive_answer()
        assert (error.type, error.data["code"]) == ("error", code)
        assert says in error.data["text"]


async def test_an_error_reaches_a_client_that_is_still_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing at once would reset the connection, and the error with it."""
    async with run_server(monkeypatch, SessionScript(fails=ModelLoadError("The weights are gone."))) as (_, connect):
        client = await connect()
        for _ in range(20):
            await client.send_event("audio-chunk", b"\1\0" * 20_000, rate=16000, width=2, channels=1)
            await asyncio.sleep(0.01)
        error = await client.receive_event()
        assert error == WyomingEvent("error", {"text": "The weights are gone.", "code": "model_load_failed"})
        assert await client.receive_event() is None


async def test_a_client_that_sends_for_longer_than_the_linger_reads_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Home Assistant sends the whole utterance, in real time, before it reads."""
    monkeypatch.setattr(server, "LINGER_S", 0.5)
    async with run_server(monkeypatch, SessionScript(fails=ModelLoadError("It does not load."))) as (_, connect):
        client = await connect()
        await client.send_event("audio-start", rate=16000, width=2, channels=1)
        for _ in range(25):
            await client.send_event("audio-chunk", b"\1\0" * 1600, rate=16000, width=2, channels=1)
            await asyncio.sleep(0.03)
        await client.send_event("audio-stop")
        error = await client.receive_event()
        assert error
        assert (error.type, error.data["text"]) == ("error", "It does not load.")


@pytest.mark.parametrize("stop", ["limit", "shutdown"])
async def test_a_client_that_never_stops_sending_is_disconnected(monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.1)
    monkeypatch.setattr(server, "MAX_LINGER_S", 0.4 if stop == "limit" else 60)
    closing: list[asyncio.Task[None]] = []

    async def send_forever(client: WyomingClient) -> None:
        while True:
            await client.send_event("audio-chunk", b"\1\0" * 1600, rate=16000, width=2, channels=1)
            await asyncio.sleep(0.02)
            if stop == "shutdown" and not closing and client.reader._buffer:  # type: ignore[attr-defined]  # the error has come
                closing.append(asyncio.create_task(wyoming.close()))

    async with run_server(monkeypatch, SessionScript(fails=ModelLoadError("It does not load."))) as (wyoming, connect):
        client = await connect()
        await client.send_event("audio-start", rate=16000, width=2, channels=1)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_forever(client), 60)
        await asyncio.gather(*closing)


@pytest.mark.parametrize("event", [RunnerCrashedError("It died."), UtteranceFailed(1, RunnerCrashedError("It died."))])
async def test_a_model_that_dies_in_the_middle(monkeypatch: pytest.MonkeyPatch, event: Exception | UtteranceFailed) -> None:
    script = SessionScript(says=[PartialTranscript(1, "lights", "", 0.0, 0.5), event])
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_utterance()
        assert [event.type for event in await client.receive_answer()] == ["transcript-start", "transcript-chunk", "error"]


async def test_audio_that_becomes_other_audio_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_server(monkeypatch, SessionScript()) as (_, connect):
        client = await connect()
        await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await client.send_event("audio-chunk", b"\1\0", rate=8000, width=2, channels=1)
        (error,) = await client.receive_answer()
        assert "format changed within an utterance" in error.data["text"]


async def test_only_the_first_chunk_needs_to_name_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("audio-chunk", b"\1\0", rate=8_000)
        await client.send_event("audio-chunk", b"\2\0")
        await client.send_event("audio-stop")
        assert await client.receive_text() == "lights off"
    assert script.opened[0][1].format.rate == 8_000
    assert script.session.audio == b"\1\0\2\0"


async def test_audio_waits_for_its_model_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    script.loads.clear()
    audio = bytes(range(256)) * (1 << 16)  # 16 MiB, far more than may wait
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        speaking = asyncio.create_task(client.send_utterance(audio))
        done, _ = await asyncio.wait([speaking], timeout=0.5)
        assert not done, "more was taken than may wait"
        script.loads.set()
        await speaking
        assert await client.receive_text() == "lights off"
    assert script.session.audio == audio
    assert len(audio) > 3 * utterance.MAX_QUEUED_BYTES


async def test_a_client_that_leaves_takes_its_session_along(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: script.opened)
        client.writer.close()
        await wait_until(lambda: script.session.left)
        assert not script.session.is_finished


async def test_who_has_only_stopped_sending_gets_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    script.loads.clear()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_utterance()
        client.writer.write_eof()
        await asyncio.sleep(0.05)
        script.loads.set()
        assert await client.receive_text() == "lights off"
        assert await client.receive_event() is None


@pytest.mark.parametrize(
    "data",
    [b'{"type": "desc', b'{"type": "a", "payload_length": 9}\nabc', encode_event(WyomingEvent("audio-chunk", {}, b"\1\0"))],
    ids=["line", "payload", "utterance"],
)
async def test_who_stops_in_the_middle_is_given_up(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    async with run_server(monkeypatch, SessionScript(), create_settings(0.2)) as (_, connect):
        client = await connect()
        await client.send_raw(data)
        (error,) = await client.receive_answer()
        assert (error.data["code"], "The client sent nothing for 0.2 s" in error.data["text"]) == ("request_timeout", True)


async def test_between_utterances_a_client_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_server(monkeypatch, SessionScript(), create_settings(0.2)) as (_, connect):
        client = await connect()
        await client.send_utterance()
        assert await client.receive_text() == "lights off"
        await asyncio.sleep(0.5)
        await client.send_utterance()
        assert await client.receive_text() == "lights off"


@pytest.mark.slow
async def test_a_client_that_never_reads_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with run_server(monkeypatch, SessionScript(), create_settings(0.3)) as (running, connect):
        client = await connect()
        client.writer.transport.pause_reading()
        flooding = asyncio.create_task(flood_server(client))
        await asyncio.wait([flooding], timeout=10)
        assert isinstance(flooding.exception(), OSError)
        await wait_until(lambda: not running._connections)
    assert "The client read nothing for 0.3 s (limits.stall_timeout)." in caplog.text


async def flood_server(client: WyomingClient) -> None:
    while True:
        await client.send_event("ping", text="x" * 100_000)


async def test_who_drips_inside_an_utterance_is_given_up_and_a_muted_microphone_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    script, audio = SessionScript(), {"rate": 16000, "width": 2, "channels": 1}
    async with run_server(monkeypatch, script, create_settings(stall_timeout=0.5)) as (_, connect):
        dripping, muted = await connect(), await connect()

        async def drip() -> None:
            while True:
                await dripping.send_event("audio-chunk", b"\0\0", **audio)
                await dripping.send_event("ping")
                await asyncio.sleep(0.1)

        async def be_muted() -> None:
            for _ in range(20):
                await muted.send_event("audio-chunk", bytes(3200), **audio)
                await asyncio.sleep(0.1)
            await muted.send_event("audio-stop")

        ways = [asyncio.create_task(drip()), asyncio.create_task(be_muted())]
        async with asyncio.timeout(60):
            while (event := await dripping.receive_event()) and event.type != "error":
                pass
            assert event
            assert (event.data["code"], "less than 32 bytes per second" in event.data["text"]) == ("request_timeout", True)
            await ways[1]
            assert await muted.receive_text() == "lights off"
        ways[0].cancel()
        await asyncio.wait(ways)


async def test_the_oldest_idle_client_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        speaking = [await connect() for _ in range(2)]
        for client in speaking:
            await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: len(script.opened) == 2)
        idle, newcomer = await connect(), await connect()
        assert await idle.receive_event() is None
        await newcomer.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: len(script.opened) == 3)
        refused = await (await connect()).receive_event()
        assert refused
        assert refused.data["code"] == "busy"
        for client in (*speaking, newcomer):
            await client.send_event("audio-stop")
            assert await client.receive_text() == "lights off"


async def test_shutdown_waits_for_the_utterance_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (running, connect):
        idle, client = await connect(), await connect()
        await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: script.opened)
        closing = asyncio.create_task(running.close())
        assert await idle.receive_event() is None
        with pytest.raises(ConnectionError):
            await connect()
        await client.send_event("audio-chunk", b"\2\0", rate=16000, width=2, channels=1)
        await client.send_event("audio-stop")
        assert await client.receive_text() == "lights off"
        assert await client.receive_event() is None
        await closing
    assert script.session.audio == b"\1\0\2\0"


@pytest.mark.parametrize("rest", [True, False])
async def test_a_session_that_the_server_ends_gives_no_half_command(monkeypatch: pytest.MonkeyPatch, rest: bool) -> None:
    """Also if the rest has come by the time that the session's texts do."""
    script = SessionScript()
    async with run_server(monkeypatch, script) as (_, connect):
        client = await connect()
        await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: script.opened)
        script.session.is_finished = True
        if rest:
            await client.send_event("audio-chunk", b"\2\0", rate=16000, width=2, channels=1)
            await client.send_event("audio-stop")
            await client.send_event("ping")
            assert (await client.receive_event()).type == "pong"
        script.session.say_all()
        *events, error = await client.receive_answer()
        assert [event.type for event in events] == START
        assert (error.type, error.data["code"]) == ("error", "shutting_down")


async def test_a_shutdown_in_a_hurry_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (running, connect):
        client = await connect()
        await client.send_event("audio-chunk", b"\1\0", rate=16000, width=2, channels=1)
        await wait_until(lambda: script.opened)
        closing = asyncio.create_task(running.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        assert await client.receive_event() is None
        await wait_until(lambda: script.session.left)


async def test_keys_that_come_with_another_config_close_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_server(monkeypatch, SessionScript()) as (running, connect):
        client = await connect()
        await client.send_event("ping")
        assert (await client.receive_event()).type == "pong"
        running._service.settings = create_settings(api_keys=("secret",))
        error = await (await connect()).receive_event()
        assert error
        assert error.data["code"] == "invalid_api_key"


async def test_a_client_that_resets_the_connection_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = SessionScript()
    async with run_server(monkeypatch, script) as (running, connect):
        client = await connect()
        await client.send_utterance(b"\1\0" * 100_000)
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.writer.transport.abort()
        await wait_until(lambda: not running._connections)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


@pytest.mark.parametrize(("clients", "admitted"), [(("127.0.0.0/8",), True), (("10.0.0.0/8", "192.168.1.20"), False)])
async def test_only_listed_clients_are_served(monkeypatch: pytest.MonkeyPatch, clients: tuple[str, ...], admitted: bool) -> None:
    chosen = create_settings(api_keys=("secret",), wyoming=WyomingSettings(clients=clients))
    async with run_server(monkeypatch, SessionScript(), chosen) as (_, connect):
        client = await connect()
        await client.send_utterance(b"\1\0" * 100)
        if admitted:
            assert await client.receive_text() == "lights off"
            return
        event = await client.receive_event()
        assert (event.type, event.data["code"]) == ("error", "forbidden_client")
        assert "127.0.0.1 is not among the clients that may connect (wyoming.clients)" in event.data["text"]


def test_addresses_of_clients_and_of_the_server() -> None:
    listed = WyomingSettings(clients=("192.168.1.20", "fd00::/8"))
    assert [listed.admits(client) for client in ("192.168.1.20", "::ffff:192.168.1.20", "fd00::7", "192.168.1.21", "?")] == [
        *(True, True, True, False, False)
    ]
    assert WyomingSettings().admits("1.2.3.4")
    assert [WyomingSettings().is_enabled(keys) for keys in ((), ("k",))] == [True, False]
    assert listed.is_enabled(("k",))
    assert not WyomingSettings(clients=("10.0.0.1",), enabled=False).is_enabled(("k",))
    hosts = [WyomingSettings().find_host("0.0.0.0", keys) for keys in ((), ("k",))]
    assert [*hosts, listed.find_host("0.0.0.0", ("k",))] == ["0.0.0.0", "127.0.0.1", "0.0.0.0"]
    for wrong in ("nas", "192.168.1.5/24", ""):
        with pytest.raises(ValueError, match="write an address or a network such as"):
            WyomingSettings(clients=(wrong,))
