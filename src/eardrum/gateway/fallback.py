"""Decides which model serves a request next: the same one once more, or a fallback. Pure.

A process that dies is replaced silently, until it is proven that this very request kills it (`CrashSuspicion`).
"""

from __future__ import annotations

import logging
from contextlib import suppress

from eardrum.errors import (
    BusyError,
    EardrumError,
    ModelNotFoundError,
    PullError,
    RunnerCrashedError,
    ShuttingDownError,
    StorageFullError,
    UnsupportedFeatureError,
)
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.crashes import CrashSuspicion
from eardrum.transcription import TranscriptionRequest

log = logging.getLogger(__name__)


class TranscriptRestart:
    """An event: the transcript begins again, and everything before is void."""


class FallbackPlan:
    """The models that may still serve a request, and the crashes it is suspected of. Begins with the first model."""

    def __init__(self, candidates: list[Model]):
        self._candidates = candidates
        self.suspicion = CrashSuspicion()

    @property
    def model(self) -> Model:
        """The model of the next attempt."""
        return self._candidates[0]

    def handle_failure(self, error: EardrumError, *, repeatable: bool) -> None:
        """Choose the model of the next attempt after this error of the last one.

        Raises:
            EardrumError: the error itself, if no attempt is left or the request is not `repeatable`.
        """
        failed = self.model
        if not isinstance(error, RunnerCrashedError) or self.suspicion.is_proven:
            self._candidates = self._candidates[1:]
            self.suspicion = CrashSuspicion()
        if not self._candidates or not repeatable or not is_retryable(error):
            raise error
        next_attempt = "once more" if self.model is failed else f"fallback model {self.model.id}"
        log.warning("%s Trying %s.", error.sentence, next_attempt)


def find_candidates(catalog: ModelCatalog, model: Model, request: TranscriptionRequest) -> list[Model]:
    """List the model and those of its fallbacks that can serve the request, in the configured order.

    Raises:
        UnsupportedFeatureError: the model itself cannot serve it.
    """
    catalog.check_request(model, request)
    found = [model]
    for name in model.fallback:
        with suppress(UnsupportedFeatureError, ModelNotFoundError):
            other = catalog.find_model(name)
            catalog.check_request(other, request)
            if other.id not in [candidate.id for candidate in found]:
                found.append(other)
    return found


def list_fallbacks(catalog: ModelCatalog, model: Model) -> list[tuple[str, Model]]:
    """List a model's fallbacks, each with its name in the config. Fallbacks that do not exist are left out."""
    found: list[tuple[str, Model]] = []
    for name in model.fallback:
        with suppress(ModelNotFoundError):
            other = catalog.find_model(name)
            if other.id not in (model.id, *(listed.id for _, listed in found)):
                found.append((name, other))
    return found


def is_retryable(error: EardrumError) -> bool:
    """Whether another attempt, or another model, may succeed."""
    if isinstance(error, ModelNotFoundError | BusyError | PullError):
        return True
    return error.status >= 500 and not isinstance(error, ShuttingDownError | StorageFullError)
