"""A running server, as the command line sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from eardrum.errors import EardrumError


class Client:
    """Talks to a running server."""

    def __init__(self, address: str):
        scheme = "" if "://" in address else "http://"
        self._address = scheme + address.rstrip("/").removesuffix("/v1")
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def transcribe(self, file: Path, form: Mapping[str, str], *, translate: bool = False) -> str:
        """The answer's body.

        Raises:
            EardrumError: the server cannot be reached or refused; its sentence is passed on.
        """
        kind = "translations" if translate else "transcriptions"
        data = aiohttp.FormData(dict(form))
        with file.open("rb") as stream:
            data.add_field("file", stream, filename=file.name)
            return await self._ask("POST", f"/v1/audio/{kind}", data=data)

    async def running(self) -> list[dict[str, Any]]:
        """The models whose processes run, as `GET /api/ps` tells them.

        Raises:
            EardrumError: as above.
        """
        models: list[dict[str, Any]] = json.loads(await self._ask("GET", "/api/ps"))["models"]
        return models

    async def unload(self, name: str) -> str:
        """End a model's process; returns the model's id.

        Raises:
            EardrumError: as above.
        """
        return str(json.loads(await self._ask("DELETE", f"/api/ps/{quote(name)}"))["model"])

    async def _ask(self, method: str, path: str, **content: Any) -> str:
        try:
            async with self._session.request(method, self._address + path, **content) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError) as error:
            raise EardrumError(f"No answer from {self._address}: is `eardrum serve` running there? ({error})") from error
        if response.ok:
            return text
        try:
            message = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"The server answered {response.status}: {text[:200]}"
        raise EardrumError(message)
