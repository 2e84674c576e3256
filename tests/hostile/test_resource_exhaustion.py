"""A system that has run out of room or of descriptors: the right status, and nobody else's blame."""

from __future__ import annotations

import io
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from eardrum.errors import BusyError, OutOfDescriptorsError, RunnerCrashedError, StorageFullError
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.live import SessionSettings
from eardrum.runner.byte_pipe import BytePipe, ScratchFile
from eardrum.runner.decoder import AudioDecoder
from eardrum.transcription import TranscriptionRequest
from tests.gateway.live.number_speaker import build_model, open_speaker, run_service, speak_sentence


@contextmanager
def limit_resource(what: int, number: int) -> Iterator[None]:
    """As in a process that the system allows so much."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def build_trailing_index() -> bytes:
    """More than is kept in memory of a container that can only be read as a file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 300_000), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(file.getvalue()) > (1 << 20) + 4096
    return file.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_a_full_disk_in_the_runner_is_507(live: bool) -> None:
    with limit_resource(resource.RLIMIT_FSIZE, (1 << 20) + 4096), pytest.raises(StorageFullError, match="spool_dir") as caught:
        list(AudioDecoder(BytePipe.from_bytes(build_trailing_index()), raw_pcm=False, max_seconds=600, live=live))
    assert caught.value.status == 507


def test_no_descriptors_in_the_runner_are_no_mistake_of_the_client() -> None:
    scratch = ScratchFile(10, "for this")
    with limit_resource(resource.RLIMIT_NOFILE, 3), pytest.raises(OutOfDescriptorsError, match="ulimit -n") as caught:
        scratch.write(b"more than ten bytes")
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    scratch.close()


async def test_nor_for_an_upload(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool, limit_resource(resource.RLIMIT_NOFILE, 3), pytest.raises(OutOfDescriptorsError):
        await spool.write(bytes(2 << 20))


class EmptyAudio:
    async def read(self) -> AsyncIterator[bytes]:
        yield b""


async def test_a_runner_that_cannot_be_reached_for_lack_of_them_has_not_crashed(tmp_path: Path) -> None:
    upstream = RunnerUpstream(str(tmp_path / "runner.sock"))
    try:
        with limit_resource(resource.RLIMIT_NOFILE, 3):
            with pytest.raises(OutOfDescriptorsError) as caught:
                async with aclosing(upstream.transcribe(TranscriptionRequest(), EmptyAudio())) as events:
                    await anext(events)
            with pytest.raises(OutOfDescriptorsError):
                async with aclosing(upstream.stream_live(SessionSettings(), EmptyAudio().read())) as events:
                    await anext(events)
        assert isinstance(caught.value, BusyError)
        with pytest.raises(RunnerCrashedError):
            async with aclosing(upstream.transcribe(TranscriptionRequest(), EmptyAudio())) as events:
                await anext(events)
    finally:
        await upstream.close()


def list_files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_what_a_runner_puts_aside_lies_where_uploads_do(tmp_path: Path) -> None:
    spool = tmp_path / ("a" * 120)  # too long for the path of a socket
    spool.mkdir()
    async with run_service(tmp_path, {"m": build_model(tmp_path)}, spool_dir=str(spool)) as service:
        async with open_speaker(service) as speaker:
            await speaker.session.feed(speak_sentence(1))
            await speaker.finish_session()
        pid = service.list_processes()[0].pid
        assert pid
        temp = Path(psutil.Process(pid).environ()["TMPDIR"])
        assert temp.parent == spool
        assert temp in list_files(spool)
    assert not list_files(spool)
