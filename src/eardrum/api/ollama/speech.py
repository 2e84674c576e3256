"""Speech models in a chat: audio comes where others get pictures, and the transcript is the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from eardrum.api import render
from eardrum.api.ollama.images import Attachment, attachments
from eardrum.errors import InvalidRequestError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.types import Request, Segment, Summary


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


async def transcribe(service: Service, model: Model, sounds: list[Attachment]) -> AsyncGenerator[str | Summary, None]:
    """The text of each recording as it is heard, spaces included, a line for each; after each what is known of it.

    Raises:
        InvalidRequestError: there is no recording.
        EardrumError: anything that went wrong, worded for the client.
    """
    if not sounds:
        raise InvalidRequestError(f'"{model.id}" does not support chat: it turns speech into text. Send audio in `images`.')
    for number, sound in enumerate(sounds):
        before = ""
        if number:
            yield "\n"
        with service.spool() as spool:
            await spool.write(sound.data)
            spool.finish()
            async with aclosing(service.stream(model, Request(), spool)) as events:
                async for event in events:
                    if isinstance(event, Segment):
                        text = event.text.strip()
                        yield render.separator(before, text) + text
                        before = text or before
                    elif isinstance(event, Summary):
                        yield event
