"""Finds the attachment of a message, and loads it from Telegram piece by piece. Nothing is stored on disk."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePath

from msgspec import Struct
from telegram import Bot, Message
from telegram.error import BadRequest, TelegramError

from eardrum import tls
from eardrum.aiohttp_import import aiohttp
from eardrum.bot.telegram_output import call_telegram
from eardrum.errors import EardrumError
from eardrum.units import format_size

PUBLIC_LIMIT = 20 << 20
"""Bytes of a file that Telegram's own Bot API server gives to a bot."""

MAX_PICTURE_BYTES = 20 << 20
"""A picture goes into a request as a whole."""

PREPARE_TIMEOUT_S = 900.0
"""A Bot API server of one's own fetches the whole file before it answers."""

READ_TIMEOUT_S = 60.0
PIECE_BYTES = 256 << 10


class AttachmentError(EardrumError):
    """An attachment cannot be loaded; the message is for the person who sent it."""


class Attachment(Struct, frozen=True):
    """A recording or a picture."""

    file_id: str
    name: str
    media_type: str
    size: int = 0
    """Bytes, 0 if unknown."""

    @property
    def stem(self) -> str:
        """Its name without suffix, for documents made from it."""
        return re.sub(r"[^\w.-]+", "_", PurePath(self.name).stem) or "transcript"


def find_recording(message: Message) -> Attachment | None:
    """Return the voice message, video note, music, film, or document with sound of a message."""
    when = f"{message.date:%Y-%m-%d_%H-%M-%S}"
    if note := message.voice or message.video_note:
        kind, suffix = ("voice", "ogg") if message.voice else ("video", "mp4")
        return Attachment(note.file_id, f"{kind}_{when}.{suffix}", f"audio/{suffix}", note.file_size or 0)
    if media := message.audio or message.video:
        return Attachment(media.file_id, media.file_name or f"recording_{when}", media.mime_type or "", media.file_size or 0)
    document = message.document
    if document and (document.mime_type or "").startswith(("audio/", "video/")) and not message.animation:
        name = document.file_name or f"recording_{when}"
        return Attachment(document.file_id, name, document.mime_type or "", document.file_size or 0)
    return None


def find_picture(message: Message) -> Attachment | None:
    """Return the photo of a message in its largest size, or a document with a picture."""
    if message.photo:
        photo = message.photo[-1]
        return Attachment(photo.file_id, "photo.jpg", "image/jpeg", photo.file_size or 0)
    document = message.document
    if document and (document.mime_type or "").startswith("image/"):
        return Attachment(document.file_id, document.file_name or "picture", document.mime_type or "", document.file_size or 0)
    return None


class AttachmentLoader:
    """Loads attachments from the Bot API server.

    Args:
        bot: the bot.
        has_own_server: whether that server is one's own, which gives files of any size.
    """

    def __init__(self, bot: Bot, *, has_own_server: bool):
        self._bot = bot
        self._has_own_server = has_own_server
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls.get_client_context()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=READ_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
            trust_env=True,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    @asynccontextmanager
    async def open(self, attachment: Attachment) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """Open an attachment: yields its bytes piece by piece.

        Raises:
            AttachmentError: it is too large, or Telegram does not give it, also in the middle.
        """
        place = await self._find_place(attachment)
        failures: list[AttachmentError] = []
        is_local = self._has_own_server and place.startswith("/")
        pieces = _read_file(Path(place), failures) if is_local else self._download(place, failures)
        try:
            yield pieces
        except EardrumError:
            if failures:  # the server only complains that the recording ends too early
                raise failures[0] from None
            raise
        finally:
            await pieces.aclose()
        if failures:
            raise failures[0]

    async def read(self, attachment: Attachment) -> bytes:
        """Return the whole of an attachment that goes into memory.

        Raises:
            AttachmentError: as above.
        """
        data = bytearray()
        async with self.open(attachment) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > MAX_PICTURE_BYTES:
                    raise AttachmentError(f"The picture is larger than {format_size(MAX_PICTURE_BYTES)}.")
        return bytes(data)

    async def _find_place(self, attachment: Attachment) -> str:
        """Return the URL of an attachment, or its path on this machine."""
        if attachment.size > PUBLIC_LIMIT and not self._has_own_server:
            raise self._build_size_error(attachment)
        try:
            file = await call_telegram(lambda: self._bot.get_file(attachment.file_id, read_timeout=PREPARE_TIMEOUT_S))
        except BadRequest as error:
            if "too big" in error.message.lower():
                raise self._build_size_error(attachment) from None
            raise AttachmentError(f"Telegram does not give the file: {error.message}.") from None
        except TelegramError as error:
            raise AttachmentError(f"Telegram does not give the file: {error.message}.") from None
        return file.file_path or ""

    def _build_size_error(self, attachment: Attachment) -> AttachmentError:
        size = f" ({format_size(attachment.size)})" if attachment.size else ""
        return AttachmentError(
            f"The file is too large{size}: Telegram gives a bot at most 20 MB. Send a shorter or a more compressed recording; a "
            "voice message of 20 MB lasts more than an hour. The bot's operator can remove the limit with a separate Bot "
            "API server (--telegram-api)."
        )

    async def _download(self, url: str, failures: list[AttachmentError]) -> AsyncGenerator[bytes, None]:
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    raise AttachmentError(_describe_refusal(response.status))
                async for piece in response.content.iter_chunked(PIECE_BYTES):
                    yield piece
        except AttachmentError as error:
            failures.append(error)
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:  # their texts may hold the address, and so the token
            failures.append(AttachmentError(f"The download from Telegram broke off ({type(error).__name__}): send it again."))
            raise failures[0] from None


def _describe_refusal(status: int) -> str:
    if status == 404:
        return (
            "The Bot API server does not have the file (404). If it runs with --local, the bot has to run on the same machine, "
            "or with the server's folder mounted at the same path."
        )
    return f"The Bot API server does not give the file ({status}): send it again."


async def _read_file(path: Path, failures: list[AttachmentError]) -> AsyncGenerator[bytes, None]:
    """Read a file that a Bot API server on this machine has stored."""
    try:
        with await asyncio.to_thread(path.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
    except OSError as error:
        failures.append(AttachmentError(f"The file cannot be read: {error.strerror}."))
        raise failures[0] from None
