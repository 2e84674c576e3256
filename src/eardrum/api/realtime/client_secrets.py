"""Client secrets: keys that last for minutes and open only a WebSocket, so that a page in a browser may hold one.

Serves `POST /v1/realtime/client_secrets` and its beta form, `transcription_sessions`. Time is passed in.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from eardrum.api import json_body
from eardrum.api.asgi import Receive, Scope
from eardrum.api.json_body import check_surrogates
from eardrum.api.realtime import session_config
from eardrum.api.realtime.protocol import ModelAdmission
from eardrum.api.realtime.session_config import EventPart, RealtimeConfig
from eardrum.config import LimitSettings
from eardrum.errors import BusyError

SECRET_PREFIX = "ek_"  # noqa: S105 -- how all of them begin
MIN_TTL_S, DEFAULT_TTL_S, MAX_TTL_S = 10, 600, 7200
MAX_SECRETS = 1000
"""Keys at a time."""


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A key, and the configuration that sessions begin with which it opens."""

    value: str
    expires_at: float
    """Unix time."""
    config: RealtimeConfig


class ClientSecretStore:
    """The keys that are valid, in memory. They end with the server."""

    def __init__(self) -> None:
        self._valid: dict[str, ClientSecret] = {}

    def create(self, config: RealtimeConfig, seconds: float, now: float) -> ClientSecret:
        """A new key. It may be used any number of times until it expires.

        Raises:
            BusyError: there are too many.
        """
        self._valid = {value: secret for value, secret in self._valid.items() if secret.expires_at > now}
        if len(self._valid) >= MAX_SECRETS:
            first = min(secret.expires_at for secret in self._valid.values())
            raise BusyError(
                f"There are {MAX_SECRETS} valid client secrets already: ask for shorter-lived ones.", retry_after=first - now
            )
        secret = ClientSecret(f"{SECRET_PREFIX}{secrets.token_hex(24)}", now + seconds, config)
        self._valid[secret.value] = secret
        return secret

    def find(self, value: str, now: float) -> ClientSecret | None:
        """The key of this value, if it is one and has not expired."""
        secret = self._valid.get(value)
        return secret if secret and secret.expires_at > now else None


CLIENT_SECRETS = "/v1/realtime/client_secrets"
TRANSCRIPTION_SESSIONS = "/v1/realtime/transcription_sessions"


async def read_json_object(scope: Scope, receive: Receive, limits: LimitSettings) -> EventPart:
    """The body as an object; an empty one is an empty object.

    Raises:
        InvalidRequestError: it is not JSON, or no object.
        TooLargeError: it is larger than allowed.
    """
    limits = json_body.limit_small_body(limits)
    data = await json_body.read_body(scope, json_body.open_body(scope, receive, limits), limits)
    found = json_body.parse_json_body(data) if data.strip() else {}
    check_surrogates(data, found)
    return EventPart(found, "the body")


def create_client_secret(
    body: EventPart, keys: ClientSecretStore, admit: ModelAdmission, config: RealtimeConfig, now: float
) -> dict[str, Any]:
    """A key for sessions that begin with the body's `session`, in today's shape.

    Raises:
        EardrumError: a value is wrong, or the model cannot do what is asked.
    """
    secret = _create_secret(session_config.GA, body.get_part("session"), body.get_part("expires_after"), keys, admit, config, now)
    return {
        "value": secret.value,
        "expires_at": int(secret.expires_at),
        "session": session_config.GA.describe(secret.config, _make_session_id()),
    }


def create_transcription_session(
    body: EventPart, keys: ClientSecretStore, admit: ModelAdmission, config: RealtimeConfig, now: float
) -> dict[str, Any]:
    """The same in the beta's shape, where the body itself is the session.

    Raises:
        EardrumError: as above.
    """
    wishes = body.get_part("client_secret")
    secret = _create_secret(
        session_config.BETA, body, wishes.get_part("expires_at") if wishes else None, keys, admit, config, now
    )
    key = {"value": secret.value, "expires_at": int(secret.expires_at)}
    return {**session_config.BETA.describe(secret.config, _make_session_id()), "client_secret": key}


HANDLERS = {CLIENT_SECRETS: create_client_secret, TRANSCRIPTION_SESSIONS: create_transcription_session}


def _create_secret(
    shape: session_config.SessionShape,
    session: EventPart | None,
    after: EventPart | None,
    keys: ClientSecretStore,
    admit: ModelAdmission,
    config: RealtimeConfig,
    now: float,
) -> ClientSecret:
    if session:
        config = shape.apply_update(config, session)
    admit(config.model, config.build_request())
    if after:
        after.get_choice("anchor", ("created_at",), "created_at")
    seconds = after.get_number("seconds", MIN_TTL_S, MAX_TTL_S, DEFAULT_TTL_S) if after else DEFAULT_TTL_S
    return keys.create(config, seconds, now)


def _make_session_id() -> str:
    return f"sess_{secrets.token_hex(12)}"
