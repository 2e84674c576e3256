"""Answers messages: a recording with its transcript, a question or picture with a language model's answer, in text or speech."""

from __future__ import annotations

import asyncio
import base64
import logging
from contextlib import aclosing
from time import monotonic
from typing import Any

from msgspec import Struct
from telegram.constants import ChatAction
from telegram.error import BadRequest, Forbidden

from eardrum.api import transcript_formats
from eardrum.bot import message_text
from eardrum.bot.attachments import Attachment, AttachmentLoader
from eardrum.bot.chats import ChatMode, ChatState, SpokenAnswers
from eardrum.bot.message_text import MAX_MESSAGE_LENGTH
from eardrum.bot.server_api import ServerApi, TranscriptProgress
from eardrum.bot.telegram_output import PREVIEW_LENGTH, GrowingMessage, ReplyWriter
from eardrum.errors import EardrumError
from eardrum.subtitles import BROADCAST_RULES

log = logging.getLogger(__name__)

LISTENING, THINKING = "Listening …", "Thinking …"
NO_SPEECH = "It contains no speech."
NO_CHAT_MODEL = "No language model is set up: choose one with /model chat NAME, or start the bot with --chat-model."
DEFAULT_QUESTION = "Describe this picture."


class IncomingMessage(Struct):
    """A message to answer."""

    writer: ReplyWriter
    status: GrowingMessage
    """The bot's reply in progress: it shows the progress, and then the result. A recording may get two, one after the other."""
    recording: Attachment | None = None
    picture: Attachment | None = None
    text: str = ""
    """Its text, or the caption of its attachment."""
    only_transcribe: bool = False
    """Whether a transcript is wanted, in any mode of the chat."""


class MessageAnswerer:
    """Answers one message after another of any chat."""

    def __init__(self, server: ServerApi, loader: AttachmentLoader):
        self._server = server
        self._loader = loader

    async def answer(self, message: IncomingMessage, chat: ChatState) -> None:
        """Answer a message. If that fails, the answer is the reason.

        Raises:
            TelegramError: the answer cannot be sent.
        """
        began = monotonic()
        try:
            if message.recording:
                await self._answer_recording(message, message.recording, chat)
            elif message.picture:
                await self._answer_picture(message, message.picture, chat)
            else:
                await self._answer_question(message, message.text, chat, spoken_to=False)
        except EardrumError as error:
            log.warning("A message could not be answered: %s", error.message)
            await message.status.fail(f"That did not work: {error.sentence}")
        else:
            log.info("Answered a message in %.1f s.", monotonic() - began)

    async def _answer_recording(self, message: IncomingMessage, recording: Attachment, chat: ChatState) -> None:
        settings = chat.settings
        await message.status.show(LISTENING)
        shows_transcript = message.only_transcribe or settings.mode is not ChatMode.CHAT
        async with message.writer.show_action(ChatAction.TYPING):
            transcript = await self._transcribe(message, recording, chat, show=shows_transcript)
        if not transcript.text:
            await message.status.finish(NO_SPEECH)
            return
        if shows_transcript:
            await show_transcript(message, transcript, recording)
        if message.only_transcribe or not settings.answers:
            return
        if shows_transcript:
            message.status = GrowingMessage(message.writer)
        question = "\n\n".join(filter(None, [message.text, transcript.text]))
        try:
            await self._answer_question(message, question, chat, spoken_to=True)
        except EardrumError as error:  # the transcript is there and stays
            log.warning("A recording got no answer: %s", error.message)
            await message.status.fail(f"That did not work: {error.sentence}")

    async def _transcribe(
        self, message: IncomingMessage, recording: Attachment, chat: ChatState, *, show: bool
    ) -> TranscriptProgress:
        progress = TranscriptProgress("")
        settings = chat.settings
        async with self._loader.open(recording) as audio:
            updates = self._server.transcribe(audio, recording.name, model=settings.speech_model, language=settings.language)
            async with aclosing(updates):
                async for progress in updates:
                    if show and (text := progress.text.strip()):
                        message.status.grow(text)
        return progress

    async def _answer_picture(self, message: IncomingMessage, picture: Attachment, chat: ChatState) -> None:
        await message.status.show("Looking …")
        data = await self._loader.read(picture)
        url = f"data:{picture.media_type};base64,{base64.b64encode(data).decode()}"
        content: list[dict[str, Any]] = [
            {"type": "text", "text": message.text or DEFAULT_QUESTION},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        await self._answer_question(message, content, chat, spoken_to=False)

    async def _answer_question(
        self,
        message: IncomingMessage,
        content: str | list[dict[str, Any]],
        chat: ChatState,
        *,
        spoken_to: bool,
    ) -> None:
        settings, conversation = chat.settings, chat.conversation
        sees = isinstance(content, list) or conversation.has_picture
        model = (settings.vision_model if sees else "") or settings.chat_model
        if not model:
            raise EardrumError(NO_CHAT_MODEL)
        await message.status.show(THINKING)
        answer = ""
        async with message.writer.show_action(ChatAction.TYPING):
            pieces = self._server.chat(model, conversation.build_request(content))
            async with aclosing(pieces):
                async for piece in pieces:
                    answer += piece
                    if shown := message_text.remove_thoughts(answer).strip():
                        message.status.grow(shown)
        answer = message_text.remove_thoughts(answer).strip()
        if not answer:
            raise EardrumError(f"The model {model} answered with nothing.")
        await message.status.finish(answer, html=True)
        conversation.add_exchange(content, answer)
        if settings.speak is SpokenAnswers.ALWAYS or (settings.speak is SpokenAnswers.VOICE and spoken_to):
            await self._speak(message.writer, answer, chat)

    async def _speak(self, writer: ReplyWriter, answer: str, chat: ChatState) -> None:
        """Speak an answer, whose text has been sent. If that fails, a message gives the reason."""
        text = message_text.extract_spoken_text(answer)
        if not text:
            return
        try:
            if not chat.refuses_voice:
                async with writer.show_action(ChatAction.RECORD_VOICE):
                    speech = await self._synthesize(text, chat, "opus")
                try:
                    await writer.send_voice(speech)
                    return
                except (BadRequest, Forbidden) as error:
                    if "voice" not in error.message.lower():
                        raise
                    chat.refuses_voice = True  # music goes where voice messages are refused
            async with writer.show_action(ChatAction.UPLOAD_DOCUMENT):
                await writer.send_audio(await self._synthesize(text, chat, "mp3"))
        except EardrumError as error:
            log.warning("An answer could not be spoken: %s", error.message)
            await writer.send_text(f"The answer cannot be spoken: {error.sentence}")

    async def _synthesize(self, text: str, chat: ChatState, format: str) -> bytes:
        return await self._server.speak(text, model=chat.settings.voice_model, voice=chat.settings.voice, format=format)


async def show_transcript(message: IncomingMessage, transcript: TranscriptProgress, recording: Attachment) -> None:
    """Show a finished transcript: in the message, or if it does not fit as a text file, with subtitles where times are known.

    Raises:
        TelegramError: it cannot be sent.
    """
    if message_text.count_units(transcript.text) <= MAX_MESSAGE_LENGTH:
        await message.status.finish(transcript.text)
        return
    await message.status.finish(message_text.cut_text(transcript.text, PREVIEW_LENGTH))
    stem = recording.stem
    await message.writer.send_document(transcript.text.encode(), f"{stem}.txt")
    if transcript.segments:
        cues = await asyncio.to_thread(transcript_formats.format_srt, transcript.segments, BROADCAST_RULES)
        await message.writer.send_document(cues.encode(), f"{stem}.srt")
