"""A client that has an archive transcribed as a batch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

WAIT_S = 30
END_S = 600.0
"""How long an archive may take."""


class ArchiveClient:
    """A client of one server, by OpenAI's routes. A context."""

    def __init__(self, port: int):
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S + 60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def upload(self, data: bytes, purpose: str = "user_data") -> str:
        """Upload a file; returns its id."""
        sent = self._http.post("/v1/files", data={"purpose": purpose}, files={"file": ("file", data)})
        return str(sent.raise_for_status().json()["id"])

    def begin_batch(self, files: Sequence[str]) -> str:
        """Begin to transcribe these files, of which some may be there several times; returns the batch's id."""
        lines = [json.dumps({"custom_id": str(n), "body": {"file": file}}) for n, file in enumerate(files)]
        wanted = {
            "input_file_id": self.upload("\n".join(lines).encode(), "batch"),
            "endpoint": "/v1/audio/transcriptions",
            "completion_window": "24h",
        }
        return str(self._http.post("/v1/batches", json=wanted).raise_for_status().json()["id"])

    def count_done(self, id: str) -> int:
        """The recordings of a batch that are done."""
        return int(self.describe(id)["request_counts"]["completed"])

    def describe(self, id: str, wait_s: int = 0) -> dict[str, Any]:
        """A job as it is now, or at its end if that comes sooner than in so many seconds."""
        found: dict[str, Any] = self._http.get(f"/api/jobs/{id}?wait={wait_s}").raise_for_status().json()
        return found

    def wait_for_end(self, id: str) -> dict[str, Any]:
        """Wait for the end of a job.

        Raises:
            RuntimeError: it failed, or it takes too long.
        """
        end = time.monotonic() + END_S
        while (job := self.describe(id, WAIT_S))["status"] not in ("completed", "failed", "cancelled", "expired"):
            if time.monotonic() > end:
                raise RuntimeError(f"The job does not end: {job}")
        if job["status"] != "completed":
            raise RuntimeError(f"The job has not completed: {job}")
        return job

    def check_output(self, batch: dict[str, Any], count: int) -> None:
        """Check that each of so many recordings has one result.

        Raises:
            RuntimeError: some have none, several, or an error.
        """
        text = self._http.get(f"/v1/files/{batch['output_file_id']}/content").raise_for_status().text
        keys = sorted(int(json.loads(line)["custom_id"]) for line in text.splitlines())
        if keys != list(range(count)) or batch["error_file_id"]:
            raise RuntimeError(f"{len(set(keys))} of {count} recordings have results, and there are {len(keys)} results: {batch}")

    def cancel(self, id: str) -> None:
        """Cancel a job, and wait until it has ended."""
        self._http.post(f"/api/jobs/{id}/cancel").raise_for_status()
        self.describe(id, WAIT_S)
