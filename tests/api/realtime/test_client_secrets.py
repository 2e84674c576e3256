"""Keys that expire."""

from __future__ import annotations

import pytest

from eardrum.api.realtime.client_secrets import MAX_SECRETS, ClientSecretStore
from eardrum.api.realtime.session_config import RealtimeConfig
from eardrum.errors import BusyError


def test_a_secret_is_found_until_it_expires() -> None:
    keys = ClientSecretStore()
    secret = keys.create(RealtimeConfig(model="m"), 60, now=100)
    assert secret.value.startswith("ek_")
    assert keys.find(secret.value, 159.9) == secret
    assert keys.find(secret.value, 160) is None
    assert keys.find("ek_0", 100) is None


def test_secrets_are_bounded_and_expired_ones_make_room() -> None:
    keys = ClientSecretStore()
    for number in range(MAX_SECRETS):
        keys.create(RealtimeConfig(), 10 + number, now=0)
    with pytest.raises(BusyError) as refused:
        keys.create(RealtimeConfig(), 10, now=4)
    assert refused.value.retry_after == 6
    assert keys.create(RealtimeConfig(), 10, now=10)
