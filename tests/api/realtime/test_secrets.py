"""Keys that expire."""

from __future__ import annotations

import pytest

from eardrum.api.realtime.config import Config
from eardrum.api.realtime.secrets import MOST, Secrets
from eardrum.errors import BusyError


def test_a_secret_is_found_until_it_expires() -> None:
    keys = Secrets()
    secret = keys.made(Config(model="m"), 60, now=100)
    assert secret.value.startswith("ek_")
    assert keys.find(secret.value, 159.9) == secret
    assert keys.find(secret.value, 160) is None
    assert keys.find("ek_0", 100) is None


def test_secrets_are_bounded_and_expired_ones_make_room() -> None:
    keys = Secrets()
    for number in range(MOST):
        keys.made(Config(), 10 + number, now=0)
    with pytest.raises(BusyError) as refused:
        keys.made(Config(), 10, now=4)
    assert refused.value.retry_after == 6
    assert keys.made(Config(), 10, now=10)
