"""Sends one request to an upstream: attempts, waiting between them, and errors worded for people."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from eardrum.engines.openai.address import Address
from eardrum.errors import UpstreamError, UpstreamTimeoutError
from eardrum.openai_responses.error import UpstreamReply

CONNECT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
"""Waits between attempts double from the first; an upstream that asks for more than the longest is given up."""

PASSING = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
"""Trouble that may be over in a moment: a server that comes up, a connection that broke. A bad certificate stays bad."""

QUOTED = 300
"""Characters of an upstream's message that are passed on."""

ANSWER_BYTES = 16 << 20
"""Largest answer that is read: a window's transcript with all its words is a thousandth of it."""


class Client:
    """Connections to one upstream. All calls come from one event loop."""

    def __init__(self, address: Address):
        self.address = address
        self._session = aiohttp.ClientSession(
            headers=address.headers,
            timeout=aiohttp.ClientTimeout(total=address.timeout_s, sock_connect=CONNECT_S),
            connector=aiohttp.TCPConnector(limit=0),
            proxy=_proxy(address.url),  # not trust_env: it also reads ~/.netrc and refuses to mix that with a key
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(self, path: str, body: Callable[[], dict[str, Any]], *, last_resort: bool = True) -> UpstreamReply:
        """Send what `body` makes (keyword arguments of aiohttp's `post`, anew for each attempt) and return the answer.

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
                error = self.refused(reply)
            except TimeoutError as late:
                raise self._too_late(path) from late
            except aiohttp.ClientError as broken:
                error = self._unreachable(broken)
                error.__cause__ = broken
                if not isinstance(broken, PASSING) or isinstance(broken, aiohttp.ClientSSLError):
                    raise error from broken
            wait = error.retry_after if error.retry_after is not None else _backoff(attempt)
            if attempt > self.address.retries or wait > LONGEST_WAIT_S:
                if reply and not last_resort and reply.is_ambiguous:
                    return reply
                error.retry_after = wait
                raise error
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def refused(self, reply: UpstreamReply) -> UpstreamError:
        """The error for an answer that is none, with a hint at the setting that may be at fault."""
        hint = ""
        if reply.status in (401, 403):
            setting = self.address.key_setting
            hint = f" Its key comes from {setting}." if setting else " It wants a key: set `key_env` (or `key`) in the options."
        elif reply.status == 404:
            hint = f" Check the options url, path and model: the request went to {reply.path}."
        elif 300 <= reply.status < 400:
            hint = f" It redirects to {reply.headers.get('location', 'nowhere')}: set url to where it leads."
        error = self.error(f"answered with status {reply.status}: {self.quote(reply)}", hint)
        error.retry_after = reply.retry_after if reply.is_retryable else None
        return error

    def quote(self, reply: UpstreamReply) -> str:
        """What the upstream said, fit to be passed on: without secrets, and not too long."""
        said = self.address.without_secrets(reply.message)
        return said if len(said) <= QUOTED else f"{said[:QUOTED]}…"

    def error(self, what: str, hint: str = "") -> UpstreamError:
        """An error that names the upstream, and no secret, whatever the upstream says."""
        return UpstreamError(self.address.without_secrets(f"The upstream {self.address.host} {what.rstrip('.')}.{hint}"))

    async def _exchange(self, path: str, body: dict[str, Any]) -> UpstreamReply:
        target = self.address.target(path)
        async with self._session.post(target, allow_redirects=False, **body) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > ANSWER_BYTES:
                    raise self.error(
                        f"sends more than {ANSWER_BYTES >> 20} MiB for one window", " Check the options url and path."
                    )
            return UpstreamReply(target.path, response.status, response.headers, bytes(answer))

    def _unreachable(self, error: aiohttp.ClientError) -> UpstreamError:
        match error:
            case aiohttp.ClientConnectorDNSError():
                return self.error(f"cannot be found by its name: {error.os_error.strerror}", " Check the option url.")
            case aiohttp.ClientSSLError():
                return self.error(f"cannot be reached safely: {_why_unsafe(error)}", " Check the option url.")
            case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
                return self.error("cannot be reached through the proxy that HTTP_PROXY or HTTPS_PROXY names")
            case aiohttp.ClientConnectorError():
                return self.error(f"cannot be reached: {error.os_error.strerror or error.os_error}", " Is it running?")
            case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
                return self.error("broke off in the middle of the exchange")
        return self.error(f"does not speak HTTP as it should: {type(error).__name__} {error}")

    def _too_late(self, path: str) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(
            f"The upstream {self.address.host} did not answer on {self.address.target(path).path} within "
            f"{self.address.timeout_s:g} s (option timeout_seconds), or was not reached within {CONNECT_S:g} s."
        )


def _why_unsafe(error: Exception) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    return getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or str(cause)


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt, spread so that windows refused together do not come back together."""
    return float(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))  # noqa: S311 -- no secret


def _proxy(url: URL) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for this address."""
    return None if proxy_bypass(url.host or "") else getproxies().get(url.scheme)
