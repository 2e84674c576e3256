"""The bot answers those who are allowed and address it, and bears with Telegram's limits and failures."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from eardrum.bot import telegram_bot
from eardrum.bot.chats import ChatMode
from eardrum.bot.telegram_bot import BotOptions, run_bot
from eardrum.errors import ConfigError
from eardrum.logging_setup import TextLogFormatter
from tests.bot.bots import WORDS, FakeModelServer, open_bot
from tests.conftest import wait_for
from tests.fake_telegram import ANN, BOT, GROUP, TOKEN, open_fake_telegram

SOUND = b"OggS sound"
BOB = {"id": 5, "is_bot": False, "first_name": "Bob"}
OF_BOB = {"id": 5, "type": "private", "first_name": "Bob"}
CHAT = {"mode": ChatMode.CHAT}


async def test_a_stranger_gets_one_answer_with_the_id_and_nothing_else() -> None:
    async with open_bot() as bot:
        for _ in range(3):
            await bot.hear(bot.telegram.record_voice(SOUND, chat=OF_BOB, sender=BOB))
            await bot.ask("/mode chat", chat=OF_BOB, sender=BOB)
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text(WORDS)
        assert [text for text in bot.telegram.list_texts() if text != WORDS] == [
            "This bot is private. Its owner can allow you with the id 5."
        ]
        assert len(bot.server.calls) == 1


async def test_in_a_group_only_those_who_address_the_bot_are_answered() -> None:
    async with open_bot(settings=CHAT) as bot:
        telegram = bot.telegram
        of_bot = {**telegram.write("Hello", chat=GROUP), "from": BOT}
        await bot.hear(
            telegram.write("Hello everybody", chat=GROUP),
            telegram.record_voice(SOUND, chat=GROUP),
            telegram.write("@someone else", chat=GROUP),
            telegram.write("/mode@other_bot both", chat=GROUP),
            telegram.write("/dance", chat=GROUP),
            telegram.write("@ear_bot, one?", chat=GROUP),
            telegram.write("two?", chat=GROUP, reply_to_message=of_bot),
        )
        await telegram.wait_for(lambda: telegram.list_texts().count("It is <b>blue</b>.") == 2)
        assert [call.json["messages"][-1]["content"] for call in bot.server.calls] == ["one?", "two?"]
        await bot.ask("/mode@ear_bot", chat=GROUP)
        await telegram.wait_for_text("Mode chat")
        assert len(telegram.list_texts()) == 3


async def test_in_a_group_somebody_elses_recording_can_be_pointed_at() -> None:
    async with open_bot() as bot:
        theirs = bot.telegram.record_voice(SOUND, chat=GROUP, sender=BOB)
        await bot.ask("@ear_bot what does he say?", chat=GROUP, reply_to_message=theirs)
        await bot.telegram.wait_for_text(WORDS)
        await bot.ask("/transcribe", chat=GROUP, reply_to_message=theirs)
        await bot.telegram.wait_for(lambda: bot.telegram.list_texts().count(WORDS) == 2)


async def test_in_a_group_a_recording_may_have_the_command_as_its_caption() -> None:
    async with open_bot(settings=CHAT) as bot:
        other = bot.telegram.record_voice(b"other", chat=GROUP, text="/transcribe@other_bot")
        await bot.hear(other, bot.telegram.record_voice(SOUND, chat=GROUP, text="/transcribe"))
        await bot.telegram.wait_for_text(WORDS)
        assert [call.file for call in bot.server.calls] == [SOUND]


async def test_in_a_group_a_reply_to_the_bots_own_voice_is_about_the_reply() -> None:
    async with open_bot(settings=CHAT) as bot:
        spoken = {**bot.telegram.record_voice(SOUND, chat=GROUP), "from": BOT}
        await bot.ask("Really?", chat=GROUP, reply_to_message=spoken)
        await bot.telegram.wait_for_text("blue")
        assert [call.path for call in bot.server.calls] == ["/v1/chat/completions"]


async def test_a_group_can_be_allowed_and_a_strange_one_is_told_its_id() -> None:
    async with open_bot(settings=CHAT, allowed=frozenset({GROUP["id"]})) as bot:
        await bot.ask("@ear_bot hello", chat=GROUP, sender=BOB)
        await bot.telegram.wait_for_text("blue")
    async with open_bot(settings=CHAT) as bot:
        await bot.ask("hello", chat=GROUP, sender=BOB)
        await bot.ask("@ear_bot hello", chat=GROUP, sender=BOB)
        await bot.telegram.wait_for_text("Its owner can allow this group with the id -2002.")
        assert len(bot.telegram.list_texts()) == 1


async def test_after_a_restart_old_messages_get_one_notice_and_new_ones_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telegram_bot, "NOTICE_DELAY_S", 0.2)
    async with open_fake_telegram() as telegram:
        old = [telegram.record_voice(SOUND, date=int(time.time()) - 3600) for _ in range(49)]
        await telegram.push(*old, telegram.record_voice(b"new"))
        async with open_bot(telegram=telegram) as bot:
            await telegram.wait_for_text("Not answered: 49 messages from the time when the bot was away.")
            await telegram.wait_for_text(WORDS)
            assert [call.file for call in bot.server.calls] == [b"new"]
            assert len(telegram.list_texts()) == 2


async def test_after_a_restart_the_queue_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telegram_bot, "NOTICE_DELAY_S", 0.2)
    async with open_fake_telegram() as telegram:
        await telegram.push(*(telegram.record_voice(SOUND) for _ in range(50)))
        async with open_bot(FakeModelServer(delay=0.01), telegram=telegram) as bot:
            await telegram.wait_for_text("Not taken: 39 messages, because 10 are waiting already.")
            await telegram.wait_for(lambda: telegram.list_texts().count(WORDS) == 11)
            assert len(bot.server.calls) == 11


async def test_updates_are_confirmed_so_that_they_do_not_come_again() -> None:
    async with open_fake_telegram() as telegram:
        async with open_bot(telegram=telegram) as bot:
            await bot.hear(telegram.record_voice(SOUND))
            await telegram.wait_for_text(WORDS)
        assert telegram.updates == []


@pytest.mark.slow  # waits for seconds, as Telegram wants it
async def test_after_429_the_bot_waits_and_the_text_arrives() -> None:
    async with open_bot(FakeModelServer(deltas=["one", " two"], delay=0.2)) as bot:
        bot.telegram.refuse("sendMessage", 429, "Too Many Requests: retry after 1", retry_after=1)
        bot.telegram.refuse("editMessageText", 429, "Too Many Requests: retry after 1", retry_after=1)
        began = time.monotonic()
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("one two")
        assert time.monotonic() - began >= 2
        assert len(bot.telegram.list_calls("sendMessage")) == 2
        assert len(bot.telegram.list_calls("editMessageText")) == 2


@pytest.mark.slow  # the library waits for seconds between its attempts
async def test_another_program_with_the_same_token_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async with open_fake_telegram() as telegram:
        for _ in range(2):
            telegram.refuse("getUpdates", 409, "Conflict: terminated by other getUpdates request")
        async with open_bot(telegram=telegram) as bot:
            await bot.hear(telegram.record_voice(SOUND))
            await telegram.wait_for_text(WORDS)
        assert caplog.text.count("another program that runs with the same token (409)") == 1
        assert "Traceback" not in caplog.text


@pytest.mark.slow  # the library waits for seconds between its attempts
async def test_of_two_bots_with_one_token_the_one_that_stays_answers(caplog: pytest.LogCaptureFixture) -> None:
    async with open_fake_telegram() as telegram, open_bot(telegram=telegram) as stays:
        async with open_bot(telegram=telegram):
            await telegram.wait_for(lambda: "another program that runs with the same token (409)" in caplog.text)
        await stays.hear(telegram.record_voice(SOUND))
        await telegram.wait_for_text(WORDS)
        assert len(stays.server.calls) == 1


async def test_a_chat_that_has_blocked_the_bot_ends_nothing() -> None:
    async with open_bot() as bot:
        for _ in range(2):
            bot.telegram.refuse("sendMessage", 403, "Forbidden: bot was blocked by the user")
        await bot.ask("/mode")
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for(lambda: not bot.telegram.refusals["sendMessage"])
        await bot.command("/mode", "Mode transcribe")


async def test_a_token_that_telegram_does_not_know() -> None:
    async with open_fake_telegram() as telegram:
        options = BotOptions("1:wrong-token-wrong-token", frozenset({1}), "http://127.0.0.1:1", telegram_api=telegram.url)
        with pytest.raises(ConfigError, match="does not know this token"):
            await run_bot(options, asyncio.Event())


async def test_telegram_is_greeted_again_when_it_asks_for_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telegram_bot, "START_RETRY_S", 0.1)
    async with open_fake_telegram() as telegram:
        telegram.refuse("setMyCommands", 429, "Too Many Requests: retry after 5", retry_after=5)
        async with open_bot(telegram=telegram) as bot:
            await bot.command("/mode", "Mode transcribe")


async def test_telegram_out_of_reach_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    options = BotOptions(TOKEN, frozenset({1}), "http://127.0.0.1:1", telegram_api="http://127.0.0.1:1")
    stop = asyncio.Event()
    task = asyncio.create_task(run_bot(options, stop))
    await asyncio.to_thread(wait_for, lambda: "Telegram cannot be reached" in caplog.text)
    stop.set()
    await asyncio.wait_for(task, 60)


async def test_no_log_holds_the_token_or_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    formatter = TextLogFormatter()
    async with open_bot(settings={"mode": ChatMode.BOTH}) as bot:
        gone = bot.telegram.record_voice(SOUND)
        del bot.telegram.stored[gone["voice"]["file_id"]]
        bot.telegram.stored["x"] = b""
        bot.telegram.local_paths[gone["voice"]["file_id"]] = "x/gone"
        bot.telegram.sizes[gone["voice"]["file_id"]] = 1
        bot.telegram.refuse("getUpdates", 502, "Bad Gateway")
        await bot.hear(gone, bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("blue")
        await bot.telegram.wait_for_text("(404)")
    assert caplog.records
    shown = "\n".join(map(formatter.format, caplog.records))
    secret = TOKEN.partition(":")[2]
    assert secret not in shown
    assert secret not in str([call.text for call in bot.telegram.calls])
    at_info = "\n".join(formatter.format(record) for record in caplog.records if record.levelno >= logging.INFO)
    assert "Answered a message in" in at_info
    assert WORDS not in at_info
    assert ANN["first_name"] not in at_info
