"""One file from the hub, over as many connections as it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import BinaryIO

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from eardrum.hub.cache import Blob
from eardrum.hub.lines import say

EVERY_S = 0.2
"""Least time between two lines of progress."""

SILENCE_S = 30.0
"""How long the hub may say nothing."""

PAUSES_S = (0.5, 1.0, 2.0)
"""Before trying again, as long as nothing arrives. Whatever does arrive starts the count anew."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to have: its name in the repository, where it is fetched from, and its content's place and size."""

    name: str
    url: str
    blob: Blob


def download(file: File, part: BinaryIO, progress: Progress) -> None:
    """Append what is missing, over as many connections as it takes. Gives up when nothing arrives any more.

    Raises:
        httpx2.HTTPError: the hub cannot be reached, or refuses.
        OSError: the disk refuses.
    """
    pauses = iter(PAUSES_S)
    while part.tell() < file.blob.size:
        before = part.tell()
        try:
            _append(file, part, progress)
        except httpx2.HTTPError as error:
            if isinstance(error, HfHubHTTPError) and not _passing(error.response.status_code):
                raise
            if part.tell() > before:
                pauses = iter(PAUSES_S)
            pause = next(pauses, None)
            if pause is None:
                raise
            time.sleep(pause)


def _append(file: File, part: BinaryIO, progress: Progress) -> None:
    """One connection's worth.

    The file is asked for at its address here and not where that leads: so the token goes to the hub only, and an address
    of the store behind it that has expired is replaced by a fresh one.
    """
    headers = build_hf_headers() | {"accept-encoding": "identity"}
    if part.tell():
        headers["range"] = f"bytes={part.tell()}-"
    with get_session().stream("GET", file.url, headers=headers, timeout=SILENCE_S, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if part.tell() and response.status_code != 206:  # the whole file comes
            part.truncate(0)
            progress.reach(0)
        for data in response.iter_bytes():
            part.write(data)
            progress.reach(part.tell())
    if part.tell() < file.blob.size:
        raise httpx2.RemoteProtocolError("the file ended too early")


def _passing(status: int) -> bool:
    """Whether a refusal may be over in a moment."""
    return status in (408, 429) or status >= 500


class Progress:
    """Turns the bytes of one file into lines about all of them."""

    def __init__(self, file: str, before: int):
        self._file = file
        self._before = before
        self._said = 0.0

    def reach(self, bytes: int) -> None:
        """So many bytes of the file are here. A line, unless the last one is fresh."""
        if time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            say({"progress": {"file": self._file, "completed": self._before + bytes}})
