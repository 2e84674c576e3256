"""What can go wrong at the hub, in sentences that say what to do."""

from __future__ import annotations

import errno

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from eardrum.errors import EardrumError, ModelNotFoundError, PullError, StorageFullError


def worded(error: Exception, repository: str) -> EardrumError:
    """What went wrong, and what to do."""
    match error:
        case GatedRepoError():
            says = f"{repository} asks to accept its terms: do so on its page at the hub, then set HF_TOKEN."
        case RepositoryNotFoundError() | HFValidationError():
            return ModelNotFoundError(f"The hub has no model {repository}, or it is private: check the name, or set HF_TOKEN.")
        case OfflineModeIsEnabled():
            says = f"{repository} cannot be fetched: HF_HUB_OFFLINE is set. Unset it, or `eardrum pull FOLDER` from a copy."
        case HfHubHTTPError():
            says = _refused(error.response.status_code, repository)
        case OSError(errno=errno.ENOSPC):
            return StorageFullError(f"The disk is full: make room, then pull {repository} again; what has arrived is kept.")
        case OSError(filename=str(), strerror=str()):
            says = f"{repository} cannot be stored: {error.strerror}: {error.filename}."
        case OSError() | httpx2.HTTPError():
            says = f"The hub cannot be reached ({_line_of(error)}). Pull {repository} again later; what has arrived is kept."
        case _:
            says = f"What answers in place of the hub does not speak its language ({_line_of(error)}): check HF_ENDPOINT."
    return PullError(says)


def _refused(status: int, repository: str) -> str:
    if status == 401:
        return f"The hub does not accept the token in HF_TOKEN: set a valid one, or none, and pull {repository} again."
    if status == 403:
        return f"The token in HF_TOKEN may not read {repository}: set one that may."
    if status == 429:
        return f"The hub has had too many requests from here: pull {repository} again later; what has arrived is kept."
    if status >= 500:
        return f"The hub is out of order (status {status}). Pull {repository} again later; what has arrived is kept."
    return f"The hub refused {repository} with status {status}."


def _line_of(error: Exception) -> str:
    """The error in one short line: the hub's library is talkative."""
    return " ".join((str(error) or type(error).__name__).split())[:200]
