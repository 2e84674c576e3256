"""A server of S3's protocol for tests: moto's, in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.conftest import START_S, wait_for
from tests.ports import find_free_port

MOTO = Path(__file__).parents[2] / "build" / "moto" / "bin" / "moto_server"


@contextmanager
def run_bucket_server() -> Iterator[str]:
    """A server with an empty bucket, whose address is `s3://jobs`; yields the server's address."""
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    assert MOTO.exists(), "`make test-jobs` installs moto"
    process = subprocess.Popen(
        (MOTO, "-H", "127.0.0.1", "-p", str(port)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: process.poll() is not None or answers(address), START_S)
        assert process.poll() is None, "moto's server has ended"
        requests.put(f"{address}/jobs", timeout=20).raise_for_status()
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.ConnectionError:
        return False


def build_bucket_environment(address: str) -> dict[str, str]:
    """The environment of a client of this server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
