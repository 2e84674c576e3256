"""What of the settings is a secret, so that it can be kept out of what is shown."""

from __future__ import annotations

from collections.abc import Iterator

from eardrum.config.settings import Model, Settings
from eardrum.redaction import is_secret, passwords_in, secrets_among, secrets_in


def secrets_of(settings: Settings) -> Iterator[str]:
    """Keys of clients and peers, passwords in addresses, and what commands, environments and options hold by names of secrets."""
    yield from settings.apiKeys
    for peer in settings.peers.values():
        yield from (peer.apiKey, *passwords_in(peer.proxy))
    for model in settings.models.values():
        yield from _of_model(model)
    yield from (value for name, value in settings.macros.items() if isinstance(value, str) and is_secret(name))


def _of_model(model: Model) -> Iterator[str]:
    for text in (model.cmd, model.cmdStop, model.proxy):
        yield from secrets_in(text)
    for variable in model.env:
        name, _, value = variable.partition("=")
        yield from (value,) if is_secret(name) else passwords_in(value)
    yield from secrets_among(model.options)
