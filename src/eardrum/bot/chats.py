"""The chats of a bot: the choices and the conversation of each, and its jobs, one after another. All of it is in memory only."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from eardrum.bot.server_api import ChatMessage
from eardrum.concurrency import cancel_and_wait

log = logging.getLogger(__name__)

MAX_WAITING_JOBS = 10
"""Messages of a chat that wait for their turn."""

MAX_HISTORY_MESSAGES, MAX_HISTORY_LENGTH = 40, 40_000
"""Messages and characters of a conversation that the language model gets again with each question."""

MAX_CHATS = 1000
"""Chats that are remembered. The one that was quiet for longest is forgotten first."""


class ChatMode(StrEnum):
    """The kinds of reply to a recording: its text, an answer to it, or both."""

    TRANSCRIBE = "transcribe"
    CHAT = "chat"
    BOTH = "both"


class SpokenAnswers(StrEnum):
    """The answers that are spoken, too."""

    NEVER = "never"
    VOICE = "voice"
    """In answer to a recording."""
    ALWAYS = "always"


class ChatSettings(Struct, frozen=True):
    """The choices of a chat."""

    mode: ChatMode = ChatMode.TRANSCRIBE
    speak: SpokenAnswers = SpokenAnswers.NEVER
    speech_model: str = "whisper-1"
    """Turns speech into text."""
    chat_model: str = ""
    """Answers; empty if none is set up."""
    vision_model: str = ""
    """Looks at pictures; empty for the chat model."""
    voice_model: str = "tts-1"
    """Turns text into speech."""
    voice: str = "alloy"
    language: str = ""
    """The language that is spoken in recordings; empty to let the model detect it."""

    @property
    def answers(self) -> bool:
        """Whether a language model answers in this chat."""
        return self.mode is not ChatMode.TRANSCRIBE


@dataclass(slots=True)
class Conversation:
    """The last messages of a chat, which the language model gets again with each question."""

    instructions: str = ""
    _messages: deque[ChatMessage] = field(default_factory=deque)

    @property
    def has_picture(self) -> bool:
        """Whether it is about a picture, so that a model that sees has to answer."""
        return any(isinstance(message["content"], list) for message in self._messages)

    def build_request(self, content: str | list[dict[str, Any]]) -> list[ChatMessage]:
        """Return the messages for the model, with a new one of the user's at the end."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        before = [_drop_picture(m) for m in self._messages] if isinstance(content, list) else self._messages
        return [*first, *before, {"role": "user", "content": content}]

    def add_exchange(self, content: str | list[dict[str, Any]], answer: str) -> None:
        """Remember a question and its answer. Only the last picture is kept, and the oldest exchanges go first."""
        if isinstance(content, list):
            self._messages = deque(map(_drop_picture, self._messages))
        self._messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        while len(self._messages) > 2 and (
            len(self._messages) > MAX_HISTORY_MESSAGES or sum(map(_count_characters, self._messages)) > MAX_HISTORY_LENGTH
        ):
            self._messages.popleft()
            self._messages.popleft()


def _drop_picture(message: ChatMessage) -> ChatMessage:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": " ".join(["[picture]", *(part["text"] for part in content if part["type"] == "text")])}


def _count_characters(message: ChatMessage) -> int:
    content = message["content"]
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content)


class ChatJob(Struct, frozen=True):
    """The work for one message, and a reply for the case that it is cancelled."""

    run: Callable[[], Awaitable[None]]
    cancel: Callable[[str], Awaitable[None]]
    """Called with the reason in a sentence."""


class JobQueue:
    """The jobs of a chat: one runs, some wait, and no more are taken."""

    def __init__(self) -> None:
        self._waiting: deque[ChatJob] = deque()
        self._running: ChatJob | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no job runs or waits."""
        return self._worker is None

    def submit(self, job: ChatJob) -> int | None:
        """Queue a job; returns how many are before it, or None if the queue is full and the job was not taken."""
        if len(self._waiting) >= MAX_WAITING_JOBS + (self._running is None):
            return None
        before = len(self._waiting) + (self._running is not None)
        self._waiting.append(job)
        if not self._worker:
            self._worker = asyncio.create_task(self._work())
        return before

    async def cancel_all(self, reason: str) -> int:
        """Cancel the job that runs and those that wait; returns how many these were."""
        worker, dropped = self._worker, [job for job in (self._running, *self._waiting) if job]
        self._waiting.clear()
        self._worker = self._running = None
        if worker:
            await cancel_and_wait(worker)
        for job in dropped:
            await job.cancel(reason)
        return len(dropped)

    async def _work(self) -> None:
        while self._waiting:
            self._running = self._waiting.popleft()
            try:
                await self._running.run()
            except Exception:
                log.exception("A message could not be answered.")
            self._running = None
        self._worker = None


@dataclass(slots=True)
class ChatState:
    """The choices, the conversation and the jobs of one chat."""

    settings: ChatSettings
    conversation: Conversation
    jobs: JobQueue = field(default_factory=JobQueue)
    refuses_voice: bool = False
    """Whether voice messages are refused there, which is a setting of Telegram Premium."""

    def begin_anew(self) -> None:
        """Begin another conversation. An answer that is on its way still belongs to the old one."""
        self.conversation = Conversation(self.conversation.instructions)

    def change(self, **changes: Any) -> None:
        """Change some of the choices."""
        self.settings = replace(self.settings, **changes)


class ChatRegistry:
    """All chats by their id. The defaults hold for each until a user sets others there."""

    def __init__(self, defaults: ChatSettings, instructions: str = ""):
        self._defaults = defaults
        self._instructions = instructions
        self._chats: dict[int, ChatState] = {}

    def find_chat(self, id: int) -> ChatState:
        """Return the chat with this id, a new one if it is not known."""
        chat = self._chats.pop(id, None) or ChatState(self._defaults, Conversation(self._instructions))
        self._chats[id] = chat  # the last one used is the last one in it
        if len(self._chats) > MAX_CHATS:
            oldest = next((old for old, state in self._chats.items() if state.jobs.is_idle), id)
            if oldest != id:
                del self._chats[oldest]
        return chat

    async def cancel_all(self, reason: str) -> None:
        """Cancel the jobs of all chats."""
        await asyncio.gather(*(chat.jobs.cancel_all(reason) for chat in list(self._chats.values())))
