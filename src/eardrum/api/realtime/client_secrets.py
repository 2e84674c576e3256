"""Client secrets: keys that last for minutes and open only a WebSocket, so that a page in a browser may hold one.

Serves `POST /v1/realtime/client_secrets` and its beta form, `transcription_sessions`. Time is passed in.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from msgspec import Struct, field
from pydantic import Field

from eardrum.api import request_body
from eardrum.api.asgi import Receive, Scope
from eardrum.api.fields import UNSET_IF_EMPTY, Between, RequestModel
from eardrum.api.realtime.protocol import ModelAdmission
from eardrum.api.realtime.session_config import RealtimeConfig
from eardrum.api.request_body import check_surrogates
from eardrum.config import LimitSettings
from eardrum.errors import BusyError
from eardrum.gateway.key_usage import CURRENT_KEY, KeyUsage

SECRET_PREFIX = "ek_"  # noqa: S105 -- a prefix
MIN_TTL_S, DEFAULT_TTL_S, MAX_TTL_S = 10, 600, 7200
MAX_SECRETS = 1000
"""Valid keys at a time."""


class ClientSecret(Struct, frozen=True):
    """A key, and the initial configuration of the sessions that it opens."""

    value: str
    expires_at: float
    """Unix time."""
    config: RealtimeConfig
    creator: KeyUsage | None = field(default_factory=CURRENT_KEY.get)
    """The API key that created it: its models, limits and charges hold for the sessions, too, and its end is theirs."""


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
PATHS = (CLIENT_SECRETS, TRANSCRIPTION_SESSIONS)


class Expiry(RequestModel):
    """When a key expires: seconds after its creation."""

    anchor: Annotated[Literal["created_at"], UNSET_IF_EMPTY] = "created_at"
    seconds: Annotated[float, Between(MIN_TTL_S, MAX_TTL_S)] = DEFAULT_TTL_S


class BetaClientSecret(RequestModel):
    """The object `client_secret` of the beta."""

    expires_at: Annotated[Expiry, UNSET_IF_EMPTY] = Field(default_factory=Expiry)


class SecretRequest(RequestModel):
    """The body of `client_secrets`, and of `transcription_sessions` beside the fields of the session."""

    session: dict[str, Any] | None = None
    expires_after: Annotated[Expiry, UNSET_IF_EMPTY] = Field(default_factory=Expiry)
    client_secret: Annotated[BetaClientSecret, UNSET_IF_EMPTY] = Field(default_factory=BetaClientSecret)


async def read_json(scope: Scope, receive: Receive, limits: LimitSettings) -> Any:
    """Read the body as JSON; an empty one is an empty object.

    Raises:
        InvalidRequestError: the body is not valid JSON.
        TooLargeError: the body exceeds its limit.
    """
    limits = request_body.limit_small_body(limits)
    data = await request_body.receive_body(scope, receive, limits)
    found = request_body.parse_json_body(data) if data.strip() else {}
    check_surrogates(data, found)
    return found


def create_client_secret(
    body: Any, keys: ClientSecretStore, admit: ModelAdmission, config: RealtimeConfig, now: float, *, beta: bool
) -> dict[str, Any]:
    """Create a key for sessions that begin with the body's `session`. In the beta's shape the body itself is the session.

    Raises:
        EardrumError: a value is invalid, or the model does not support the session.
    """
    request = SecretRequest.parse(body)
    if session := body if beta else request.session:
        config = config.update(session, beta=beta)
    admit(config.model, config.build_request())
    expiry = request.client_secret.expires_at if beta else request.expires_after
    secret = keys.create(config, expiry.seconds, now)
    key = {"value": secret.value, "expires_at": int(secret.expires_at)}
    described = config.describe(f"sess_{secrets.token_hex(12)}", beta=beta)
    return {**described, "client_secret": key} if beta else {**key, "session": described}
