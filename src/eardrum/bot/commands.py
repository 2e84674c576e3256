"""The commands of a chat, such as /mode: each takes words and returns the bot's reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from eardrum.bot.chats import ChatMode, ChatState, SpokenAnswers
from eardrum.bot.server_api import ListedModel, ServerApi, ServerRefusalError
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.languages import get_language_name, parse_language
from eardrum.speech import OPENAI_VOICES

MAX_LISTED = 40
"""Names that a reply lists."""

COMMANDS = {
    "help": "what I can do",
    "transcribe": "in reply to a recording: its transcript",
    "mode": "transcribe, chat or both",
    "model": "choose models",
    "voice": "spoken answers: never, voice, always; or a voice",
    "language": "the language of recordings",
    "new": "begin a new conversation",
    "stop": "cancel what I am doing",
}
"""The commands and their description in Telegram's menu."""

MODEL_ROLES = {"speech": "speech_model", "chat": "chat_model", "vision": "vision_model", "voice": "voice_model"}
"""The roles of models, and the setting of each."""

ALIASES_OF_MODES = {"text": ChatMode.TRANSCRIBE, "transcript": ChatMode.TRANSCRIBE, "answer": ChatMode.CHAT}

CANCELLED = "Cancelled."


class ChatCommands:
    """Carries out commands."""

    def __init__(self, server: ServerApi):
        self._server = server
        self._commands: dict[str, Callable[[ChatState, list[str]], Awaitable[str]]] = {
            "start": self._show_help,
            "help": self._show_help,
            "mode": self._choose_mode,
            "model": self._choose_model,
            "voice": self._choose_voice,
            "language": self._choose_language,
            "new": self._begin_anew,
            "stop": self._stop,
        }
        self.names = tuple(self._commands)
        """The commands that are carried out here."""

    async def run(self, name: str, chat: ChatState, words: list[str]) -> str:
        """Carry out a command; returns the reply, or the reason why the command failed."""
        try:
            return await self._commands[name](chat, words)
        except EardrumError as error:
            return f"That did not work: {error.sentence}"

    async def _show_help(self, chat: ChatState, _: list[str]) -> str:
        modes = {
            ChatMode.TRANSCRIBE: "I write down what is said in them.",
            ChatMode.CHAT: "I answer what is said in them.",
            ChatMode.BOTH: "I write down what is said in them, and answer it.",
        }
        talk = "Write to me, or send me a picture with a question." if chat.settings.answers else ""
        lines = [f"/{name}: {about}" for name, about in COMMANDS.items()]
        intro = f"Send or forward voice messages, video messages, music or films: {modes[chat.settings.mode]}"
        return "\n".join(filter(None, [intro, talk, "", *lines])).replace(f"{intro}\n/", f"{intro}\n\n/")

    async def _choose_mode(self, chat: ChatState, words: list[str]) -> str:
        if words:
            word = words[0].lower()
            if word not in (*ChatMode, *ALIASES_OF_MODES):
                return f"I know no mode {word!r}. There are /mode transcribe, /mode chat and /mode both."
            chat.change(mode=ALIASES_OF_MODES.get(word) or ChatMode(word))
        explained = {
            ChatMode.TRANSCRIBE: "recordings become text",
            ChatMode.CHAT: "recordings, messages and pictures are answered",
            ChatMode.BOTH: "recordings become text and are answered, as messages and pictures are",
        }
        reply = f"Mode {chat.settings.mode}: {explained[chat.settings.mode]}."
        if chat.settings.answers and not chat.settings.chat_model:
            reply += " No language model is set up yet: choose one with /model chat NAME."
        return reply if words else f"{reply}\nChange it with /mode transcribe, /mode chat or /mode both."

    async def _choose_model(self, chat: ChatState, words: list[str]) -> str:
        if not words:
            return await self._describe_models(chat)
        role, name = ("", words[0]) if len(words) == 1 else (words[0].lower(), words[1])
        if (role and role not in MODEL_ROLES) or len(words) > 2:
            return f"Use /model ROLE NAME with one of the roles {', '.join(MODEL_ROLES)}."
        models = await self._list_models()
        listed = next((model for model in models if name in (model.id, *model.aliases)), None)
        if models and not listed and not await self._server.has_model(name):
            return f"The server has no model {name}. It has: {_join_names([model.id for model in models])}"
        role = role or _guess_role(listed)
        chat.change(**{MODEL_ROLES[role]: name})
        return f"The model for {role} is {name}."

    async def _describe_models(self, chat: ChatState) -> str:
        settings = chat.settings
        lines = [
            f"speech: {settings.speech_model}",
            f"chat: {settings.chat_model or 'none'}",
            f"vision: {settings.vision_model or settings.chat_model or 'none'}",
            f"voice: {settings.voice_model}",
        ]
        if models := await self._list_models():
            lines += ["", f"The server has: {_join_names([model.id for model in models])}"]
        return "\n".join([*lines, "", "Change one with /model ROLE NAME, such as /model chat qwen."])

    async def _list_models(self) -> list[ListedModel]:
        """List the server's models; none if it has no such list."""
        try:
            return await self._server.list_models()
        except ServerRefusalError as error:
            if error.http_status in (404, 405, 501):
                return []
            raise

    async def _choose_voice(self, chat: ChatState, words: list[str]) -> str:
        if not words:
            return await self._describe_voice(chat)
        word = words[0].lower()
        word = {"off": "never", "on": "voice", "no": "never", "yes": "voice"}.get(word, word)
        if word in tuple(SpokenAnswers):
            chat.change(speak=SpokenAnswers(word))
        else:
            voices = await self._list_voices()
            if voices and words[0] not in voices and word not in OPENAI_VOICES:
                return f"The server has no voice {words[0]}. It has: {_join_names(voices)}"
            chat.change(voice=words[0])
        return _describe_speaking(chat)

    async def _describe_voice(self, chat: ChatState) -> str:
        lines = [_describe_speaking(chat)]
        if voices := await self._list_voices():
            lines.append(f"The server has: {_join_names(voices)}")
        return "\n".join([*lines, "Change it with /voice never, /voice voice, /voice always or /voice NAME."])

    async def _list_voices(self) -> list[str]:
        try:
            return await self._server.list_voices()
        except ServerRefusalError:  # most servers have no such list, and say so in many ways
            return []

    async def _choose_language(self, chat: ChatState, words: list[str]) -> str:
        if words:
            try:
                chat.change(language=parse_language(words[0]) or "")
            except InvalidRequestError:
                return f"I know no language {words[0]!r}. Use its code, such as /language de, or /language auto."
        name = get_language_name(chat.settings.language).capitalize()
        return f"Recordings are in {name}." if name else "The language of recordings is detected. /language de sets it."

    async def _begin_anew(self, chat: ChatState, _: list[str]) -> str:
        chat.begin_anew()
        return "A new conversation: I have forgotten what we said."

    async def _stop(self, chat: ChatState, _: list[str]) -> str:
        count = await chat.jobs.cancel_all(CANCELLED)
        return "There is nothing to stop." if not count else "Stopped." if count == 1 else f"Stopped {count} messages."


def _guess_role(model: ListedModel | None) -> str:
    if model and "audio" in model.outputs:
        return "voice"
    return "speech" if model and "audio" in model.inputs and "image" not in model.inputs else "chat"


def _describe_speaking(chat: ChatState) -> str:
    when = {
        SpokenAnswers.NEVER: "Answers are not spoken.",
        SpokenAnswers.VOICE: "Answers to recordings are spoken, too.",
        SpokenAnswers.ALWAYS: "All answers are spoken, too.",
    }
    return f"{when[chat.settings.speak]} The voice is {chat.settings.voice}."


def _join_names(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more." if more > 0 else ".")
