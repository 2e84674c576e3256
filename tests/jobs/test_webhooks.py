"""Webhooks: signatures, addresses that are refused, and attempts."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import abc, web
from aiohttp.test_utils import TestServer

from eardrum.config.settings import JobSettings
from eardrum.errors import InvalidRequestError
from eardrum.jobs.records import DeliveryRecord, JobKind, JobRecord, JobStatus
from eardrum.jobs.store import JobStore
from eardrum.jobs.webhooks import DELAYS_S, WebhookSender, build_delivery, check_address, sign_webhook

SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ="


def create_settings(*hosts: str) -> JobSettings:
    return JobSettings(webhook_secret=SECRET, webhook_hosts=hosts or ("*",))


class OneAddress(abc.AbstractResolver):
    """Resolves every name to one address."""

    def __init__(self, address: str):
        self._address = address

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[abc.ResolveResult]:
        return [abc.ResolveResult(hostname=host, host=self._address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""


RECEIVED = web.AppKey("received", list[tuple[str, str, dict[str, str]]])


@pytest.fixture
async def receiver() -> AsyncIterator[TestServer]:
    """A receiver that answers with the status in the path."""
    app = web.Application()
    app[RECEIVED] = []

    async def receive(request: web.Request) -> web.Response:
        app[RECEIVED].append((request.headers["webhook-id"], await request.text(), dict(request.headers)))
        return web.Response(status=int(request.match_info["status"]), headers={"location": "/200"})

    app.router.add_post("/{status}", receive)
    async with TestServer(app) as server:
        yield server


def create_job(url: str) -> JobRecord:
    return JobRecord("batch_1", JobKind.BATCH, "", "/e", 1.0, body={"webhook_url": url}, status=JobStatus.VALIDATING)


async def deliver(store: JobStore, url: str, settings: JobSettings, resolver: Any = None) -> dict[str, int]:
    """Let a job end whose webhook goes to this address, and try once; returns the attempts by their result."""
    await store.add_job(create_job(url))
    job = await store.claim_job((JobStatus.VALIDATING,), 1.0, 30.0)
    assert job
    await store.finish_job(job, JobStatus.FAILED, 2.0, delivery=build_delivery(job, JobStatus.FAILED, 2.0))
    results = Counter[str]()
    await WebhookSender(store, results, resolver).send_due(settings)
    return dict(results)


async def count_left(store: JobStore) -> list[DeliveryRecord]:
    return await store.list_due_deliveries(1e12, 0.0)


async def test_openais_client_accepts_the_signature(store: JobStore, receiver: TestServer) -> None:
    await deliver(store, str(receiver.make_url("/200")), create_settings("127.0.0.1"))
    ((id, body, headers),) = receiver.app[RECEIVED]
    event = openai.OpenAI(api_key="x", webhook_secret=SECRET).webhooks.unwrap(body, headers)
    assert (event.id, event.type, event.data.id) == (id, "batch.failed", "batch_1")
    assert await count_left(store) == []


def test_a_signature_is_that_of_the_specification() -> None:
    """The example of Standard Webhooks."""
    secret, id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = sign_webhook(secret, id, 1614265330, '{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("status", "result"),
    [
        *((204, "delivered"), (302, "given_up"), (404, "given_up"), (410, "given_up")),
        *((429, "delayed"), (408, "delayed"), (500, "delayed"), (503, "delayed")),
    ],
)
async def test_the_answer_decides_whether_it_comes_again(store: JobStore, receiver: TestServer, status: int, result: str) -> None:
    assert await deliver(store, str(receiver.make_url(f"/{status}")), create_settings("127.0.0.1")) == {result: 1}
    assert len(await count_left(store)) == (result == "delayed")
    assert len(receiver.app[RECEIVED]) == 1, "no redirect is followed"


async def test_an_address_that_never_answers_well_is_given_up(store: JobStore, receiver: TestServer) -> None:
    settings = create_settings("127.0.0.1")
    await deliver(store, str(receiver.make_url("/500")), settings)
    results = Counter[str]()
    sender = WebhookSender(store, results)
    for _ in DELAYS_S:
        async with store.database.begin() as tx:
            await tx.execute("update delivery set next_at = 0")
        await sender.send_due(settings)
    assert len(receiver.app[RECEIVED]) == len(DELAYS_S) + 1
    assert len({id for id, _, _ in receiver.app[RECEIVED]}) == 1
    assert results == {"delayed": len(DELAYS_S) - 1, "given_up": 1}
    assert await count_left(store) == []


async def test_a_public_name_that_leads_to_a_private_address_is_refused(store: JobStore, receiver: TestServer) -> None:
    url = f"http://hooks.example:{receiver.port}/200"
    assert await deliver(store, url, create_settings(), OneAddress("127.0.0.1")) == {"given_up": 1}
    assert receiver.app[RECEIVED] == []
    assert await count_left(store) == []


async def test_a_port_that_nobody_listens_on_is_tried_again(store: JobStore) -> None:
    assert await deliver(store, "http://127.0.0.1:9/", create_settings("127.0.0.1")) == {"delayed": 1}
    assert len(await count_left(store)) == 1


@pytest.mark.parametrize(
    "address",
    [
        *("http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/x", "http://[::ffff:10.0.0.1]/", "ftp://x.example"),
        *("x", "", "http://user:secret@x.example/", "http:///x", "http://10.1.2.3:80/"),
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_address(address, create_settings())


def test_addresses_that_are_allowed() -> None:
    check_address("https://hooks.example/path?x=1", create_settings())
    check_address("http://10.1.2.3/", create_settings("10.0.0.0/8"))
    with pytest.raises(InvalidRequestError, match=r"jobs\.webhook_hosts"):
        check_address("https://other.example", create_settings("hooks.example"))
    with pytest.raises(InvalidRequestError, match=r"jobs\.webhook_secret"):
        check_address("https://hooks.example", JobSettings())


@pytest.mark.parametrize("secret", ["abc", "whsec_", "whsec_%%%", "whsec_c2hvcnQ="])
def test_secrets_that_are_none(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        JobSettings(webhook_secret=secret)


def test_a_job_without_an_address_has_no_webhook(tmp_path: Path) -> None:
    assert build_delivery(create_job(""), JobStatus.COMPLETED, 1.0) is None
