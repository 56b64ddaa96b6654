"""The error tree. Every error carries a stable `code`; nobody matches on message text.

HTTP status is the server's business (`server/problem.py`); across a process border an error travels as
`{code, message, retryable}` (`wire.Error`), never as a pickled exception.
"""

import re
from typing import ClassVar

EXIT_BAD_CONFIG = 78  # sysexits.h EX_CONFIG: the supervisor never restarts a child that ends with it
EXIT_PART_MISSING = 69  # sysexits.h EX_UNAVAILABLE: nor with this one


# User and password of an address, with or without its scheme, as a proxy or endpoint setting may hold them.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+@|[^/\s:@'\"]+:[^/\s@'\"]+@(?=[\w.\[-])")


def redact(text: str) -> str:
    """The text without the credentials of addresses in it: for whatever is shown, logged or sent."""
    return _CREDENTIALS.sub("***@", text) if "@" in text else text


class SidecarError(Exception):
    """Base of all errors of ours.

    Attributes:
        code: stable identifier, snake_case, part of the public contract.
        message: one line that names the thing and, where there is one, the cure; without credentials.
        retryable: whether the same request may succeed when sent again unchanged.
        retry_after_s: seconds after which a retry makes sense, or None.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class ConfigError(SidecarError):
    """A setting or command line cannot be obeyed."""

    code = "config_invalid"


class InputError(SidecarError):
    """The request's content cannot be processed; sending it again will not help. `field` is the one to blame."""

    code = "invalid_input"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.field = field


class VoiceNotFoundError(InputError):
    """No usable model speaks with this voice; the message names some that there are."""

    code = "voice_not_found"


class NoTimingsError(InputError):
    """This voice model does not tell when its words and phonemes are heard; the message names one that does."""

    code = "timings_not_told"


class PoisonInputError(InputError):
    """This very input has crashed its runner repeatedly and is refused without being tried."""

    code = "poison_input"


class AudioError(InputError):
    """What was sent as audio cannot be decoded, or holds no sound."""

    code = "invalid_audio"


class AudioTooLongError(InputError):
    """The audio is longer than one request may be."""

    code = "audio_too_long"


class AudioNotFoundError(InputError):
    """`audio_path` names no file that may be read."""

    code = "audio_not_found"


class BadRequestError(SidecarError):
    """The request's head contradicts itself."""

    code = "bad_request"


class UnsupportedEncodingError(SidecarError):
    """The body is packed in a way that is not read here."""

    code = "unsupported_encoding"


class BodyTooLargeError(SidecarError):
    """The request body is over the route's limit."""

    code = "body_too_large"


class BodyTimeoutError(SidecarError):
    """The request body did not arrive in time."""

    code = "body_timeout"
    retryable = True


class UnauthorizedError(SidecarError):
    """The token is missing or wrong."""

    code = "unauthorized"


class ForbiddenError(SidecarError):
    """Host or Origin is not on the allow-list."""

    code = "forbidden"


class ModelNotFoundError(SidecarError):
    """No catalogue entry has this id."""

    code = "model_not_found"


class ModelUnavailableError(SidecarError):
    """The model is known but cannot answer now; the message says why and what to do."""

    code = "model_unavailable"


class ModelUnsupportedError(ModelUnavailableError):
    """The model is known and can never answer here: this version has nothing to run it with."""

    code = "model_unsupported"


class ModelLoadError(ModelUnavailableError):
    """The runner could not load the model."""

    code = "model_load_failed"


class OptimiseError(SidecarError):
    """A model could not be turned into a faster one; it stays as it is."""

    code = "optimise_failed"


class ProfileMissingError(ModelLoadError):
    """The environment that the model's runner needs is not there, not finished or not of this version."""

    code = "profile_missing"


class EnvironmentBrokenError(ModelLoadError):
    """The runner's environment lacks a module, or one in it cannot be imported."""

    code = "environment_broken"


class ProfileNotFoundError(SidecarError):
    """There is no profile of this name."""

    code = "profile_not_found"


class ProfileNeededError(SidecarError):
    """The profile cannot be removed: everything runs in it."""

    code = "profile_needed"


class ProfileBusyError(SidecarError):
    """The profile is being installed or removed: one after the other."""

    code = "profile_busy"
    retryable = True


class ProfileError(SidecarError):
    """The launcher could not make or remove an environment; the message is its own."""

    code = "profile_failed"


class OverloadedError(SidecarError):
    """The model's queue is full; `retry_after_s` is computed from queue length and service time."""

    code = "overloaded"
    retryable = True


class RateLimitedError(SidecarError):
    """The client has sent more requests than the user's limit; `retry_after_s` is when the next one may come."""

    code = "rate_limited"
    retryable = True


class DownloadError(SidecarError):
    """A model could not be fetched; what arrived is kept and the next try goes on from there."""

    code = "download_failed"
    retryable = True


class OfflineError(DownloadError):
    """The hub cannot be reached, or the user forbids it (`HF_HUB_OFFLINE`)."""

    code = "offline"


class DownloadCancelledError(DownloadError):
    """Somebody asked for the download to stop."""

    code = "download_cancelled"


class HashMismatchError(DownloadError):
    """Size or hash of a file is not what catalogue or lock say; the file has been thrown away."""

    code = "hash_mismatch"
    retryable = False


class RevisionNotFoundError(DownloadError):
    """The hub does not have this repository, revision or file."""

    code = "revision_not_found"
    retryable = False


class AccessDeniedError(DownloadError):
    """The hub wants a token, or its owner's conditions accepted."""

    code = "access_denied"
    retryable = False


class LicenceRequiredError(DownloadError):
    """The user has to agree to the licence first."""

    code = "licence_required"
    retryable = False


class PickleRefusedError(DownloadError):
    """A pickle can run code when it is loaded; it is refused unless the user allows that very file."""

    code = "pickle_refused"
    retryable = False


class DiskFullError(DownloadError):
    """The volume of the cache has no room for the model."""

    code = "disk_full"
    retryable = False


class CacheReadOnlyError(DownloadError):
    """The cache or data folder cannot be written."""

    code = "cache_read_only"
    retryable = False


class RunnerCrashedError(SidecarError):
    """The runner died while this request was with it, and so did its retry."""

    code = "runner_crashed"
    retryable = True


class RunnerTimeoutError(SidecarError):
    """The runner gave no sign of life in time and was ended."""

    code = "runner_timeout"
    retryable = True


class OutOfMemoryError(SidecarError):
    """The runner passed its memory limit and was ended, or an allocation in it failed."""

    code = "out_of_memory"
    retryable = True


class InferenceError(SidecarError):
    """The model raised on this input."""

    code = "inference_failed"


class ShuttingDownError(SidecarError):
    """The server is stopping and takes no new work."""

    code = "shutting_down"
    retryable = True


class WireError(SidecarError):
    """A peer sent bytes that are not the wire protocol."""

    code = "wire_protocol"


def _tree(root: type[SidecarError]) -> list[type[SidecarError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[SidecarError]] = {cls.code: cls for cls in _tree(SidecarError)}


def from_wire(code: str, message: str) -> SidecarError:
    """Rebuild the error that a runner reported; an unknown code becomes InferenceError."""
    return BY_CODE.get(code, InferenceError)(message)
