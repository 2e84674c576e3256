"""An HTTP and WebSocket client for a running server, used by the command line."""

from __future__ import annotations

import io
import json
import os
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Any, Self
from urllib.parse import quote, urlencode

from msgspec import Struct

from eardrum import tls
from eardrum.aiohttp_import import aiohttp
from eardrum.errors import ConfigError, EardrumError

HEARTBEAT_S = 20.0
"""Seconds between pings to the server."""

HANDSHAKE_ERRORS = {
    401: "The server requires one of its `api_keys`: use --key KEY, or set EARDRUM_KEY.",
    403: "The server refused the connection (403): check the address.",
    404: "The server has no live sessions (404): update it, or check the address.",
}
"""Messages for refused WebSockets, by status: the response has no readable body."""


def get_reachable_host(host: str) -> str:
    """Return an address to call for a host that a server listens on."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 -- compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def get_default_address(environment: Mapping[str, str]) -> str:
    """Build the address of a server on this machine from the environment variables.

    Raises:
        ConfigError: the port is invalid.
    """
    host = get_reachable_host(environment.get("EARDRUM_HOST") or "127.0.0.1")
    port = environment.get("EARDRUM_PORT") or "8100"
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"EARDRUM_PORT is {port!r}, which is not a port: set it to a number from 1 to 65535, or use --server URL."
        )
    scheme = "https" if environment.get("EARDRUM_TLS_CERTIFICATE") else "http"
    return f"{scheme}://{host}:{port}"


TRANSIENT_STATUSES = (429, 502, 503, 507)
"""Statuses after which the same request may succeed later."""


class ServerAnswerError(EardrumError):
    """The server refused the request; or it could not be reached, then `http_status` is 0.

    `answered_code` is the server's code of the error; empty if it sent none.
    """

    def __init__(self, message: str, http_status: int = 0, answered_code: str = ""):
        super().__init__(message)
        self.http_status = http_status
        self.answered_code = answered_code

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return not self.http_status or self.http_status in TRANSIENT_STATUSES


class ServerTranscription(Struct, frozen=True):
    """A server's answer to a recording."""

    body: str
    ignored: tuple[str, ...] = ()
    """Form fields without effect."""
    warnings: tuple[str, ...] = ()
    """Parts of the audio that the server could not decode."""


class EardrumClient:
    """Talks to a running server.

    Args:
        address: the server's address; HTTP without a scheme. Empty: the address of a server with this environment.
        key: one of the server's `api_keys`, if it has any.
        certificate: a PEM file to trust in addition to the system's authorities, or settings for TLS.

    Raises:
        ConfigError: the file holds no certificate, the environment no valid port, or the key a control character.
    """

    def __init__(self, address: str, key: str = "", certificate: Path | SSLContext | None = None):
        address = address or get_default_address(os.environ)
        scheme = "" if "://" in address else "http://"
        self._address = scheme + address.rstrip("/").removesuffix("/v1")
        key = key.strip()
        if not key.isprintable():
            raise ConfigError("The key has a line break or another control character in it: check --key, or EARDRUM_KEY.")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        context = tls.create_client_context(certificate) if isinstance(certificate, Path) else certificate
        connector = aiohttp.TCPConnector(ssl=context or tls.get_client_context())
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), headers=headers, connector=connector)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def transcribe(
        self, audio: Path | AsyncIterable[bytes], form: Mapping[str, Sequence[str]], *, translate: bool = False, name: str = ""
    ) -> ServerTranscription:
        """Send a file, or bytes as they arrive under the name `name`, and return the server's answer.

        Raises:
            EardrumError: the server cannot be reached, or refused the request; the message is the server's.
            OSError: the file cannot be read.
        """
        path = f"/v1/audio/{'translations' if translate else 'transcriptions'}"
        with ExitStack() as files:
            stream = files.enter_context(audio.open("rb")) if isinstance(audio, Path) else audio
            data = _build_form(form, stream, name or (audio.name if isinstance(audio, Path) else "audio"))
            async with self._send_request("POST", path, data=data) as response:
                ignored = response.headers.get("x-eardrum-ignored", "")
                warning = response.headers.get("x-eardrum-warnings", "")
                return ServerTranscription(
                    await response.text(),
                    tuple(field.strip() for field in ignored.split(",") if field.strip()),
                    (warning,) if warning else (),
                )

    async def speak(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the audio for a body as `POST /v1/audio/speech` takes it.

        Raises:
            EardrumError: as above, or the connection broke.
        """
        async with self._send_request("POST", "/v1/audio/speech", json=dict(body)) as response:
            async for chunk in response.content.iter_any():
                yield chunk

    async def list_voices(self) -> list[dict[str, Any]]:
        """Return the voices of all models, as in `GET /v1/audio/voices`.

        Raises:
            EardrumError: as above.
        """
        voices: list[dict[str, Any]] = (await self._read_fields("voices", "GET", "/v1/audio/voices"))["voices"]
        return voices

    async def list_running(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the loaded models and the last unloaded ones, as in `GET /api/ps`.

        Raises:
            EardrumError: as above.
        """
        body = await self._read_fields("models", "GET", "/api/ps")
        if not all("engine" in model for model in body["models"]):  # Ollama has this route too
            raise self.build_stranger_error()
        return body["models"], body.get("gone", [])

    async def list_keys(self) -> list[dict[str, Any]]:
        """Return the API keys and their use, as in `GET /api/keys`.

        Raises:
            EardrumError: as above.
        """
        keys: list[dict[str, Any]] = (await self._read_fields("keys", "GET", "/api/keys"))["keys"]
        return keys

    async def list_jobs(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest jobs, as in `GET /api/jobs`.

        Raises:
            EardrumError: as above.
        """
        jobs: list[dict[str, Any]] = (await self._read_fields("data", "GET", f"/api/jobs?limit={limit}"))["data"]
        return jobs

    async def get_job(self, id: str, *, wait: float = 0) -> dict[str, Any]:
        """Return a job, as in `GET /api/jobs/ID`; with `wait`, once it has ended or after so many seconds.

        Raises:
            EardrumError: as above.
        """
        return await self._read_fields("id", "GET", f"/api/jobs/{quote(id)}?wait={wait:g}")

    async def create_job(self, audio: Path | str, form: Mapping[str, Sequence[str]], idempotency_key: str = "") -> dict[str, Any]:
        """Send a recording, or its address, as a job; returns the job. A key makes it safe to send it again.

        Raises:
            EardrumError: as above.
            OSError: the file cannot be read.
        """
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        if isinstance(audio, str):
            fields = {name: values[-1] if len(values) == 1 else list(values) for name, values in form.items()}
            return await self._read_fields("id", "POST", "/api/jobs", json={"file_url": audio, **fields}, headers=headers)
        with audio.open("rb") as stream:
            data = _build_form(form, stream, audio.name)
            return await self._read_fields("id", "POST", "/api/jobs", data=data, headers=headers)

    async def cancel_job(self, id: str) -> dict[str, Any]:
        """Cancel a job; returns it.

        Raises:
            EardrumError: as above.
        """
        return await self._read_fields("id", "POST", f"/api/jobs/{quote(id)}/cancel")

    async def delete_job(self, id: str) -> None:
        """Delete a job that has ended.

        Raises:
            EardrumError: as above.
        """
        await self._read_response("DELETE", f"/api/jobs/{quote(id)}")

    async def get_result(self, id: str, format: str = "", *, partial: bool = False) -> str:
        """Return a job's transcript in a format, or a batch's lines of results and errors.

        Raises:
            EardrumError: as above, or the job has not ended.
        """
        job = await self.get_job(id)
        if job["kind"] == "batch":
            files = [file for file in (job["output_file_id"], job["error_file_id"]) if file]
            return "".join([await self._read_response("GET", f"/v1/files/{file}/content") for file in files])
        query = urlencode({"response_format": format} if format else {}) + ("&partial=true" if partial else "")
        return await self._read_response("GET", f"/api/jobs/{quote(id)}/result?{query}")

    async def unload(self, name: str, *, force: bool = False) -> str:
        """Unload a model, with `force` in the middle of requests; returns the model's id.

        Raises:
            EardrumError: as above.
        """
        return str((await self._read_fields("model", "DELETE", f"/api/ps/{quote(name)}{_build_query(force)}"))["model"])

    async def unload_all(self, *, force: bool = False) -> None:
        """Unload all models.

        Raises:
            EardrumError: as above.
        """
        await self._read_response("POST", f"/api/models/unload{_build_query(force)}")

    async def load(self, name: str) -> str:
        """Load a model and wait until it is ready; returns the model's id.

        Raises:
            EardrumError: as above.
        """
        return str((await self._read_fields("model", "POST", f"/api/ps/{quote(name)}"))["model"])

    async def read_logs(self, name: str) -> str:
        """Return the last lines of a model's log, or without a name of the server's.

        Raises:
            EardrumError: as above.
        """
        return await self._read_response("GET", f"/logs/{quote(name)}" if name else "/logs")

    async def follow_logs(self, name: str) -> AsyncGenerator[str, None]:
        """Yield the last lines of a log, and then new lines until the server stops.

        Raises:
            EardrumError: as above, or the connection broke.
        """
        path = f"/logs/stream/{quote(name)}" if name else "/logs/stream"
        decoder = getincrementaldecoder("utf-8")(errors="replace")
        async with self._send_request("GET", path) as response:
            async for chunk in response.content.iter_any():
                yield decoder.decode(chunk)

    @asynccontextmanager
    async def open_live_session(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a live session: audio in, JSON out (docs/reference/live.md).

        Raises:
            EardrumError: the server cannot be reached, or refused the session.
        """
        try:
            address = f"{self._address}/v1/audio/transcriptions/stream"
            socket = await self._session.ws_connect(address, heartbeat=HEARTBEAT_S)
        except aiohttp.WSServerHandshakeError as error:
            raise EardrumError(
                HANDSHAKE_ERRORS.get(error.status, f"The server answered with status {error.status}: check that it is Eardrum.")
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._build_connection_error(error) from error
        async with socket:
            yield socket

    async def _read_fields(self, needed: str, method: str, path: str, **content: Any) -> dict[str, Any]:
        """Return the JSON object of a response. It must have the field `needed`.

        Raises:
            EardrumError: as above, or another program answers at the address.
        """
        try:
            found = json.loads(await self._read_response(method, path, **content))
        except ValueError:
            found = None
        if not isinstance(found, dict) or needed not in found:
            raise self.build_stranger_error()
        return found

    def build_stranger_error(self) -> EardrumError:
        """Build the error for an answer that is none of Eardrum's."""
        return EardrumError(f"Another program than Eardrum answers at {self._address}: check the address.")

    async def _read_response(self, method: str, path: str, **content: Any) -> str:
        async with self._send_request(method, path, **content) as response:
            return await response.text()

    @asynccontextmanager
    async def _send_request(self, method: str, path: str, **content: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self._address + path, **content) as response:
                if not response.ok:
                    raise _build_answer_error(response.status, await response.text())
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise self._build_connection_error(error) from error

    def _build_connection_error(self, error: Exception) -> EardrumError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return EardrumError(
                f"The certificate of {self._address} is not trusted: name its file, or its authority's, with --certificate, and "
                f"use the host name in the certificate. ({error.certificate_error})"
            )
        return ServerAnswerError(f"No answer from {self._address}: is `eardrum serve` running there? ({error})")


def _build_form(
    form: Mapping[str, Sequence[str]], stream: io.BufferedReader | AsyncIterable[bytes], name: str
) -> aiohttp.FormData:
    """Build a form with a file. Bytes in its name that are not UTF-8 become question marks."""
    data = aiohttp.FormData([(field, value) for field, values in form.items() for value in values])
    sent = name.encode(errors="replace").decode()
    # Of a file alone, aiohttp would take the name on the disk.
    file = aiohttp.BufferedReaderPayload(stream, filename=sent) if isinstance(stream, io.BufferedReader) else stream
    data.add_field("file", file, filename=sent)
    return data


def _build_query(force: bool) -> str:
    return "?force=true" if force else ""


def _build_answer_error(status: int, text: str) -> ServerAnswerError:
    try:
        error = json.loads(text)["error"]
        # Ollama's routes answer with the sentence alone.
        message, code = (error, "") if isinstance(error, str) else (str(error["message"]), str(error.get("code") or ""))
    except (ValueError, KeyError, TypeError):
        message, code = f"The server answered {status}: {text[:200]}", ""
    if status == 401:
        message += " Commands take the key by --key KEY, or from EARDRUM_KEY."
    return ServerAnswerError(message, status, code)
