"""Speech models in a chat: audio comes where others get pictures, and the transcript is the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from eardrum.api import render
from eardrum.api.ollama.images import Attachment, attachments
from eardrum.api.pieces import Pieces
from eardrum.errors import InvalidRequestError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.types import Request, Summary


def recordings(wish: dict[str, Any]) -> list[Attachment]:
    """The recordings of the last message that has any, or of a prompt.

    Raises:
        InvalidRequestError: they are not base64.
    """
    messages = wish.get("messages")
    for message in reversed(messages if isinstance(messages, list) else [wish]):
        if isinstance(message, dict) and (found := attachments(message.get("images"))):
            return found
    return []


Heard = AsyncGenerator[str | Summary, None]
"""Text as it is heard, spaces included, and after each recording what is known of it."""


async def transcribe(service: Service, model: Model, sounds: list[Attachment], *, whole: bool) -> Heard:
    """A line of text for each recording; with `whole` only when all of it is there, which outlives a crash of the model.

    Raises:
        InvalidRequestError: there is no recording.
        EardrumError: anything that went wrong, worded for the client.
    """
    if not sounds:
        raise InvalidRequestError(f'"{model.id}" does not support chat: it turns speech into text. Send audio in `images`.')
    for number, sound in enumerate(sounds):
        if number:
            yield "\n"
        with service.spool() as spool:
            await spool.write(sound.data)
            spool.finish()
            async with aclosing((_whole if whole else _in_pieces)(service, model, spool)) as heard:
                async for said in heard:
                    yield said


async def _whole(service: Service, model: Model, spool: Spool) -> Heard:
    transcript = await service.transcribe(model, Request(times=False), spool)
    yield render.text(transcript.segments)
    yield transcript.summary


async def _in_pieces(service: Service, model: Model, spool: Spool) -> Heard:
    pieces = Pieces()
    async with aclosing(service.stream(model, Request(times=False), spool)) as events:
        async for event in events:
            if text := pieces.take(event):
                yield text
            if isinstance(event, Summary):
                yield event
