"""Questions, pictures and spoken answers, with the choices of a chat."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from eardrum.bot.chats import ChatMode, Conversation, SpokenAnswers
from eardrum.bot.telegram_output import measure_ogg_opus
from tests.bot.bots import PICTURE, WORDS, FakeModelServer, open_bot
from tests.fake_telegram import TelegramRefusalError
from tests.recordings import encode_speech

SOUND = b"OggS sound"
CHAT, BOTH = {"mode": ChatMode.CHAT}, {"mode": ChatMode.BOTH}


def get_questions(server: FakeModelServer) -> list[list[dict[str, Any]]]:
    return [call.json["messages"] for call in server.list_calls("/v1/chat")]


async def test_a_question_is_answered_and_remembered_until_new() -> None:
    async with open_bot(settings=CHAT, instructions="Be kind.") as bot:
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for_text("It is <b>blue</b>.")
        await bot.ask("Why?")
        await bot.telegram.wait_for(lambda: len(get_questions(bot.server)) == 2)
        assert get_questions(bot.server)[1] == [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "What is the sky?"},
            {"role": "assistant", "content": "It is **blue**."},
            {"role": "user", "content": "Why?"},
        ]
        await bot.telegram.wait_for(lambda: bot.telegram.list_texts().count("It is <b>blue</b>.") == 2)
        await bot.command("/new", "forgotten")
        await bot.ask("And now?")
        await bot.telegram.wait_for(lambda: len(get_questions(bot.server)) == 3)
        assert [message["content"] for message in get_questions(bot.server)[2]] == ["Be kind.", "And now?"]


async def test_a_recording_is_written_down_and_answered() -> None:
    async with open_bot(settings=BOTH) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND, text="Who is it?"))
        await bot.telegram.wait_for_text("<b>blue</b>")
        assert bot.telegram.list_texts() == [WORDS, "It is <b>blue</b>."]
        assert get_questions(bot.server)[0][-1]["content"] == f"Who is it?\n\n{WORDS}"


async def test_in_the_mode_chat_there_is_only_the_answer() -> None:
    async with open_bot(settings=CHAT) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("<b>blue</b>")
        assert bot.telegram.list_texts() == ["It is <b>blue</b>."]
        assert WORDS not in str([call.text for call in bot.telegram.calls])


async def test_in_the_mode_transcribe_messages_are_not_answered() -> None:
    async with open_bot() as bot:
        await bot.command("Hello?", "I only write down recordings here.")
        assert not bot.server.calls


async def test_an_answer_fails_and_the_transcript_stays() -> None:
    server = FakeModelServer(answers={WORDS: ""})
    async with open_bot(server, settings=BOTH) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text("That did not work: The model qwen answered with nothing.")
        assert bot.telegram.list_texts()[0] == WORDS


async def test_without_a_language_model_that_is_said() -> None:
    async with open_bot(settings=CHAT | {"chat_model": ""}) as bot:
        await bot.command("Hello?", "No language model is set up", "/model chat NAME")


async def test_a_picture_goes_to_the_model_that_sees_and_so_do_questions_about_it() -> None:
    async with open_bot(settings=CHAT | {"vision_model": "qwen-vl"}) as bot:
        photo = [
            bot.telegram.store(b"small") | {"width": 9, "height": 9},
            bot.telegram.store(PICTURE) | {"width": 90, "height": 90},
        ]
        await bot.hear(bot.telegram.write("What is that?", photo=photo))
        await bot.telegram.wait_for_text("blue")
        url = f"data:image/jpeg;base64,{base64.b64encode(PICTURE).decode()}"
        picture = {
            "role": "user",
            "content": [{"type": "text", "text": "What is that?"}, {"type": "image_url", "image_url": {"url": url}}],
        }
        assert get_questions(bot.server)[0] == [picture]
        await bot.ask("Are you sure?")
        await bot.telegram.wait_for(lambda: len(get_questions(bot.server)) == 2)
        assert get_questions(bot.server)[1][0] == picture
        assert [call.json["model"] for call in bot.server.list_calls("/v1/chat")] == ["qwen-vl", "qwen-vl"]
        document = bot.telegram.store(PICTURE) | {"mime_type": "image/png", "file_name": "plan.png"}
        await bot.hear(bot.telegram.write(document=document))
        await bot.telegram.wait_for(lambda: len(get_questions(bot.server)) == 3)
        messages = get_questions(bot.server)[2]
        assert messages[0] == {"role": "user", "content": "[picture] What is that?"}
        assert messages[-1]["content"][0]["text"] == "Describe this picture."
        assert messages[-1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
        await bot.command("/new")
        await bot.ask("Hello")
        await bot.telegram.wait_for(lambda: len(get_questions(bot.server)) == 4)
        assert bot.server.list_calls("/v1/chat")[3].json["model"] == "qwen"


async def test_the_thinking_of_a_model_is_not_shown() -> None:
    async with open_bot(FakeModelServer(answer="<think>Let me see.</think>\n\nBlue."), settings=CHAT) as bot:
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for_text("Blue.")
        assert "Let me" not in str([call.text for call in bot.telegram.calls])


SPOKEN_ANSWER = "# Sky\n\nIt is **blue** 😀, see https://example.com:\n\n```python\nprint('sky')\n```\n\n- air\n- light"


async def test_an_answer_is_spoken_in_words_and_written_in_full() -> None:
    speech = encode_speech("ogg")
    server = FakeModelServer(answer=SPOKEN_ANSWER, speech={"opus": speech})
    async with open_bot(
        server, settings=CHAT | {"speak": SpokenAnswers.ALWAYS, "voice": "heart", "voice_model": "hibari"}
    ) as bot:
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for(lambda: bot.telegram.list_calls("sendVoice"))
        (call,) = bot.telegram.list_calls("sendVoice")
        assert call.files["voice"] == speech
        assert int(call.fields["duration"]) == 18
        asked = bot.server.list_calls("/v1/audio/speech")[0].json
        assert asked == {
            "model": "hibari",
            "voice": "heart",
            "response_format": "opus",
            "input": "Sky.\nIt is blue, see example.com:\nair.\nlight.",
        }
        (text,) = bot.telegram.list_texts()
        assert text == (
            "<b>Sky</b>\n\nIt is <b>blue</b> 😀, see https://example.com:\n\n"
            "<pre><code class=\"language-python\">print('sky')</code></pre>\n• air\n• light"
        )


@pytest.mark.parametrize(("speak", "spoken"), [("never", 0), ("voice", 1), ("always", 2)])
async def test_answers_are_spoken_when_that_is_wanted(speak: str, spoken: int) -> None:
    server = FakeModelServer(speech={"opus": b"OggS"})
    async with open_bot(server, settings=CHAT | {"speak": SpokenAnswers(speak)}) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND), bot.telegram.write("Hello"))
        await bot.telegram.wait_for(lambda: bot.telegram.list_texts().count("It is <b>blue</b>.") == 2)
        await bot.command("/language", "detected")
        await bot.telegram.wait_for(lambda: len(bot.telegram.list_calls("sendVoice")) == spoken)


@pytest.mark.parametrize(
    "refusal",
    [
        TelegramRefusalError(400, "Bad Request: VOICE_MESSAGES_FORBIDDEN"),
        TelegramRefusalError(403, "Forbidden: voice messages forbidden"),
    ],
)
async def test_who_refuses_voice_messages_gets_music_from_then_on(refusal: TelegramRefusalError) -> None:
    server = FakeModelServer(speech={"opus": b"OggS", "mp3": b"ID3 mp3"})
    async with open_bot(server, settings=CHAT | {"speak": SpokenAnswers.ALWAYS}) as bot:
        bot.telegram.refusals["sendVoice"] = [refusal]
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for(lambda: bot.telegram.list_calls("sendAudio"))
        assert bot.telegram.list_calls("sendAudio")[0].files["audio"] == b"ID3 mp3"
        await bot.ask("And the sea?")
        await bot.telegram.wait_for(lambda: len(bot.telegram.list_calls("sendAudio")) == 2)
        assert len(bot.telegram.list_calls("sendVoice")) == 1
        assert bot.telegram.list_texts() == ["It is <b>blue</b>."] * 2


async def test_a_voice_that_fails_leaves_the_text() -> None:
    async with open_bot(FakeModelServer(speech={"opus": b""}), settings=CHAT | {"speak": SpokenAnswers.ALWAYS}) as bot:
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for_text("The answer cannot be spoken: The server answered with no speech.")
        assert bot.telegram.list_texts()[0] == "It is <b>blue</b>."


async def test_an_answer_stays_when_its_speech_is_cancelled() -> None:
    paragraph = "word " * 199 + "**end**.\n\n"
    server = FakeModelServer(answer=paragraph * 9, speech={"opus": b"OggS"}, speech_delay=30)
    async with open_bot(server, settings=CHAT | {"speak": SpokenAnswers.ALWAYS}) as bot:
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for(lambda: server.list_calls("/v1/audio/speech"))
        answer = bot.telegram.list_texts()
        assert "".join(answer).count("<b>end</b>.") == 9
        await bot.ask("/stop")
        await bot.telegram.wait_for_text("Stopped.")
        assert bot.telegram.list_texts()[: len(answer)] == answer
        assert "Cancelled." in bot.telegram.list_texts()


async def test_a_transcript_stays_when_its_answer_is_cancelled() -> None:
    server = FakeModelServer(chat_delay=30)
    async with open_bot(server, settings=BOTH) as bot:
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for(lambda: server.list_calls("/v1/chat"))
        await bot.ask("/stop")
        await bot.telegram.wait_for_text("Stopped.")
        assert bot.telegram.list_texts() == [WORDS, "Cancelled.", "Stopped."]


async def test_markup_that_telegram_refuses_is_sent_as_it_is() -> None:
    async with open_bot(settings=CHAT) as bot:
        bot.telegram.refuse("editMessageText", 400, "Bad Request: can't parse entities: Can't find end of the entity")
        await bot.ask("What is the sky?")
        await bot.telegram.wait_for_text("It is **blue**.")


async def test_a_long_answer_comes_in_several_messages_and_a_very_long_one_as_a_document() -> None:
    paragraph = "word " * 199 + "end.\n\n"
    server = FakeModelServer(answers={"long": paragraph * 9, "endless": paragraph * 40})
    async with open_bot(server, settings=CHAT) as bot:
        await bot.ask("A long one")
        await bot.telegram.wait_for(lambda: "".join(bot.telegram.list_texts()).count("end.") == 9)
        assert len(bot.telegram.list_texts()) == 3
        await bot.ask("An endless one")
        await bot.telegram.wait_for(lambda: bot.telegram.list_calls("sendDocument"))
        (call,) = bot.telegram.list_calls("sendDocument")
        assert call.files["document"].decode().count("end.") == 40


async def test_the_modes_of_a_chat() -> None:
    async with open_bot() as bot:
        await bot.command("/mode", "Mode transcribe", "/mode both")
        await bot.command("/mode both", "Mode both: recordings become text and are answered")
        await bot.command("/mode dance", "I know no mode 'dance'")
        await bot.ask("Hello")
        await bot.telegram.wait_for_text("blue")
        await bot.command("/start", "I write down what is said in them, and answer it.", "Write to me", "/new")
        await bot.command("/dance", "I know no command /dance")


async def test_what_is_no_message_of_a_person_gets_no_reply() -> None:
    async with open_bot() as bot:
        pinned = bot.telegram.write("Hello")
        await bot.hear(bot.telegram.write(pinned_message=pinned))
        await bot.command("/mode", "Mode transcribe")
        sticker = bot.telegram.store(b"webp") | {
            "width": 9,
            "height": 9,
            "is_animated": False,
            "is_video": False,
            "type": "regular",
        }
        await bot.hear(bot.telegram.write(sticker=sticker))
        await bot.telegram.wait_for_text("I understand recordings, text and pictures.")


async def test_the_models_of_a_chat() -> None:
    async with open_bot() as bot:
        await bot.command("/model", "speech: whisper-1", "chat: qwen", "vision: qwen", "turbo, qwen, qwen-vl")
        await bot.command("/model turbo", "The model for speech is turbo.")
        await bot.command("/model qwen-vl", "The model for chat is qwen-vl.")
        await bot.command("/model vision qwen-vl", "The model for vision is qwen-vl.")
        await bot.command("/model speech nothing", "The server has no model nothing. It has: turbo")
        await bot.command("/model dance qwen", "roles speech, chat, vision, voice")
        await bot.hear(bot.telegram.record_voice(SOUND))
        await bot.telegram.wait_for_text(WORDS)
        assert bot.server.list_calls("/v1/audio/transcriptions")[0].get_value("model") == "turbo"


async def test_voice_and_language_of_a_chat() -> None:
    async with open_bot() as bot:
        await bot.command("/voice", "Answers are not spoken. The voice is alloy.", "heart, emma")
        await bot.command("/voice always", "All answers are spoken, too.")
        await bot.command("/voice heart", "The voice is heart.")
        await bot.command("/voice nobody", "The server has no voice nobody. It has: heart, emma.")
        await bot.command("/language German", "Recordings are in German.")
        await bot.command("/language klingonese", "I know no language 'klingonese'")
        await bot.command("/language auto", "detected")


async def test_the_choices_of_chats_are_their_own() -> None:
    bob = {"id": 5, "is_bot": False, "first_name": "Bob"}
    async with open_bot(allowed=frozenset({1001, 5})) as bot:
        await bot.command("/mode chat", "Mode chat")
        await bot.ask("/mode", chat={"id": 5, "type": "private", "first_name": "Bob"}, sender=bob)
        await bot.telegram.wait_for_text("Mode transcribe")


def test_a_conversation_forgets_its_oldest_exchanges() -> None:
    conversation = Conversation()
    for number in range(50):
        conversation.add_exchange(f"question {number}", "answer")
    messages = conversation.build_request("last")
    assert (len(messages), messages[0]["content"]) == (41, "question 30")
    conversation.add_exchange("long", "x" * 50_000)
    assert [message["content"][:4] for message in conversation.build_request("last")] == ["long", "xxxx", "last"]


def test_the_length_of_ogg_opus_is_measured() -> None:
    assert measure_ogg_opus(encode_speech("ogg")) == pytest.approx(18.0, abs=0.3)
    assert measure_ogg_opus(b"RIFF") == 0.0
    assert measure_ogg_opus(b"OggS") == 0.0
