"""Audio that comes in a container, decoded in a thread while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from threading import Thread

from eardrum.engines.base import Audio
from eardrum.errors import AudioError, EardrumError
from eardrum.runner.decode import Decoder
from eardrum.runner.inlet import CancelledInletError, Inlet


class ContainerSamples:
    """Hands the samples of one container to `hear`, which is called on the event loop and may make the thread wait."""

    def __init__(self, hear: Callable[[Audio], Awaitable[None]], *, max_seconds: float):
        self._hear = hear
        self._inlet = Inlet()
        self._decoder = Decoder(self._inlet, raw_pcm=False, max_seconds=max_seconds, live=True)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._thread = Thread(target=self._decode, name="live-container", daemon=True)
        self._thread.start()

    async def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            AudioError: those before them cannot be decoded.
        """
        if self._over.done():
            self._over.result()
        await self._inlet.feed(data)

    async def finish(self) -> None:
        """No more bytes come: wait until all samples were heard.

        Raises:
            AudioError: they cannot be decoded.
        """
        self._inlet.finish()
        await asyncio.shield(self._over)

    async def close(self) -> None:
        """Give up what was not decoded yet, and end the thread."""
        self._inlet.cancel()
        await asyncio.to_thread(self._thread.join)

    def _decode(self) -> None:
        error: Exception | None = None
        try:
            for samples in self._decoder:
                asyncio.run_coroutine_threadsafe(self._heard(samples), self._loop).result()
        except (CancelledInletError, CancelledError):
            pass
        except EardrumError as known:
            error = known
        except Exception as unknown:
            error = AudioError(f"Decoding the audio failed: {unknown}")
            error.__cause__ = unknown
        self._loop.call_soon_threadsafe(self._settle, error)

    async def _heard(self, samples: Audio) -> None:
        await self._hear(samples)

    def _settle(self, error: Exception | None) -> None:
        if error:
            self._over.set_exception(error)
            self._over.exception()  # it may be that nobody asks any more
        else:
            self._over.set_result(None)
