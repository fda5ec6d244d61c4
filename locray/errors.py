"""The error tree, the codes of failed images, and the exit codes. Used by every layer.

LocrayError
├── UsageError        exit 2   wrong option, missing folder, denied bucket, no artifact, no dataset
├── FencedError       exit 5   another run has taken over the table's rows of this model
├── ExportError       exit 1   an exported network that does not give its artifact's answers
├── RunStoppedError   exit 1   somebody asked the training to stop; it is saved
├── WorkersFailedError exit 1  workers died again and again
└── StoreError        exit 1   the store does not answer, retries spent
    └── StoreAccessError  exit 2   bucket, key or table that is absent or denied

An image that can't be labelled is never an exception: it is a row with an `ErrorCode`.
"""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What a command tells the shell."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    FAILURE_RATE = 3
    DEFERRED = 4
    FENCED = 5
    CORRUPT = 6
    """Of `verify` and `nightly`: the table or its files are damaged, or rows contradict themselves or their model."""


class ErrorCode(StrEnum):
    """Why an image has no detections: the closed set of the table's `error_code`."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    CHANGED = "changed"
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
"""Said of an image that could not be fetched. Of all images at once, they speak of the store or of our rights."""

MODEL_CODES = frozenset({ErrorCode.MODEL_ERROR, ErrorCode.NON_FINITE})
"""Said of an image that the model has no answer for. Of all images at once, they speak of the model."""


class DeferralCause(StrEnum):
    """Why an image is left to the next run. `STORE_CODES` and `MODEL_CODES` may stand in its place."""

    THROTTLED = "throttled"
    TIMED_OUT = "timed_out"
    DISCONNECTED = "disconnected"
    SERVER_ERROR = "server_error"
    CREDENTIALS = "credentials"
    STORE = "store"
    """Any other trouble of a store or file system."""
    WORKER = "worker"
    """No process to decode it in, or too many, decoders or model workers, that died over its unit."""
    NOT_COMMITTED = "not_committed"
    NOT_TRIED = "not_tried"


class LocrayError(Exception):
    """Base of all errors that locray raises on purpose. The message is for the user.

    It says what was found, what was expected, and what to do.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED


class UsageError(LocrayError):
    """The command can't start as it was given."""

    exit_code = ExitCode.USAGE


class FencedError(LocrayError):
    """Another run has claimed the table for the same model; this one must stop."""

    exit_code = ExitCode.FENCED


class ExportError(LocrayError):
    """An exported network does not give the answers of its artifact; no file was written."""


class RunStoppedError(LocrayError):
    """A training was asked to stop before its end; the same command goes on."""


class WorkersFailedError(LocrayError):
    """Workers died more often than is forgiven: those of a training, or those that load a model to label with."""


class StoreError(LocrayError):
    """The object store or file system failed, and retrying did not help."""


class StoreAccessError(StoreError):
    """A bucket, folder or key is absent or denied. Raised before work starts."""

    exit_code = ExitCode.USAGE
