"""Utterances as files, for models that take nothing else."""

from __future__ import annotations

import io
import wave

import pytest

from eardrum import config
from eardrum.api.wyoming.utterance import WavRecording, transcribe_recording
from eardrum.errors import TooLargeError
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.live import AudioFormat
from eardrum.transcription import TranscriptionRequest


async def test_the_file_is_one_that_others_read() -> None:
    with Spool() as spool:
        await spool.write(b"\1\0\2\0")
        await spool.write(b"\3\0\4\0")
        spool.finish()
        recording = WavRecording(spool, AudioFormat(rate=8_000, channels=2))
        for _ in range(2):  # a server that refuses it once is sent it again
            file = b"".join([piece async for piece in recording.read()])
            with wave.open(io.BytesIO(file)) as read:
                assert (read.getframerate(), read.getnchannels(), read.getsampwidth(), read.getnframes()) == (8_000, 2, 2, 2)
                assert read.readframes(9) == b"\1\0\2\0\3\0\4\0"


async def test_an_utterance_is_no_larger_than_an_upload() -> None:
    service = Service(config.Settings(limits=config.LimitSettings(upload_bytes=5)))

    async def audio():
        for _ in range(3):
            yield b"\1\0"

    with pytest.raises(TooLargeError, match=r"limits\.upload_bytes allows"):
        await transcribe_recording(service, service.catalog.default, TranscriptionRequest(), AudioFormat(), audio())
