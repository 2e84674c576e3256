"""All errors that clients can see: one class each, with a status, a code and a sentence that says what to do.

Low layers raise them; each protocol renders them in its own format. `status` follows HTTP because every protocol's error can be
derived from it. Errors pass from runner to gateway as JSON, by class name.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Any, ClassVar

LOGIN = re.compile(r"(?<=://)[^\s/?#\"'<>]+@")
"""Name and password in an address: messages name addresses of upstreams."""

HIDDEN = "***"

MAX_MESSAGE_LENGTH, MAX_PARAM_LENGTH = 4000, 200
"""Characters. Messages repeat what clients sent, to them and to the log, and clients send anything."""


class EardrumError(Exception):
    """Base of all errors that clients can see."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "server_error"
    max_length: ClassVar[int] = MAX_MESSAGE_LENGTH

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None):
        message = sanitize_text(message, self.max_length)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else sanitize_text(param, MAX_PARAM_LENGTH)
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None when it does not."""

    @property
    def sentence(self) -> str:
        """The message, with a full stop where it has none: for lines that continue behind it. Others' words often have none."""
        return self.message if self.message.endswith((".", "!", "?", "…")) else f"{self.message}."

    def to_json(self) -> dict[str, Any]:
        """The error for the wire between runner and gateway."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "param": self.param,
            "retry_after": self.retry_after,
        }


class InvalidRequestError(EardrumError):
    """A field is missing, unknown, malformed or contradicts another."""

    status = 400
    code = "invalid_value"


class FetchFailedError(InvalidRequestError):
    """A recording could not be fetched from its address; later it may be."""


class UnspeakableTextError(InvalidRequestError):
    """The voice cannot read the text: its letters are of another script."""

    code = "unspeakable_text"

    def __init__(self, message: str, *, param: str | None = "input", retry_after: float | None = None):
        super().__init__(message, param=param, retry_after=retry_after)


class EmptyTextError(UnspeakableTextError):
    """There is nothing to speak: no letter and no digit."""

    code = "empty_text"


class EmptyCommitError(InvalidRequestError):
    """There is no audio whose text could be given."""

    code = "input_audio_buffer_commit_empty"


class AudioError(EardrumError):
    """The audio cannot be decoded, has no audio track, or is longer than allowed."""

    status = 400
    code = "invalid_audio"

    def __init__(self, message: str, *, param: str | None = "file", retry_after: float | None = None):
        super().__init__(message, param=param, retry_after=retry_after)


class UnsupportedFeatureError(EardrumError):
    """The model cannot do what was asked; the message names what can."""

    status = 400
    code = "unsupported_feature"


class UnauthorizedError(EardrumError):
    """The client showed no key, or one that is not among `api_keys`."""

    status = 401
    code = "invalid_api_key"


class InsufficientScopeError(EardrumError):
    """The client's key is valid, and lacks the right that the route asks for."""

    status = 403
    code = "insufficient_scope"


class ForbiddenError(EardrumError):
    """A web page of another origin asks; the message names it."""

    status = 403
    code = "forbidden_origin"


class UnknownHostError(ForbiddenError):
    """The request is for a name that is not this server's: a web page may have led its own name here."""

    code = "forbidden_host"


class ForbiddenClientError(ForbiddenError):
    """A client's address is not among those that may connect."""

    code = "forbidden_client"


class ModelNotFoundError(EardrumError):
    """No model has this name."""

    status = 404
    code = "model_not_found"

    def __init__(self, message: str, *, param: str | None = "model", retry_after: float | None = None):
        super().__init__(message, param=param, retry_after=retry_after)


class NotFoundError(EardrumError):
    """No route has this path."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(EardrumError):
    """The route exists, but not for this method. `allow` lists the methods that it has."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: Sequence[str] = (), param: str | None = None, retry_after: float | None = None):
        super().__init__(message, param=param, retry_after=retry_after)
        self.allow = tuple(allow)


class ClientStalledError(EardrumError):
    """The client stopped sending in the middle of its request."""

    status = 408
    code = "request_timeout"


class NotReadyError(EardrumError):
    """The model is not up, and this request is of a kind that does not load it."""

    status = 409
    code = "model_not_ready"


class ConflictError(EardrumError):
    """The file or job is not in a state for this."""

    status = 409
    code = "conflict"


class TooLargeError(EardrumError):
    """The body is larger than the configured limit."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaTypeError(EardrumError):
    """The body is neither a form nor JSON."""

    status = 415
    code = "unsupported_media_type"


class CancelledRequestError(EardrumError):
    """The operator of the server cancelled the request. No client repeats a request because of this status."""

    status = 499
    code = "cancelled"


class JobCancelledError(CancelledRequestError):
    """The job was cancelled before this recording ended."""

    code = "batch_cancelled"


class JobExpiredError(EardrumError):
    """The job's time was over before this recording began."""

    status = 408
    code = "batch_expired"


class HeadTooLargeError(EardrumError):
    """Request line and headers are longer than any client's."""

    status = 431
    code = "headers_too_large"


class UnsupportedRouteError(EardrumError):
    """A route of a supported API that this server leaves out on purpose."""

    status = 501
    code = "not_implemented"


class BusyError(EardrumError):
    """The model's queue is full; `retry_after` says when to come back."""

    status = 503
    code = "busy"


class ConcurrencyLimitError(BusyError):
    """The model holds as many requests as llama-swap's `concurrency_limit` lets it."""

    status = 429
    code = "concurrency_limit"


class KeyLimitError(BusyError):
    """The client's key has used up a limit of the config's `api_keys`."""

    status = 429
    code = "rate_limit_exceeded"


class OutOfDescriptorsError(BusyError):
    """This process has as many files and connections open as the system lets it."""

    code = "out_of_descriptors"


class ModelUnloadedError(EardrumError):
    """The model was unloaded by force while the request waited for it, or used it."""

    status = 503
    code = "model_unloaded"


class ModelLoadError(EardrumError):
    """The model could not be loaded: a setting, a file or a library is at fault."""

    status = 500
    code = "model_load_failed"


class DeviceError(ModelLoadError):
    """The device cannot be used: its driver, a library or the library's build is at fault."""

    code = "device_unusable"


class ModelCoolingError(ModelLoadError):
    """The model failed to load a moment ago; the next attempt is at `retry_after`."""

    status = 503


class RunnerCrashedError(EardrumError):
    """The model's process died while it worked on the request."""

    status = 500
    code = "model_crashed"


class RunnerUnavailableError(RunnerCrashedError):
    """A runner on another machine did not take the request: it cannot be reached, or refuses."""


class RunnerTokenError(RunnerUnavailableError):
    """A runner on another machine requires another token than the config has."""


class NoReplicaError(EardrumError):
    """None of the model's replicas answers; the message says what is known of each."""

    status = 503
    code = "no_replica"


class ShuttingDownError(EardrumError):
    """The server is on its way down."""

    status = 503
    code = "shutting_down"


class StorageFullError(EardrumError):
    """The disk has no room for the upload."""

    status = 507
    code = "storage_full"


class PullError(EardrumError):
    """A model could not be fetched; the message says why and what to do."""

    status = 502
    code = "pull_failed"


class HubAccessError(PullError):
    """The hub requires accepted terms, a token, or another one; the message names the setting."""

    status = 403
    code = "hub_access_denied"


class UpstreamError(EardrumError):
    """The server behind a model refuses, fails, or cannot be reached; the message names it and what it said."""

    status = 502
    code = "upstream_failed"


class UpstreamDiedError(RunnerCrashedError):
    """The server behind a model cannot be reached, or broke off."""

    status = 502
    code = "upstream_died"


class UpstreamUnreachableError(UpstreamDiedError):
    """The server behind a model refused the connection: it did not receive the request."""


class UpstreamHungUpError(UpstreamDiedError):
    """The upstream closed a reused connection, perhaps before it received the request."""


class UpstreamTimeoutError(UpstreamError):
    """The server behind a model did not answer in time."""

    status = 504
    code = "upstream_timeout"


class ConfigError(EardrumError):
    """The configuration is wrong; the message names the setting."""

    code = "config_error"
    max_length = 1 << 20  # a line for everything that is wrong in the user's own files


class FileElsewhereError(ConfigError):
    """A file of a job is not on this server, although the jobs' database has its record: another server may have it."""


def sanitize_text(text: str, longest: int) -> str:
    """The text as it can be sent: no longer than this, without logins of addresses, and without halves of characters, which UTF-8
    has no bytes for."""
    more = len(text) - longest
    text = remove_logins(text[: 2 * longest])[:longest]
    if more > 0:
        text = f"{text}... ({more} characters more)"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def remove_logins(text: str) -> str:
    """The text without the logins of the addresses in it."""
    return LOGIN.sub(f"{HIDDEN}@", text) if "@" in text and "://" in text else text


def build_shortage_error(error: OSError, what: str, *, setting: str = "spool_dir") -> EardrumError | None:
    """The error for a client if the system ran out of disk space or file descriptors; `what` names the purpose."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(f"There is no room left {what}: free some space, or set {setting}.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        message = f"No more files can be opened {what}: try again later, or raise the limit of open files (ulimit -n)."
        return OutOfDescriptorsError(message, retry_after=1.0)
    return None


def error_from_json(data: dict[str, Any]) -> EardrumError:
    """The error that `to_json` described; a class this side does not know becomes the base class."""
    classes = {cls.__name__: cls for cls in _list_subclasses(EardrumError)}
    cls = classes.get(str(data.get("error")), EardrumError)
    return cls(str(data.get("message", "")), param=data.get("param"), retry_after=data.get("retry_after"))


def _list_subclasses(cls: type[EardrumError]) -> list[type[EardrumError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _list_subclasses(child))]
