"""Loads the models that the config wants loaded from the start."""

from __future__ import annotations

import logging

from eardrum.errors import EardrumError, ModelNotFoundError
from eardrum.gateway.service import Service

log = logging.getLogger(__name__)


async def preload(service: Service) -> None:
    """Load one after another; what cannot be loaded is said in the log and keeps nobody from serving.

    One after another, because models may exclude each other, and because two that load at once are both late.
    """
    for name in filter(None, map(str.strip, service.settings.hooks.on_startup.preload)):
        try:
            model = service.find(name)
        except ModelNotFoundError as error:
            log.warning("hooks.on_startup.preload: %s is passed over. %s", name, error.message)
            continue
        log.info("Preloading %s.", model.id)
        try:
            await service.load_model(model)
        except EardrumError as error:
            log.error("Preloading %s failed: %s", model.id, error.message)
