"""`POST /v1/realtime/client_secrets`, and its older form `transcription_sessions`: keys for pages in browsers."""

from __future__ import annotations

import secrets
from typing import Any

from eardrum import json_text
from eardrum.api import json_body
from eardrum.api.asgi import Receive, Scope
from eardrum.api.realtime import shapes
from eardrum.api.realtime.config import Config
from eardrum.api.realtime.conversation import Admit
from eardrum.api.realtime.secrets import LONGEST_S, SHORTEST_S, USUAL_S, Secret, Secrets
from eardrum.api.realtime.values import Part
from eardrum.api.whole_text import check_whole
from eardrum.config import Limits
from eardrum.errors import InvalidRequestError

CLIENT_SECRETS = "/v1/realtime/client_secrets"
TRANSCRIPTION_SESSIONS = "/v1/realtime/transcription_sessions"


async def parsed(scope: Scope, receive: Receive, limits: Limits) -> Part:
    """The body as an object; an empty one is an empty object.

    Raises:
        InvalidRequestError: it is not JSON, or no object.
        TooLargeError: it is larger than allowed.
    """
    limits = json_body.small(limits)
    data = await json_body.received(scope, json_body.opened(scope, receive, limits), limits)
    try:
        found = json_text.parsed(data) if data.strip() else {}
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    check_whole(data, found)
    return Part(found, "the body")


def client_secret(body: Part, keys: Secrets, admit: Admit, config: Config, now: float) -> dict[str, Any]:
    """A key for sessions that begin with the body's `session`, in today's shape.

    Raises:
        EardrumError: a value is wrong, or the model cannot do what is asked.
    """
    secret = _made(shapes.GA, body.part("session"), body.part("expires_after"), keys, admit, config, now)
    return {"value": secret.value, "expires_at": int(secret.expires_at), "session": shapes.GA.shown(secret.config, _id())}


def transcription_session(body: Part, keys: Secrets, admit: Admit, config: Config, now: float) -> dict[str, Any]:
    """The same in the beta's shape, where the body itself is the session.

    Raises:
        EardrumError: as above.
    """
    wishes = body.part("client_secret")
    secret = _made(shapes.BETA, body, wishes.part("expires_at") if wishes else None, keys, admit, config, now)
    key = {"value": secret.value, "expires_at": int(secret.expires_at)}
    return {**shapes.BETA.shown(secret.config, _id()), "client_secret": key}


ANSWERS = {CLIENT_SECRETS: client_secret, TRANSCRIPTION_SESSIONS: transcription_session}


def _made(
    shape: shapes.Shape, session: Part | None, after: Part | None, keys: Secrets, admit: Admit, config: Config, now: float
) -> Secret:
    if session:
        config = shape.changed(config, session)
    admit(config.model, config.request())
    if after:
        after.choice("anchor", ("created_at",), "created_at")
    seconds = after.number("seconds", SHORTEST_S, LONGEST_S, USUAL_S) if after else USUAL_S
    return keys.made(config, seconds, now)


def _id() -> str:
    return f"sess_{secrets.token_hex(12)}"
