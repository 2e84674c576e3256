"""Recordings of every kind become text, while they are decoded and within Telegram's limits."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pysrt
import pytest
from aiohttp import web

from eardrum.bot.chats import ChatMode
from eardrum.bot.telegram_output import EditIntervals
from tests.bot.bots import WORDS, FakeModelServer, open_bot
from tests.fake_telegram import ANN, FakeTelegram, open_fake_telegram

SOUND = b"OggS sound"


async def test_a_voice_message_becomes_text() -> None:
    async with open_bot(settings={"speech_model": "large", "language": "de"}) as bot:
        voice = bot.telegram.record_voice(SOUND)
        await bot.hear(voice)
        await bot.telegram.wait_for_text(WORDS)
        (call,) = bot.server.list_calls("/v1/audio/transcriptions")
        assert call.file == SOUND
        assert (call.get_value("model"), call.get_value("language"), call.get_value("stream")) == ("large", "de", "true")
        (sent,) = bot.telegram.list_calls("sendMessage")
        assert str(voice["message_id"]) in sent.fields["reply_parameters"]


def build_media(telegram: FakeTelegram, kind: str) -> dict[str, Any]:
    file = telegram.store(SOUND)
    media: dict[str, dict[str, Any]] = {
        "voice": {"voice": file | {"duration": 3}},
        "video note": {"video_note": file | {"duration": 3, "length": 240}},
        "music": {"audio": file | {"duration": 3, "mime_type": "audio/mpeg", "file_name": "song.mp3"}},
        "film": {"video": file | {"duration": 3, "width": 1, "height": 1, "mime_type": "video/mp4"}},
        "document": {"document": file | {"mime_type": "audio/flac", "file_name": "memo.flac"}},
        "forward": {
            "voice": file | {"duration": 3},
            "forward_origin": {"type": "hidden_user", "sender_user_name": "Bob", "date": 1_600_000_000},
        },
    }
    return telegram.write(**media[kind])


@pytest.mark.parametrize("kind", ["voice", "video note", "music", "film", "document", "forward"])
async def test_recordings_of_every_kind_become_text(kind: str) -> None:
    async with open_bot() as bot:
        await bot.hear(build_media(bot.telegram, kind))
        await bot.telegram.wait_for_text(WORDS)
        (call,) = bot.server.list_calls("/v1/audio/transcriptions")
        assert call.file == SOUND
        assert call.file_name.endswith({"music": "song.mp3", "document": "memo.flac"}.get(kind, "")), call.file_name


async def test_the_text_grows_while_it_is_decoded_and_edits_keep_their_distance() -> None:
    server = FakeModelServer(deltas=[f" word{number}" for number in range(40)], delay=0.02)
    async with open_bot(server, edit_intervals=EditIntervals(0.2, 0.2)) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("word0", "word39")
        edits = bot.telegram.list_calls("editMessageText")
        assert 3 <= len(edits) <= 6
        assert all(later.text.startswith(earlier.text) for earlier, later in pairwise(edits))
        assert all(later.at - earlier.at > 0.19 for earlier, later in pairwise(edits))
        assert len(bot.telegram.list_calls("sendMessage")) == 1


LONG = [f" This is sentence number {number}." for number in range(300)]


async def test_a_long_transcript_is_a_document_with_subtitles() -> None:
    segments = [
        {"id": number, "start": 2.0 * number, "end": 2.0 * number + 1.9, "text": text.strip()} for number, text in enumerate(LONG)
    ]
    async with open_bot(FakeModelServer(deltas=LONG, segments=segments)) as bot:
        await bot.hear(bot.telegram.write(audio=bot.telegram.store(SOUND) | {"duration": 600, "file_name": "My talk.mp3"}))
        await bot.telegram.wait_for(lambda: len(bot.telegram.list_calls("sendDocument")) == 2)
        text, subtitles = bot.telegram.list_calls("sendDocument")
        assert text.file_names == {"document": "My_talk.txt"}
        assert text.files["document"].decode() == "".join(LONG).strip()
        assert subtitles.file_names == {"document": "My_talk.srt"}
        cues = pysrt.from_string(subtitles.files["document"].decode())
        assert " ".join(" ".join(cue.text.split()) for cue in cues) == "".join(LONG).strip()
        assert cues[-1].end.ordinal == pytest.approx(600_000, abs=200)
        (preview,) = bot.telegram.list_texts()
        assert preview.startswith("This is sentence number 0.")
        assert 500 < len(preview) < 1100


async def test_a_long_transcript_without_times_has_no_subtitles() -> None:
    async with open_bot(FakeModelServer(deltas=LONG)) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND), bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for(lambda: len(bot.telegram.list_calls("sendDocument")) == 2)
        assert [next(iter(call.file_names.values()))[-4:] for call in bot.telegram.list_calls("sendDocument")] == [".txt"] * 2


async def test_silence_is_told() -> None:
    async with open_bot(FakeModelServer(deltas=[])) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("It contains no speech.")


async def test_a_voice_message_of_no_length() -> None:
    async with open_bot() as bot:
        await bot.hear(bot.telegram.record_voice(b"", seconds=0))
        await bot.telegram.wait_for_text("That did not work: The audio file is empty.")


async def test_a_bot_api_server_of_ones_own_has_no_limit() -> None:
    async with open_bot() as bot:
        bot.telegram.is_public = False
        await bot.hear(bot.telegram.record_voice(SOUND, size=25 << 20))
        await bot.telegram.wait_for_text(WORDS)


async def test_telegrams_limit_is_explained_whether_the_size_is_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_fake_telegram() as telegram:
        monkeypatch.setattr("eardrum.bot.telegram_bot.PUBLIC_API", telegram.url)
        async with open_bot(telegram=telegram) as bot:
            await bot.hear(telegram.record_voice(SOUND, size=25 << 20))
            await telegram.wait_for_text("(26 MB)", "at most 20 MB", "--telegram-api")
            assert not telegram.list_calls("getFile")
            unknown = telegram.record_voice(SOUND, size=25 << 20)
            del unknown["voice"]["file_size"]
            await bot.hear(unknown)
            await telegram.wait_for(lambda: len([t for t in telegram.list_texts() if "at most 20 MB" in t]) == 2)
            assert telegram.list_calls("getFile")
            assert not bot.server.calls


async def test_a_file_of_a_bot_api_server_on_this_machine_is_read_from_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "voice.oga"
    path.write_bytes(SOUND * 1000)
    async with open_bot() as bot:
        bot.telegram.is_public = False
        voice = bot.telegram.record_voice(b"", size=100 << 20)
        bot.telegram.local_paths[voice["voice"]["file_id"]] = str(path)
        await bot.hear(voice)
        await bot.telegram.wait_for_text(WORDS)
        assert bot.server.list_calls("/v1/audio/transcriptions")[0].file == SOUND * 1000
        elsewhere = bot.telegram.record_voice(b"")
        bot.telegram.local_paths[elsewhere["voice"]["file_id"]] = "/nowhere/voice.oga"
        await bot.hear(elsewhere)
        await bot.telegram.wait_for_text("does not have the file (404)", "--local")


async def test_a_download_that_breaks_off_is_no_short_recording() -> None:
    async with open_bot() as bot:
        voice = bot.telegram.record_voice(SOUND * 100_000)
        bot.telegram.broken.add(voice["voice"]["file_id"])
        await bot.hear(voice)
        await bot.telegram.wait_for_text("That did not work: The download from Telegram broke off")
        assert not bot.server.calls, "no request was complete"


async def test_what_the_server_says_is_passed_on() -> None:
    server = FakeModelServer()
    async with open_bot(server) as bot:
        server.refusal = web.Response(status=503, text="The model's queue is full.")
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("That did not work: The model's queue is full.")
        server.refusal = web.Response(status=401, text="no key")
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("The server refuses the bot (401)", "--key")


async def test_a_failure_takes_the_place_of_notes_on_the_progress() -> None:
    """The second message was queued, and so has been edited before it fails."""
    async with open_bot(FakeModelServer(refusal=web.Response(status=503, text="The model's queue is full."))) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND), bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for(lambda: bot.telegram.list_texts() == ["That did not work: The model's queue is full."] * 2)


async def test_a_reason_that_is_longer_than_a_message_is_cut() -> None:
    """Servers quote the request in their refusals, emoji and all."""
    server = FakeModelServer(refusal=web.Response(status=400, text=5000 * "😀"))
    async with open_bot(server) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("That did not work: 😀")
        assert len(bot.telegram.list_texts()) == 1


async def test_a_server_that_is_not_there() -> None:
    async with open_bot(address="http://127.0.0.1:1") as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("That did not work: The server cannot be reached")


async def test_one_recording_of_a_chat_at_a_time_and_in_order() -> None:
    server = FakeModelServer(deltas=["a", "b", "c"], delay=0.05)
    async with open_bot(server) as bot:
        await bot.hear(*(bot.telegram.record_voice(SOUND + bytes([number])) for number in range(4)))
        await bot.telegram.wait_for_text("Queued, 1 before it.")
        await bot.telegram.wait_for(lambda: bot.telegram.list_texts().count("abc") == 4)
        assert server.upstream
        assert server.upstream.most_in_flight == 1
        assert [call.file[-1] for call in server.calls] == [0, 1, 2, 3]


async def test_other_chats_do_not_wait() -> None:
    server = FakeModelServer(deltas=["a", "b", "c"], delay=0.1)
    async with open_bot(server, allowed=frozenset({ANN["id"], 5})) as bot:
        bob = {"id": 5, "is_bot": False, "first_name": "Bob"}
        other = bot.telegram.record_voice(SOUND, chat={"id": 5, "type": "private", "first_name": "Bob"}, sender=bob)
        await bot.hear(bot.telegram.record_voice(SOUND), other)
        await bot.telegram.wait_for(lambda: bot.telegram.list_texts().count("abc") == 2)
        assert server.upstream
        assert server.upstream.most_in_flight == 2


async def test_stop_cancels_what_runs_and_what_waits() -> None:
    server = FakeModelServer(deltas=["one", " two", " three"], delay=0.3)
    async with open_bot(server) as bot:
        await bot.hear(*(bot.telegram.record_voice(SOUND) for _ in range(3)))
        await bot.telegram.wait_for(lambda: "one" in bot.telegram.list_texts())
        await bot.ask("/stop")
        await bot.telegram.wait_for_text("Stopped 3 messages.")
        await bot.telegram.wait_for_text("one", "Cancelled.")
        assert sum("Cancelled." in text for text in bot.telegram.list_texts()) == 3
        assert server.upstream
        await bot.telegram.wait_for(lambda: server.upstream and server.upstream.given_up == 1)
        assert len(server.calls) == 1
        await bot.command("/stop", "There is nothing to stop.")


async def test_those_who_wait_are_told_that_the_bot_is_stopped() -> None:
    async with open_bot(FakeModelServer(delay=5.0)) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for(lambda: bot.server.calls)
        bot.stop.set()
        await bot.telegram.wait_for_text("Cancelled: the bot was stopped.")
        await asyncio.wait_for(bot.task, 60)


async def test_a_message_that_was_deleted_is_sent_again() -> None:
    server = FakeModelServer(delay=0.3)
    async with open_bot(server) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("Listening")
        bot.telegram.messages.clear()
        await bot.telegram.wait_for_text(WORDS)


async def test_recordings_are_written_down_in_every_mode_on_command() -> None:
    async with open_bot(settings={"mode": ChatMode.CHAT}) as bot:
        await bot.ask("/transcribe", reply_to_message=bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text(WORDS)
        assert not bot.server.list_calls("/v1/chat")
        await bot.command("/transcribe", "Reply with /transcribe to the recording")
