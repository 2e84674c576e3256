"""Webhooks as Standard Webhooks: signed, repeated until they arrive, and sent to public addresses only unless others are allowed.

OpenAI's clients check them with `client.webhooks.unwrap`.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import secrets
import time
from collections import Counter
from hashlib import sha256

from yarl import URL

from eardrum import tls
from eardrum.aiohttp_import import aiohttp
from eardrum.config.settings import JobSettings
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.gateway.upstreams.remote_audio import AllowedHosts
from eardrum.jobs.records import DeliveryRecord, JobKind, JobRecord, JobStatus, WebhookResult
from eardrum.jobs.store import JobStore

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""Seconds for an attempt."""
LEASE_S = 30.0
"""Longer than an attempt: another server on the same store takes the delivery over only after that."""
DELAYS_S = (5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 3600.0, 3600.0)
"""Pauses after the first, second ... failed attempt. There is one attempt more than pauses."""
TRANSIENT_STATUSES = (408, 409, 425, 429)
"""Statuses below 500 after which another attempt makes sense."""
SECRET_PREFIX = "whsec_"  # noqa: S105 -- the prefix of secrets
SETTING = "jobs.webhook_hosts"
PARAM = "webhook_url"


def build_delivery(job: JobRecord, status: JobStatus, now: float) -> DeliveryRecord | None:
    """Build the webhook for a job's end, if the job has an address for it. It says no more than the job's id and state."""
    if not (url := job.body.get("webhook_url")):
        return None
    id = f"evt_{secrets.token_hex(16)}"
    kind = "batch" if job.kind is JobKind.BATCH else "job"
    event = {"id": id, "object": "event", "created_at": int(now), "type": f"{kind}.{status}", "data": {"id": job.id}}
    return DeliveryRecord(id, job.id, url, json.dumps(event), now)


def sign_webhook(secret: str, id: str, timestamp: int, body: str) -> str:
    """Sign a webhook as Standard Webhooks does: HMAC-SHA256 over id, time and body."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{id}.{timestamp}.{body}".encode(), sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def check_address(address: str, settings: JobSettings) -> None:
    """Check that webhooks can be sent to the address.

    Raises:
        InvalidRequestError: they cannot, or the server has no secret to sign them with.
    """
    if not settings.webhook_secret:
        raise InvalidRequestError(
            "This server sends no webhooks: set jobs.webhook_secret in its config, such as the output of "
            "`echo whsec_$(openssl rand -base64 32)`.",
            param=PARAM,
        )
    try:
        url = URL(address)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host or url.user or url.password:
        raise InvalidRequestError("webhook_url must be an address with http or https and without a password.", param=PARAM)
    if not AllowedHosts.from_list(settings.webhook_hosts).allows(url.host):
        raise InvalidRequestError(f"This server sends no webhooks to {url.host}: list it in the config ({SETTING}).", param=PARAM)


class WebhookSender:
    """Sends the deliveries of a store, and counts the attempts by their result."""

    def __init__(self, store: JobStore, results: Counter[str], resolver: aiohttp.abc.AbstractResolver | None = None):
        self._store = store
        self._results = results
        self._resolver = resolver

    async def send_due(self, settings: JobSettings) -> None:
        """Send the webhooks whose time has come, once each."""
        if not (due := await self._store.list_due_deliveries(time.time(), LEASE_S)):
            return
        hosts = AllowedHosts.from_list(settings.webhook_hosts)
        from eardrum.gateway.upstreams.resolvers import CheckedResolver  # noqa: PLC0415 -- see there

        resolver = CheckedResolver(hosts.is_reachable, self._resolver, setting=SETTING, param=PARAM)
        context = await asyncio.to_thread(tls.get_client_context)
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, ssl=context)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            await asyncio.gather(*(self._send(session, delivery, settings) for delivery in due))

    async def _send(self, session: aiohttp.ClientSession, delivery: DeliveryRecord, settings: JobSettings) -> None:
        timestamp = int(time.time())
        try:
            check_address(delivery.url, settings)
            headers = {
                "content-type": "application/json",
                "user-agent": "Eardrum",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign_webhook(settings.webhook_secret, delivery.id, timestamp, delivery.body),
            }
            async with session.post(delivery.url, data=delivery.body, headers=headers, allow_redirects=False) as response:
                status = response.status
        except EardrumError as error:  # the address is not allowed, or no longer
            await self._give_up(delivery, error.message)
            return
        except (aiohttp.ClientError, OSError, ValueError) as error:
            await self._delay(delivery, str(error) or type(error).__name__)
            return
        if status < 300:
            self._results[WebhookResult.DELIVERED] += 1
            await self._store.remove_delivery(delivery.id)
        elif 300 <= status < 500 and status not in TRANSIENT_STATUSES:
            await self._give_up(delivery, f"its address answered {status}.")
        else:
            await self._delay(delivery, f"its address answered {status}")

    async def _delay(self, delivery: DeliveryRecord, reason: str) -> None:
        if delivery.tries > len(DELAYS_S):
            await self._give_up(delivery, f"{delivery.tries} attempts failed, the last one because {reason}.")
            return
        wait = DELAYS_S[delivery.tries - 1]
        self._results[WebhookResult.DELAYED] += 1
        log.info("The webhook of job %s did not arrive (%s); the next attempt is in %g s.", delivery.job, reason, wait)
        await self._store.delay_delivery(delivery.id, time.time() + wait)

    async def _give_up(self, delivery: DeliveryRecord, reason: str) -> None:
        log.warning("The webhook of job %s was given up: %s", delivery.job, reason)
        self._results[WebhookResult.GIVEN_UP] += 1
        await self._store.remove_delivery(delivery.id)
