"""What clients put into `images`: pictures, and audio too. The content decides, there is nothing else to go by. Pure."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from eardrum.errors import InvalidRequestError

PICTURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}
SOUNDS = {b"ID3": "mp3", b"OggS": "ogg", b"fLaC": "flac", b"\x1aE\xdf\xa3": "webm"}
PLAIN = ("wav", "mp3")
"""Formats that `input_audio` can name."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One entry of `images`: its bytes, and what they are."""

    data: bytes
    encoded: str
    """Base64 without line breaks."""
    kind: str
    """"image", "audio", or "" if nobody knows."""
    format: str

    @property
    def part(self) -> dict[str, Any]:
        """As a part of a message for OpenAI's chat."""
        if self.kind == "audio" and self.format in PLAIN:
            return {"type": "input_audio", "input_audio": {"data": self.encoded, "format": self.format}}
        address = {"url": f"data:{self.kind or 'image'}/{self.format};base64,{self.encoded}"}
        return (
            {"type": "audio_url", "audio_url": address} if self.kind == "audio" else {"type": "image_url", "image_url": address}
        )


def attachments(images: Any, where: str = "images") -> list[Attachment]:
    """The decoded entries of a list of base64 strings, data URIs included.

    Raises:
        InvalidRequestError: it is no such list.
    """
    if images is None:
        return []
    if not isinstance(images, list):
        raise InvalidRequestError(f"{where} must be a list of base64 strings.", param="images")
    return [_attachment(image, f"{where}[{number}]") for number, image in enumerate(images)]


def _attachment(image: Any, where: str) -> Attachment:
    if not isinstance(image, str):
        raise InvalidRequestError(f"{where} must be a base64 string.", param="images")
    encoded = "".join((image.partition("base64,")[2] if image.startswith("data:") else image).split())
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{where}: illegal base64 data: {error}.", param="images") from None
    if not data:
        raise InvalidRequestError(f"{where} is empty.", param="images")
    kind, format = _sniffed(data)
    return Attachment(data, encoded, kind, format)


def _sniffed(data: bytes) -> tuple[str, str]:
    """Kind and format by the first bytes."""
    if data[:4] == b"RIFF":
        return {b"WAVE": ("audio", "wav"), b"WEBP": ("image", "webp")}.get(data[8:12], ("", "octet-stream"))
    if data[4:8] == b"ftyp":
        return ("image", "avif") if data[8:12] in (b"avif", b"heic", b"mif1") else ("audio", "mp4")
    for magic, format in PICTURES.items():
        if data.startswith(magic):
            return "image", format
    for magic, format in SOUNDS.items():
        if data.startswith(magic):
            return "audio", format
    if data[0] == 0xFF and len(data) > 1 and data[1] & 0xE0 == 0xE0:  # the sync word of a frame of MPEG audio
        return "audio", "mp3"
    return "", "octet-stream"
