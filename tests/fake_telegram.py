"""A fake Bot API server: a real HTTP server on loopback with Telegram's rules, because no bot of ours may talk to the real one.

It takes requests as clients send them (JSON, urlencoded and multipart), and refuses what Telegram refuses: texts over 4096 units,
tags it does not know, edits that change nothing, files over 20 MB, two pollers at a time, and whatever a test tells it to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from aiohttp import web

TOKEN = "123456789:AAF-secret_part_of_the_token_0123456"
BOT = {"id": 123456789, "is_bot": True, "first_name": "Ear", "username": "ear_bot"}
ANN = {"id": 1001, "is_bot": False, "first_name": "Ann"}
PRIVATE = {"id": 1001, "type": "private", "first_name": "Ann"}
GROUP = {"id": -2002, "type": "supergroup", "title": "Family"}

MAX_DOWNLOAD = 20 << 20
MAX_TEXT = 4096
TAGS = {"b", "i", "s", "u", "code", "pre", "a", "blockquote"}


class TelegramRefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, description: str, **parameters: int):
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters


@dataclass
class BotCall:
    """A request of the bot."""

    method: str
    fields: dict[str, Any]
    files: dict[str, bytes]
    file_names: dict[str, str]
    at: float

    @property
    def text(self) -> str:
        return str(self.fields.get("text", ""))


@dataclass
class FakeTelegram:
    """The server's state, and what the bot has sent."""

    url: str = ""
    calls: list[BotCall] = field(default_factory=list)
    messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The bot's messages by id, as they are now."""
    refusals: dict[str, list[TelegramRefusalError]] = field(default_factory=dict)
    """By method: what the next calls get instead of an answer."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """Files by id, which is also their path."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes of files that differ from what is stored."""
    local_paths: dict[str, str] = field(default_factory=dict)
    """Files that a server with --local gives as a path."""
    broken: set[str] = field(default_factory=set)
    """Files whose download ends in the middle."""
    is_public: bool = True
    """Whether it has the limit of Telegram's own server."""
    updates: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _next_id: int = 1
    _poll: int = 0

    # What tests do.

    async def push(self, *messages: dict[str, Any]) -> None:
        """Let somebody send messages."""
        async with self.changed:
            for message in messages:
                self.updates.append({"update_id": self._take_id(), "message": message})
            self.changed.notify_all()

    def write(
        self, text: str = "", *, chat: dict[str, Any] = PRIVATE, sender: dict[str, Any] = ANN, **more: Any
    ) -> dict[str, Any]:
        """A message; entities of commands and mentions are marked as Telegram marks them."""
        message = {"message_id": self._take_id(), "date": int(time.time()), "chat": chat, "from": sender, **more}
        name = "caption" if "photo" in more or "voice" in more or "audio" in more else "text"
        if text:
            message[name] = text
            message["entities" if name == "text" else "caption_entities"] = _find_entities(text)
        return message

    def store(self, content: bytes, *, size: int | None = None) -> dict[str, Any]:
        """A file as messages name it."""
        id = f"file{self._take_id()}"
        self.stored[id] = content
        if size is not None:
            self.sizes[id] = size
        return {"file_id": id, "file_unique_id": id, "file_size": self.sizes.get(id, len(content))}

    def record_voice(self, content: bytes, *, seconds: int = 18, size: int | None = None, **more: Any) -> dict[str, Any]:
        """A voice message."""
        voice = {**self.store(content, size=size), "duration": seconds, "mime_type": "audio/ogg"}
        return self.write(voice=voice, **more)

    def refuse(self, method: str, code: int, description: str, **parameters: int) -> None:
        """Refuse the next call of a method."""
        self.refusals.setdefault(method, []).append(TelegramRefusalError(code, description, **parameters))

    def list_calls(self, method: str) -> list[BotCall]:
        return [call for call in self.calls if call.method == method]

    def list_texts(self) -> list[str]:
        """The texts of the bot's messages as they are now, in the order in which they were sent."""
        return [message["text"] for message in self.messages.values() if "text" in message]

    async def wait_for(self, condition: Any, seconds: float = 20.0) -> None:
        """Wait until the bot has done something."""
        end = time.monotonic() + seconds
        async with self.changed:
            while not condition():
                left = end - time.monotonic()
                assert left > 0, f"waited in vain; the bot's messages: {self.list_texts()}"
                try:
                    await asyncio.wait_for(self.changed.wait(), min(left, 0.1))
                except TimeoutError:
                    continue

    async def wait_for_text(self, *parts: str, seconds: float = 20.0) -> str:
        """Wait for a message with all these parts; returns it."""

        def find() -> list[str]:
            return [text for text in self.list_texts() if all(part in text for part in parts)]

        await self.wait_for(find, seconds)
        return find()[0]

    # What the bot sees.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        token, _, method = request.match_info["rest"].partition("/")
        if token != TOKEN:
            return _build_error(401, "Unauthorized")
        fields, files, names = await _read_request(request)
        async with self.changed:
            self.calls.append(BotCall(method, fields, files, names, time.monotonic()))
            self.changed.notify_all()
        try:
            if self.refusals.get(method):
                raise self.refusals[method].pop(0)
            result = await self._answer(method, fields, files)
        except TelegramRefusalError as refusal:
            return _build_error(refusal.code, refusal.description, refusal.parameters)
        async with self.changed:
            self.changed.notify_all()
        return web.json_response({"ok": True, "result": result})

    async def give_file(self, request: web.Request) -> web.StreamResponse:
        token, _, path = request.match_info["rest"].partition("/")
        if token != TOKEN or path not in self.stored:
            return _build_error(404, "Not Found")
        if path in self.broken:
            return await self._break_off(request, self.stored[path])
        return web.Response(body=self.stored[path])

    async def _break_off(self, request: web.Request, content: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": str(2 * len(content))})
        await response.prepare(request)
        await response.write(content)
        assert request.transport
        request.transport.close()
        return response

    async def _answer(self, method: str, fields: dict[str, Any], files: dict[str, bytes]) -> Any:  # noqa: PLR0911 -- one for each method
        match method:
            case "getMe":
                return {**BOT, "can_join_groups": True, "can_read_all_group_messages": False, "supports_inline_queries": False}
            case "setMyCommands" | "deleteWebhook" | "sendChatAction":
                return True
            case "getUpdates":
                return await self._wait_for_updates(int(fields.get("offset", 0)), float(fields.get("timeout", 0)))
            case "getFile":
                return self._find_file(fields["file_id"])
            case "sendMessage":
                check_text(fields)
                return self._add_message(fields, text=fields["text"])
            case "editMessageText":
                return self._edit_message(fields)
            case "sendVoice" | "sendAudio" | "sendDocument":
                kind = method.removeprefix("send").lower()
                content = files[kind]
                media = {"file_id": f"sent{self._take_id()}", "file_unique_id": "x", "file_size": len(content)}
                seconds = {} if kind == "document" else {"duration": int(fields.get("duration", 0))}
                return self._add_message(fields, **{kind: media | seconds})
        raise TelegramRefusalError(404, "Not Found: method not found")

    async def _wait_for_updates(self, offset: int, seconds: float) -> list[dict[str, Any]]:
        """Long polling: a later poll ends an earlier one."""
        self._poll += 1
        mine, end = self._poll, time.monotonic() + seconds
        async with self.changed:
            self.changed.notify_all()
            self.updates = [update for update in self.updates if update["update_id"] >= offset]
            while not self.updates and (left := end - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self.changed.wait(), left)
                except TimeoutError:
                    break
                if mine != self._poll:
                    raise TelegramRefusalError(
                        409, "Conflict: terminated by other getUpdates request; make sure that only one runs"
                    )
            return self.updates[:100]

    def _find_file(self, id: str) -> dict[str, Any]:
        size = self.sizes.get(id, len(self.stored.get(id, b"")))
        if self.is_public and size > MAX_DOWNLOAD:
            raise TelegramRefusalError(400, "Bad Request: file is too big")
        path = self.local_paths.get(id, id)
        return {"file_id": id, "file_unique_id": id, "file_size": size, "file_path": path}

    def _add_message(self, fields: dict[str, Any], **content: Any) -> dict[str, Any]:
        id = self._take_id()
        chat = GROUP if int(fields["chat_id"]) == GROUP["id"] else PRIVATE | {"id": int(fields["chat_id"])}
        message = {"message_id": id, "date": int(time.time()), "chat": chat, "from": BOT, **content}
        self.messages[id] = message
        return message

    def _edit_message(self, fields: dict[str, Any]) -> dict[str, Any]:
        message = self.messages.get(int(fields["message_id"]))
        if not message:
            raise TelegramRefusalError(400, "Bad Request: message to edit not found")
        check_text(fields)
        if message["text"] == fields["text"]:
            raise TelegramRefusalError(400, "Bad Request: message is not modified: specified new message content is the same")
        message["text"] = fields["text"]
        return message

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id


class TelegramHtmlChecker(HTMLParser):
    """Checks a text in Telegram's HTML: known tags, each closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.length = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            raise TelegramRefusalError(400, f'Bad Request: can\'t parse entities: Unsupported start tag "{tag}"')
        if tag in self.open:
            raise TelegramRefusalError(400, f'Bad Request: can\'t parse entities: nested tag "{tag}"')
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise TelegramRefusalError(400, f'Bad Request: can\'t parse entities: unexpected end tag "{tag}"')

    def handle_data(self, data: str) -> None:
        self.length += len(data.encode("utf-16-le")) // 2


def check_text(fields: dict[str, Any]) -> None:
    text = fields.get("text", "")
    length = len(text.encode("utf-16-le")) // 2
    if fields.get("parse_mode") == "HTML":
        checker = TelegramHtmlChecker()
        checker.feed(text)
        checker.close()
        if checker.open:
            raise TelegramRefusalError(400, f"Bad Request: can't parse entities: can't find end tag of \"{checker.open[-1]}\"")
        length = checker.length
    if not text.strip():
        raise TelegramRefusalError(400, "Bad Request: message text is empty")
    if length > MAX_TEXT:
        raise TelegramRefusalError(400, "Bad Request: message is too long")


def _find_entities(text: str) -> list[dict[str, Any]]:
    entities = []
    at = 0
    for word in text.split(" "):
        kind = "bot_command" if word.startswith("/") else "mention" if word.startswith("@") else ""
        if kind:
            entities.append({"type": kind, "offset": at, "length": len(word.rstrip(",:"))})
        at += len(word) + 1
    return entities


async def _read_request(request: web.Request) -> tuple[dict[str, Any], dict[str, bytes], dict[str, str]]:
    if request.content_type == "application/json":
        return await request.json(), {}, {}
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            files[name], names[name] = value.file.read(), value.filename
            value.file.close()
        else:
            fields[name] = value
    return fields, files, names


def _build_error(code: int, description: str, parameters: dict[str, int] | None = None) -> web.Response:
    body: dict[str, Any] = {"ok": False, "error_code": code, "description": description}
    return web.json_response(body | ({"parameters": parameters} if parameters else {}), status=code)


@asynccontextmanager
async def open_fake_telegram() -> AsyncIterator[FakeTelegram]:
    """Serve it in the running event loop."""
    fake = FakeTelegram()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/bot{rest:[^/].*}", fake.handle)
    app.router.add_get("/file/bot{rest:.*}", fake.give_file)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
