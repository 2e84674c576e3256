"""Announces the server to Home Assistant's Supervisor, from an app that it runs."""

from __future__ import annotations

import logging
import os
import socket

from eardrum.aiohttp_import import aiohttp
from eardrum.errors import ConfigError

log = logging.getLogger(__name__)

SUPERVISOR_URL = "http://supervisor"
"""The Supervisor of Home Assistant, in the network of the apps."""
SUPERVISOR_TOKEN_VARIABLE = "SUPERVISOR_TOKEN"  # noqa: S105
SUPERVISOR_TIMEOUT_S = 30


class SupervisorAnnouncement:
    """Announces the server to the Supervisor, which passes it on to Home Assistant as long as the app runs."""

    def __init__(self, port: int):
        """Check that this is an app; `begin` sends the announcement.

        Raises:
            ConfigError: it is not.
        """
        self._port = port
        self._token = os.environ.get(SUPERVISOR_TOKEN_VARIABLE, "")
        if not self._token:
            raise ConfigError(
                f"wyoming.supervisor is for an app of Home Assistant: {SUPERVISOR_TOKEN_VARIABLE}, which its Supervisor sets, "
                "is not in the environment."
            )

    async def begin(self) -> None:
        """Announce the server. Errors are only logged: clients that have the address can still connect."""
        address = f"tcp://{socket.gethostname()}:{self._port}"  # Home Assistant resolves the names of apps
        headers = {"authorization": f"Bearer {self._token}"}
        message = {"service": "wyoming", "config": {"uri": address}}
        timeout = aiohttp.ClientTimeout(total=SUPERVISOR_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False), timeout=timeout, headers=headers) as session,
                session.post(f"{SUPERVISOR_URL}/discovery", json=message) as answer,
            ):
                failure = "" if answer.ok else f"it answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = str(error) or type(error).__name__
        if failure:
            log.error("wyoming.supervisor: could not announce %s to the Supervisor: %s.", address, failure)
        else:
            log.info("Announced Wyoming to the Supervisor at %s.", address)

    async def end(self) -> None:
        """Do nothing: the Supervisor shows only apps that run."""
