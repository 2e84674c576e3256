"""Client secrets: keys that last for minutes and open only a WebSocket, so that a page in a browser may hold one.

Serves `POST /v1/realtime/client_secrets` and its beta form, `transcription_sessions`. Time is passed in.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from eardrum.api import request_body
from eardrum.api.asgi import Receive, Scope
from eardrum.api.fields import NUMBER, UNSET_IF_EMPTY, RequestModel
from eardrum.api.realtime import session_config
from eardrum.api.realtime.protocol import ModelAdmission
from eardrum.api.realtime.session_config import RealtimeConfig
from eardrum.api.request_body import check_surrogates
from eardrum.config import LimitSettings
from eardrum.errors import BusyError

SECRET_PREFIX = "ek_"  # noqa: S105 -- a prefix
MIN_TTL_S, DEFAULT_TTL_S, MAX_TTL_S = 10, 600, 7200
MAX_SECRETS = 1000
"""Valid keys at a time."""


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A key, and the initial configuration of the sessions that it opens."""

    value: str
    expires_at: float
    """Unix time."""
    config: RealtimeConfig


class ClientSecretStore:
    """The valid keys, in memory: a restart of the server invalidates them."""

    def __init__(self) -> None:
        self._valid: dict[str, ClientSecret] = {}

    def create(self, config: RealtimeConfig, seconds: float, now: float) -> ClientSecret:
        """Create a key. It may be used any number of times until it expires.

        Raises:
            BusyError: there are too many keys.
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
        """Return the key with this value, unless it has expired."""
        secret = self._valid.get(value)
        return secret if secret and secret.expires_at > now else None


CLIENT_SECRETS = "/v1/realtime/client_secrets"
TRANSCRIPTION_SESSIONS = "/v1/realtime/transcription_sessions"


class Expiry(RequestModel):
    """When a key expires: seconds after its creation."""

    anchor: Annotated[Literal["created_at"], UNSET_IF_EMPTY] = "created_at"
    seconds: Annotated[float, Field(ge=MIN_TTL_S, le=MAX_TTL_S), NUMBER] = DEFAULT_TTL_S


class SecretRequest(RequestModel):
    """The body of `client_secrets`."""

    session: dict[str, Any] | None = None
    expires_after: Annotated[Expiry, UNSET_IF_EMPTY] = Field(default_factory=Expiry)


class BetaExpiry(RequestModel):
    """The object `client_secret` of the beta."""

    expires_at: Annotated[Expiry, UNSET_IF_EMPTY] = Field(default_factory=Expiry)


class BetaSecretRequest(RequestModel):
    """The body of `transcription_sessions`, beside the fields of the session."""

    client_secret: Annotated[BetaExpiry, UNSET_IF_EMPTY] = Field(default_factory=BetaExpiry)


async def read_json(scope: Scope, receive: Receive, limits: LimitSettings) -> Any:
    """Read the body as JSON; an empty one is an empty object.

    Raises:
        InvalidRequestError: the body is not valid JSON.
        TooLargeError: the body exceeds its limit.
    """
    limits = request_body.limit_small_body(limits)
    data = await request_body.read_body(scope, request_body.open_body(scope, receive, limits), limits)
    found = request_body.parse_json_body(data) if data.strip() else {}
    check_surrogates(data, found)
    return found


def create_client_secret(
    body: Any, keys: ClientSecretStore, admit: ModelAdmission, config: RealtimeConfig, now: float
) -> dict[str, Any]:
    """Create a key for sessions that begin with the body's `session`.

    Raises:
        EardrumError: a value is invalid, or the model does not support the session.
    """
    request = SecretRequest.parse(body)
    if request.session:
        config = session_config.GA.apply_update(config, request.session, "session")
    admit(config.model, config.build_request())
    secret = keys.create(config, request.expires_after.seconds, now)
    return {
        "value": secret.value,
        "expires_at": int(secret.expires_at),
        "session": session_config.GA.describe(secret.config, _make_session_id()),
    }


def create_transcription_session(
    body: Any, keys: ClientSecretStore, admit: ModelAdmission, config: RealtimeConfig, now: float
) -> dict[str, Any]:
    """Create a key in the beta's shape, where the body itself is the session.

    Raises:
        EardrumError: as `create_client_secret`.
    """
    expiry = BetaSecretRequest.parse(body).client_secret.expires_at
    config = session_config.BETA.apply_update(config, body, "session")
    admit(config.model, config.build_request())
    secret = keys.create(config, expiry.seconds, now)
    key = {"value": secret.value, "expires_at": int(secret.expires_at)}
    return {**session_config.BETA.describe(secret.config, _make_session_id()), "client_secret": key}


HANDLERS = {CLIENT_SECRETS: create_client_secret, TRANSCRIPTION_SESSIONS: create_transcription_session}


def _make_session_id() -> str:
    return f"sess_{secrets.token_hex(12)}"
