"""Servers with a scripted engine that may be killed and started again, and what comes of recordings when nobody is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from tests.commands import start_eardrum
from tests.conftest import NO_WYOMING, START_S, wait_for
from tests.jobs.scripted_engine import count_windows, install_scripted_engine
from tests.processes import find_children
from tests.recordings import encode, load_announcements

ENDPOINT = "/v1/audio/transcriptions"
ENDED = ("completed", "failed", "cancelled", "expired")

WAIT_S = 90.0
"""Patience with one step, on a machine that does much else."""
END_S = 300.0
"""Patience with the end of jobs."""


@dataclass
class JobServer:
    """A server that may be killed and started again on the same folder."""

    folder: Path
    environment: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    """Settings of jobs beside their folder."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Other settings of the server."""
    name: str = "server"
    address: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "windows.log"

    @property
    def decoded(self) -> Counter[str]:
        """How often each window was decoded."""
        return count_windows(self.log)

    def count_windows(self) -> int:
        """Decoded windows, each as often as it was decoded."""
        return self.decoded.total()

    @property
    def model(self) -> dict[str, Any]:
        """The entry of its model in the config."""
        return {"engine": "scripted", "source": str(self.folder / "model"), "options": {"log": str(self.log), **self.options}}

    @property
    def _output(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        output = self._output.open("a")
        begin = output.tell()
        settings = {
            "models": {"scripted": self.model},
            "default_model": "scripted",
            "jobs": {"dir": str(self.folder / "jobs"), **self.jobs},
            **self.settings,
        }
        pairs = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EARDRUM_")}  # EARDRUM_KILLS
        self.process = start_eardrum(
            *("serve", "--port", "0", *NO_WYOMING),
            *(part for pair in pairs for part in ("--set", pair)),
            env={**clean, **self.environment, "TMPDIR": str(self.folder / "tmp"), "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.close()
        wait_for(lambda: "listens on" in self.read_log(begin) or self.process.poll() is not None, START_S)
        assert "listens on" in self.read_log(begin), self.read_log()
        self.address = self.read_log(begin).split("listens on ")[1].split()[0]

    def read_log(self, begin: int = 0) -> str:
        return self._output.read_text()[begin:]

    def kill(self) -> None:
        """Kill the server; its runners notice that it is gone."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(WAIT_S)
        assert not psutil.wait_procs(children, timeout=WAIT_S)[1], "a runner outlived the server"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == -signal.SIGTERM, self.read_log()

    def wait_for_progress(self, id: str, windows: int = 1) -> None:
        """Wait until so many windows of a recording are saved."""
        wait_for(lambda: self.get(f"/api/jobs/{id}")["progress"]["windows"] >= windows, WAIT_S)

    def kill_runner(self) -> bool:
        runners = find_children(self.process.pid, "eardrum.runner")
        for runner in runners:
            runner.kill()
        return bool(runners)

    def get(self, path: str) -> Any:
        return requests.get(self.address + path, timeout=150).json()

    def read_metrics(self) -> str:
        return requests.get(f"{self.address}/metrics", timeout=60).text

    def post(self, path: str) -> Any:
        return requests.post(self.address + path, timeout=60).json()

    def add_recording(self, audio: bytes) -> str:
        answer = requests.post(f"{self.address}/api/jobs", files={"file": ("a.flac", audio)}, timeout=60)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def add_batch(self, clips: list[bytes]) -> str:
        lines = []
        for number, clip in enumerate(clips):
            sent = requests.post(
                f"{self.address}/v1/files", data={"purpose": "user_data"}, files={"file": ("a.flac", clip)}, timeout=60
            )
            lines.append(json.dumps({"custom_id": str(number), "body": {"file": sent.json()["id"]}}))
        file = {"file": ("lines.jsonl", "\n".join(lines))}
        sent = requests.post(f"{self.address}/v1/files", data={"purpose": "batch"}, files=file, timeout=60)
        wanted = {"input_file_id": sent.json()["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        return str(requests.post(f"{self.address}/v1/batches", json=wanted, timeout=60).json()["id"])

    def count_done(self, batch: str) -> int:
        """The recordings of a batch that are done."""
        return int(self.get(f"/api/jobs/{batch}")["request_counts"]["completed"])

    def wait_for_end(self, ids: list[str]) -> list[dict[str, Any]]:
        end = time.monotonic() + END_S
        while not all((job := self.get(f"/api/jobs/{id}?wait=30"))["status"] in ENDED for id in ids):
            assert time.monotonic() < end, (job, self.read_log())
        return [self.get(f"/api/jobs/{id}") for id in ids]

    def read_lines(self, file: str | None) -> list[dict[str, Any]]:
        if not file:
            return []
        text = requests.get(f"{self.address}/v1/files/{file}/content", timeout=60).text
        return [json.loads(line) for line in text.splitlines()]

    def read_text(self, id: str) -> str:
        return str(self.get(f"/api/jobs/{id}/result?response_format=json")["text"])


@contextmanager
def run_job_server(folder: Path, jobs: dict[str, Any] | None = None, **options: Any) -> Iterator[JobServer]:
    folder.mkdir()
    (folder / "tmp").mkdir()
    server = JobServer(folder, install_scripted_engine(folder), options, jobs or {})
    server.start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@dataclass
class Undisturbed:
    """The recordings, and what comes of them when nobody is killed."""

    long: bytes
    """Empty if there is none."""
    clips: list[bytes]
    text: str
    texts: dict[str, str]
    windows: dict[str, int]

    def add_all(self, server: JobServer) -> list[str]:
        """Add the long recording and the batch of clips, as jobs; returns their ids."""
        return [*([server.add_recording(self.long)] if self.long else []), server.add_batch(self.clips)]


def create_clips(count: int) -> list[bytes]:
    """Short recordings of which no two are equal: the announcements, and then the same ones turned down."""
    samples = [samples for _, samples, _ in load_announcements()]
    return [encode(samples[n % len(samples)] * 0.8 ** (n // len(samples)), "flac") for n in range(count)]


def join_announcements(repeat: int) -> bytes:
    """A long recording: so many times all announcements."""
    return encode(np.concatenate([samples for _, samples, _ in load_announcements()] * repeat), "flac")


def transcribe_undisturbed(folder: Path, long: bytes, clips: int) -> Undisturbed:
    """Transcribe a long recording, if there is one, and a batch of so many clips."""
    found = Undisturbed(long, create_clips(clips), "", {}, {})
    with run_job_server(folder, seconds=0.0) as server:
        ids = found.add_all(server)
        *jobs, batch = server.wait_for_end(ids)
        assert {job["status"] for job in (*jobs, batch)} == {"completed"}, server.read_log()
        found.texts = read_texts(server, batch)
        assert len(found.texts) == clips
        found.text = server.read_text(ids[0]) if long else ""
        found.windows = dict(server.decoded)
    return found


def read_texts(server: JobServer, batch: dict[str, Any]) -> dict[str, str]:
    lines = server.read_lines(batch["output_file_id"])
    texts = {line["custom_id"]: line["response"]["body"]["text"] for line in lines}
    assert len(texts) == len(lines), "an item is there twice"
    assert not batch["error_file_id"], server.read_lines(batch["error_file_id"])
    return texts


def check_outcome(server: JobServer, ids: list[str], undisturbed: Undisturbed) -> int:
    """Everything ended once, with the texts that it has without kills; returns how many windows were decoded again."""
    *jobs, batch = server.wait_for_end(ids)
    assert {job["status"] for job in (*jobs, batch)} == {"completed"}, (jobs, batch, server.read_log())
    assert batch["request_counts"]["completed"] == len(undisturbed.clips), (
        server.read_lines(batch["error_file_id"]),
        server.read_log(),
    )
    assert [server.read_text(job["id"]) for job in jobs] == ([undisturbed.text] if undisturbed.long else [])
    assert read_texts(server, batch) == undisturbed.texts
    decoded = server.decoded
    assert set(decoded) == set(undisturbed.windows)
    return sum(decoded.values()) - sum(undisturbed.windows.values())
