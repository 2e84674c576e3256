"""A server that speaks HTTPS, and its own commands against it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import requests

from tests.certificates import create_certificate
from tests.commands import run_eardrum
from tests.conftest import ServerUnderTest, run_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return create_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def https_server(certificate: tuple[Path, Path]) -> Iterator[ServerUnderTest]:
    with run_server("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--sample") as server:
        yield server


def test_requests_are_served_over_https_only(https_server: ServerUnderTest, certificate: tuple[Path, Path]) -> None:
    assert https_server.address.startswith("https://127.0.0.1:")
    answer = requests.get(f"{https_server.address}/docs", verify=str(certificate[0]), timeout=10)
    assert f"curl {https_server.address}/v1" in answer.text
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{https_server.address}/health", timeout=10)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"{https_server.address.replace('https', 'http')}/health", timeout=10)
    assert "Traceback" not in https_server.log


async def test_websockets_are_served_too(https_server: ServerUnderTest, certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    address = f"{https_server.address.replace('https', 'wss')}/v1/realtime?intent=transcription"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, ssl=context) as socket:
        assert (await socket.receive_json())["type"] == "session.created"
        await socket.send_json({"type": "input_audio_buffer.commit"})
        assert (await socket.receive_json())["error"]["code"] == "input_audio_buffer_commit_empty"
        socket._response.connection.transport.abort()
        await asyncio.sleep(0.1)


def test_the_commands_trust_what_they_are_told_to_trust(https_server: ServerUnderTest, certificate: tuple[Path, Path]) -> None:
    server = ("--server", https_server.address)
    refused = run_eardrum("ps", *server)
    assert refused.returncode == 1
    assert "is not trusted" in refused.stderr
    assert "--certificate" in refused.stderr
    trust = (*server, "--certificate", str(certificate[0]))
    assert "Loaded moonshine-tiny-en" in run_eardrum("load", "whisper-1", *trust).stdout
    assert "moonshine-tiny-en" in run_eardrum("ps", *trust).stdout
    assert "moonshine-tiny-en ready after" in run_eardrum("logs", *trust).stdout
    assert run_eardrum("stop", "--all", *trust).returncode == 0
    assert "No model is loaded." in run_eardrum("ps", *trust).stdout


def test_the_sample_is_heard_through_the_servers_own_address(https_server: ServerUnderTest) -> None:
    https_server.wait_for_log("Dashwood")


def test_a_certificate_that_cannot_be_used_is_an_error_at_the_start(certificate: tuple[Path, Path]) -> None:
    failed = run_eardrum("serve", "--port", "0", "--tls-certificate", str(certificate[1]))
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("eardrum: tls_certificate")
