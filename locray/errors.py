"""The error tree, the codes of failed images, the exit codes, and spelling hints for messages.

LocrayError
├── UsageError        exit 2   wrong option, missing folder, denied bucket, no artifact, no dataset
├── FencedError       exit 5   another run has claimed the table for the same model
├── ExportError       exit 1   an exported network whose outputs differ from its artifact's
├── RunStoppedError   exit 1   a training was interrupted after saving its state
├── WorkersFailedError exit 1  workers kept failing
└── StoreError        exit 1   the store does not respond, retries exhausted
    └── StoreAccessError  exit 2   a bucket, key or table that is missing or denied

An image that can't be labelled raises nothing: it becomes a row with an `ErrorCode`.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of the commands."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    FAILURE_RATE = 3
    DEFERRED = 4
    FENCED = 5
    CORRUPT = 6
    """`verify` and `nightly`: the table or its files are damaged, or rows are inconsistent."""


class ErrorCode(StrEnum):
    """Why an image could not be labelled: all values of the table's `error_code`."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    CHANGED = "changed"
    ARCHIVED = "archived"
    EMPTY_FILE = "empty_file"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECODER_CRASH = "decoder_crash"
    DECODER_TIMEOUT = "decoder_timeout"
    MODEL_ERROR = "model_error"
    NON_FINITE = "non_finite"


STORE_CODES = frozenset({ErrorCode.NOT_FOUND, ErrorCode.ACCESS_DENIED, ErrorCode.CHANGED})
"""An image could not be fetched. If all images fail this way, the store or its permissions are at fault."""

MODEL_CODES = frozenset({ErrorCode.MODEL_ERROR, ErrorCode.NON_FINITE})
"""The model failed on an image. If all images fail this way, the model is at fault."""


class DeferralCause(StrEnum):
    """Why an image is deferred to the next run, beside `STORE_CODES` and `MODEL_CODES`."""

    THROTTLED = "throttled"
    TIMED_OUT = "timed_out"
    DISCONNECTED = "disconnected"
    SERVER_ERROR = "server_error"
    CREDENTIALS = "credentials"
    STORE = "store"
    """Any other failure of a store or file system."""
    WORKER = "worker"
    """No process could be started to decode it, or too many decoders or model workers died on its unit."""
    NOT_COMMITTED = "not_committed"
    NOT_TRIED = "not_tried"


class LocrayError(Exception):
    """Base class of all errors that locray raises on purpose.

    The message is for the user: what was found, what was expected, and what to do.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED


class UsageError(LocrayError):
    """Invalid options or inputs: the command did not start."""

    exit_code = ExitCode.USAGE


class FencedError(LocrayError):
    """Another run has claimed the table for the same model, so this one must stop."""

    exit_code = ExitCode.FENCED


class ExportError(LocrayError):
    """The outputs of an exported network differ from its artifact's; no file was written."""


class RunStoppedError(LocrayError):
    """A training was interrupted; the same command resumes it."""


class WorkersFailedError(LocrayError):
    """More workers failed than are tolerated, in training or while loading a model to label with."""


class StoreError(LocrayError):
    """The object store or file system failed, and retrying did not help."""


class StoreAccessError(StoreError):
    """A bucket, folder or key is missing or denied. Raised before work starts."""

    exit_code = ExitCode.USAGE


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelled one; None if none is close."""
    matches = get_close_matches(name, sorted(known), n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'resnet18'?`, or an empty string if no known name is close."""
    found = nearest(name, known)
    return f"; did you mean {found!r}?" if found else ""
