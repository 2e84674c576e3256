"""Sends windows to a server that speaks OpenAI's API: its address and key, encoded audio, retries and errors."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import random
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.request import getproxies, proxy_bypass

import av
import numpy as np
from msgspec import Struct
from yarl import URL

from eardrum import tls
from eardrum.aiohttp_import import aiohttp
from eardrum.engines.base import Audio
from eardrum.errors import ConfigError, UpstreamError, UpstreamTimeoutError
from eardrum.openai_replies import UpstreamReply
from eardrum.transcription import SAMPLE_RATE

MIN_SECRET_CHARS = 6
"""A header's value at least this long may be a secret; a shorter one is a word that messages have too."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where an upstream is and how it is spoken to."""

    url: URL
    """The base; requests go to paths below it."""
    headers: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    """Secrets that no message may contain."""
    key_setting: str
    """Which setting holds the key, in words; empty when there is none."""
    timeout_s: float
    """For one attempt, from the connection to the end of the answer."""
    retries: int

    @classmethod
    def of(cls, url: str, *, key: str, key_env: str, headers: Mapping[str, str], timeout_s: float, retries: int) -> Self:
        """The address, with the key in its headers. The key is given, or in the environment variable `key_env`.

        Raises:
            ConfigError: the key is given twice, is not there, or cannot be sent.
        """
        key, setting = _find_key(key, key_env)
        if key and any(name.lower() == "authorization" for name in headers):
            raise ConfigError(f"headers.Authorization and {setting} both hold a key: leave one of them out.")
        _check_sendable(key, setting)
        for name, value in headers.items():
            _check_sendable(name + value, f"headers.{name}")
        return cls(
            url=URL(url),
            headers={**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            secrets=tuple([key] * bool(key) + [value for value in headers.values() if len(value) >= MIN_SECRET_CHARS]),
            key_setting=setting,
            timeout_s=timeout_s,
            retries=retries,
        )

    @property
    def host(self) -> str:
        """Host and port for messages."""
        return self.url.authority

    def build_url(self, path: str) -> URL:
        """The address of `path` below the base; `/` is the base itself. What follows the base's `?` stays."""
        return self.url.joinpath(path.lstrip("/")).with_query(self.url.query) if path.strip("/") else self.url

    def redact_secrets(self, text: str) -> str:
        """The text with every secret blotted out."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def _find_key(key: str, key_env: str) -> tuple[str, str]:
    """The key, and in words which setting it comes from; both empty without one."""
    if not key_env:
        return key, "the option key" if key else ""
    if key:
        raise ConfigError("key and key_env are both set: leave one of them out.")
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise ConfigError(f"key_env: the environment variable {key_env} is not set or empty.")
    return key, f"the environment variable {key_env} (option key_env)"


def _check_sendable(value: str, setting: str) -> None:
    # A line break in a header begins another; the HTTP library's own complaint would quote the key.
    if not value.isascii() or not value.isprintable():
        raise ConfigError(f"The value of {setting} has characters in it that no header can have.")


Format = Literal["flac", "wav"]


class EncodedClip(Struct, frozen=True):
    """A file of 16-bit mono audio at 16 kHz."""

    format: Format
    data: bytes

    @property
    def name(self) -> str:
        """A file name; some servers go by its ending."""
        return f"window.{self.format}"

    @property
    def media_type(self) -> str:
        """The content type."""
        return f"audio/{self.format}"


def encode_clip(audio: Audio, form: Format) -> EncodedClip:
    """The samples (float32 in -1..1, shape [n]) as a file; what is louder is clipped. FLAC is about half as large as WAV."""
    pcm = (np.clip(audio, -1.0, 1.0) * 32767).round().astype("<i2")
    return EncodedClip(form, _encode_flac(pcm) if form == "flac" else _encode_wav(pcm))


def _encode_wav(pcm: np.ndarray[tuple[int], np.dtype[np.int16]]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def _encode_flac(pcm: np.ndarray[tuple[int], np.dtype[np.int16]]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


CONNECT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
"""Waits between attempts double from the first. A `Retry-After` beyond the longest ends the attempts."""

TRANSIENT_ERRORS = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
"""Trouble that may be over in a moment: a server that comes up, a connection that broke. A bad certificate stays bad."""

QUOTED = 300
"""Characters of an upstream's message that are passed on."""

ANSWER_BYTES = 16 << 20
"""Largest answer that is read: a window's transcript with all its words is a thousandth of it."""


class OpenAIClient:
    """Connections to one upstream. All calls come from one event loop."""

    def __init__(self, address: ServerAddress):
        self.address = address
        self._session = aiohttp.ClientSession(
            headers=address.headers,
            timeout=aiohttp.ClientTimeout(total=address.timeout_s, sock_connect=CONNECT_S),
            connector=aiohttp.TCPConnector(limit=0, ssl=tls.get_client_context()),
            proxy=_find_proxy(address.url),  # not trust_env: it also reads ~/.netrc and refuses to mix that with a key
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(self, path: str, body: Callable[[], dict[str, Any]], *, last_resort: bool = True) -> UpstreamReply:
        """Send what `body` makes (keyword arguments of aiohttp's `post`, again for each attempt) and return the answer.

        The answer may be a refusal that trying again does not mend, or, if this is not the last resort, one that another way of
        asking might; every other failure is raised.

        Raises:
            UpstreamError: the upstream cannot be reached, breaks off, or is still failing after the last attempt.
            UpstreamTimeoutError: it did not answer in time. Not tried again: that would take as long once more.
        """
        for attempt in itertools.count(1):
            reply: UpstreamReply | None = None
            try:
                reply = await self._exchange(path, body())
                if not reply.is_retryable:
                    return reply
                error = self.build_refusal_error(reply)
            except TimeoutError as late:
                raise self._build_timeout_error(path) from late
            except aiohttp.ClientError as broken:
                error = self._build_unreachable_error(broken)
                error.__cause__ = broken
                if not isinstance(broken, TRANSIENT_ERRORS) or isinstance(broken, aiohttp.ClientSSLError):
                    raise error from broken
            wait = error.retry_after if error.retry_after is not None else _choose_backoff(attempt)
            if attempt > self.address.retries or wait > LONGEST_WAIT_S:
                if reply and not last_resort and reply.is_ambiguous:
                    return reply
                error.retry_after = wait
                raise error
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def build_refusal_error(self, reply: UpstreamReply) -> UpstreamError:
        """The error for an answer that is none, with a hint at the setting that may be at fault."""
        hint = ""
        if reply.status in (401, 403):
            setting = self.address.key_setting
            hint = (
                f" Its key comes from {setting}." if setting else " It requires a key: set `key_env` (or `key`) in the options."
            )
        elif reply.status == 404:
            hint = f" Check the options url, path and model: the request went to {reply.path}."
        elif 300 <= reply.status < 400:
            hint = f" It redirects to {reply.headers.get('location', 'nowhere')}: set url to that address."
        error = self.build_error(f"answered with status {reply.status}: {self.quote(reply)}", hint)
        error.retry_after = reply.retry_after if reply.is_retryable else None
        return error

    def quote(self, reply: UpstreamReply) -> str:
        """The upstream's message, without secrets and shortened, as it is passed on to clients."""
        message = self.address.redact_secrets(reply.message)
        return message if len(message) <= QUOTED else f"{message[:QUOTED]}…"

    def build_error(self, what: str, hint: str = "") -> UpstreamError:
        """Build an error that names the upstream; secrets in the upstream's message are removed."""
        return UpstreamError(self.address.redact_secrets(f"The upstream {self.address.host} {what.rstrip('.')}.{hint}"))

    async def _exchange(self, path: str, body: dict[str, Any]) -> UpstreamReply:
        target = self.address.build_url(path)
        async with self._session.post(target, allow_redirects=False, **body) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > ANSWER_BYTES:
                    raise self.build_error(
                        f"sends more than {ANSWER_BYTES >> 20} MiB for one window", " Check the options url and path."
                    )
            return UpstreamReply(target.path, response.status, response.headers, bytes(answer))

    def _build_unreachable_error(self, error: aiohttp.ClientError) -> UpstreamError:
        match error:
            case aiohttp.ClientConnectorDNSError():
                return self.build_error(f"cannot be found by its name: {error.os_error.strerror}", " Check the option url.")
            case aiohttp.ClientSSLError():
                return self.build_error(f"cannot be reached safely: {_explain_tls_error(error)}", " Check the option url.")
            case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
                return self.build_error("cannot be reached through the proxy that HTTP_PROXY or HTTPS_PROXY names")
            case aiohttp.ClientConnectorError():
                return self.build_error(f"cannot be reached: {error.os_error.strerror or error.os_error}", " Is it running?")
            case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
                return self.build_error("broke off in the middle of the exchange")
        return self.build_error(f"does not send valid HTTP: {type(error).__name__} {error}")

    def _build_timeout_error(self, path: str) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(
            f"The upstream {self.address.host} did not answer on {self.address.build_url(path).path} within "
            f"{self.address.timeout_s:g} s (option timeout_seconds), or was not reached within {CONNECT_S:g} s."
        )


def _explain_tls_error(error: Exception) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    return getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or str(cause)


def _choose_backoff(attempt: int) -> float:
    """Seconds before the next attempt, spread so that windows refused together do not come back together."""
    return float(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))  # noqa: S311 -- no secret


def _find_proxy(url: URL) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for this address."""
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
