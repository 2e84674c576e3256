"""Audio that comes in a container, decoded in a thread while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from threading import Thread

from eardrum.engines.base import Audio
from eardrum.errors import AudioError, EardrumError
from eardrum.runner.decode import Decoder
from eardrum.runner.inlet import CancelledInletError, Inlet


class ContainerSamples:
    """Hands the samples of one container to `hear`, which is called on the event loop and may make the thread wait.

    `fail` is told, once, that they cannot be decoded.
    """

    def __init__(
        self,
        hear: Callable[[Audio], Awaitable[None]],
        fail: Callable[[EardrumError], None],
        *,
        max_seconds: float,
        audio_track: int | None,
    ) -> None:
        self._hear = hear
        self._fail = fail
        self._inlet = Inlet()
        self._decoder = Decoder(self._inlet, raw_pcm=False, max_seconds=max_seconds, live=True, audio_track=audio_track)
        self._loop = asyncio.get_running_loop()
        self._heard: Future[None] | None = None
        self._closed = False
        self._over = asyncio.Event()
        self._thread = Thread(target=self._decode, name="live-container", daemon=True)
        self._thread.start()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be decoded so far, in sentences."""
        return self._decoder.warnings

    async def feed(self, data: bytes) -> None:
        """Take the next bytes; waits while the thread is far behind."""
        if not self._over.is_set():
            await self._inlet.feed(data)

    async def finish(self) -> None:
        """No more bytes come: wait until all samples were heard."""
        self._inlet.finish()
        await self._over.wait()

    async def close(self) -> None:
        """Give up what was not decoded yet, and end the thread."""
        self._closed = True
        self._inlet.cancel()
        if self._heard:
            self._heard.cancel()
        await asyncio.to_thread(self._thread.join)

    def _decode(self) -> None:
        error: EardrumError | None = None
        try:
            for samples in self._decoder:
                self._heard = asyncio.run_coroutine_threadsafe(self._hand_over(samples), self._loop)
                self._heard.result()
        except (CancelledInletError, CancelledError):
            pass
        except EardrumError as known:
            error = known
        except Exception as unknown:
            error = AudioError(f"Decoding the audio failed: {unknown}")
            error.__cause__ = unknown
        self._loop.call_soon_threadsafe(self._settle, error)

    async def _hand_over(self, samples: Audio) -> None:
        if self._closed:
            raise CancelledInletError
        await self._hear(samples)

    def _settle(self, error: EardrumError | None) -> None:
        if error:
            self._fail(error)
        self._inlet.cancel()  # nobody reads any more
        self._over.set()
