"""Errors of stores and file systems, and their messages for users.

Types decide where they can. But obstore has one type for all failures that are no answer about an object, and one for
denied objects and wrong credentials; deltalake raises `OSError` for everything. Both are built on one Rust library,
whose messages hold the store's error code and the HTTP status; pyarrow's hold the AWS SDK's name of the error. The
messages also hold access keys and signed requests, so no message for users repeats the text.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from http import HTTPStatus

import botocore.exceptions
import obstore.exceptions

from locray.errors import StoreAccessError, StoreError
from locray.storage.uris import S3_SCHEME, is_remote, split_s3


class ErrorKind(StrEnum):
    """Why a request failed."""

    NO_OBJECT = "no_object"
    NO_BUCKET = "no_bucket"
    DENIED = "denied"
    ARCHIVED = "archived"
    CREDENTIALS = "credentials"
    CHANGED = "changed"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    THROTTLED = "throttled"
    SERVER_ERROR = "server_error"
    OTHER = "other"


S3_ERRORS = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    obstore.exceptions.BaseError,
    FileNotFoundError,
)
"""What boto3 and obstore raise for a request."""

_KIND_BY_CODE = {
    "AccessDenied": ErrorKind.DENIED,
    "InternalError": ErrorKind.SERVER_ERROR,
    "InternalFailure": ErrorKind.SERVER_ERROR,
    "NoSuchKey": ErrorKind.NO_OBJECT,
    "KeyTooLongError": ErrorKind.NO_OBJECT,
    "NoSuchBucket": ErrorKind.NO_BUCKET,
    "PreconditionFailed": ErrorKind.CHANGED,
    "InvalidObjectState": ErrorKind.ARCHIVED,
    "InvalidRequest": ErrorKind.DENIED,  # the object is encrypted with a key that only its owner has
    "RequestTimeout": ErrorKind.TIMED_OUT,
    **dict.fromkeys(
        (
            "AuthorizationHeaderMalformed",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "InvalidToken",
            "RequestExpired",
            "RequestTimeTooSkewed",
            "SignatureDoesNotMatch",
            "TokenRefreshRequired",
        ),
        ErrorKind.CREDENTIALS,
    ),
    **dict.fromkeys(
        (
            "RequestLimitExceeded",
            "ServiceUnavailable",
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "TooManyRequestsException",
        ),
        ErrorKind.THROTTLED,
    ),
}
_KMS_PREFIX = "KMS."
"""Errors of AWS KMS, with whose key the object is encrypted."""
_KIND_BY_STATUS: dict[int, ErrorKind] = {
    HTTPStatus.BAD_REQUEST: ErrorKind.DENIED,
    HTTPStatus.UNAUTHORIZED: ErrorKind.CREDENTIALS,
    HTTPStatus.FORBIDDEN: ErrorKind.DENIED,
    HTTPStatus.NOT_FOUND: ErrorKind.NO_OBJECT,
    HTTPStatus.METHOD_NOT_ALLOWED: ErrorKind.DENIED,
    HTTPStatus.GONE: ErrorKind.NO_OBJECT,
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS: ErrorKind.DENIED,
    HTTPStatus.REQUEST_TIMEOUT: ErrorKind.TIMED_OUT,
    HTTPStatus.PRECONDITION_FAILED: ErrorKind.CHANGED,
    HTTPStatus.TOO_MANY_REQUESTS: ErrorKind.THROTTLED,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorKind.THROTTLED,
}
_KIND_BY_TYPE: dict[type[Exception], ErrorKind] = {
    FileNotFoundError: ErrorKind.NO_OBJECT,
    obstore.exceptions.PermissionDeniedError: ErrorKind.DENIED,
    obstore.exceptions.PreconditionError: ErrorKind.CHANGED,
    obstore.exceptions.UnauthenticatedError: ErrorKind.CREDENTIALS,
    botocore.exceptions.ConfigNotFound: ErrorKind.CREDENTIALS,
    botocore.exceptions.ConnectTimeoutError: ErrorKind.TIMED_OUT,
    botocore.exceptions.CredentialRetrievalError: ErrorKind.CREDENTIALS,
    botocore.exceptions.NoCredentialsError: ErrorKind.CREDENTIALS,
    # The only parameter of ours that botocore validates is the bucket's name.
    botocore.exceptions.ParamValidationError: ErrorKind.NO_BUCKET,
    botocore.exceptions.PartialCredentialsError: ErrorKind.CREDENTIALS,
    botocore.exceptions.ProfileNotFound: ErrorKind.CREDENTIALS,
    botocore.exceptions.ReadTimeoutError: ErrorKind.TIMED_OUT,
    botocore.exceptions.SSOError: ErrorKind.CREDENTIALS,
    botocore.exceptions.TokenRetrievalError: ErrorKind.CREDENTIALS,
}
_MESSAGES = {
    ErrorKind.NO_OBJECT: "{uri} does not exist{answer}: check its name",
    ErrorKind.NO_BUCKET: "there is no bucket {bucket}{answer}: check its name, and AWS_ENDPOINT_URL",
    ErrorKind.DENIED: (
        "access to {uri} is denied{answer}: the credentials in use need s3:ListBucket on the bucket and s3:GetObject "
        "(to write: s3:PutObject, s3:DeleteObject) on its objects"
    ),
    ErrorKind.ARCHIVED: "{uri} is archived{answer}: restore it from its storage class first",
    ErrorKind.CREDENTIALS: (
        "no valid AWS credentials to reach {uri}{answer}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
        "AWS_PROFILE, or run where an instance role applies; `aws sts get-caller-identity` shows what is found"
    ),
    ErrorKind.CHANGED: "{uri} was replaced while it was read: try again",
    ErrorKind.UNREACHABLE: "the store of {uri} does not answer{host}: check AWS_ENDPOINT_URL and the network",
    ErrorKind.TIMED_OUT: "the store of {uri} did not answer in time{host}: check AWS_ENDPOINT_URL and the network",
}
_FAILED = "the store failed at {uri}{answer}, retries exhausted: try again later"
_NEED_THE_USER = {
    ErrorKind.NO_OBJECT,
    ErrorKind.NO_BUCKET,
    ErrorKind.DENIED,
    ErrorKind.ARCHIVED,
    ErrorKind.CREDENTIALS,
}

_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_ARROW_ERROR = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d{3})\))? during")
_NO_RESPONSE = {"NetworkConnection", "Unknown"}
_TIMEOUT = re.compile(r"timed out|kind: Timeout")
_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([^/\s\"]+)")
_BRANCH = re.compile(r"\n\s*\x1b\[\d+m↳\x1b\[\d+m")  # deltalake draws nested messages as a tree for a terminal


def error_kind(error: Exception) -> ErrorKind:
    """Why the request of boto3, obstore, deltalake or pyarrow failed that raised this error."""
    code, status = _response(error)
    if code in _KIND_BY_CODE:
        return _KIND_BY_CODE[code]
    if code is not None and code.startswith(_KMS_PREFIX):
        return ErrorKind.THROTTLED if "Throttl" in code else ErrorKind.DENIED
    for type_, kind in _KIND_BY_TYPE.items():
        if isinstance(error, type_):
            return kind
    if status is not None:
        is_server_error = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return _KIND_BY_STATUS.get(status, ErrorKind.SERVER_ERROR if is_server_error else ErrorKind.OTHER)
    return ErrorKind.TIMED_OUT if _TIMEOUT.search(str(error)) else ErrorKind.UNREACHABLE


def response_code(error: Exception) -> str | None:
    """The S3 error code or HTTP status of the store's response; None without a response. Holds no secret."""
    code, status = _response(error)
    return code or (str(status) if status else None)


def _response(error: Exception) -> tuple[str | None, int | None]:
    """S3 error code and HTTP status of the store's response, where there are any."""
    if isinstance(error, botocore.exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return error.response.get("Error", {}).get("Code") or None, status or None
    arrow = _ARROW_ERROR.search(str(error))
    if arrow:  # the names are those of the AWS SDK for C++: SLOW_DOWN for SlowDown
        name = arrow[1].title().replace("_", "")
        return None if name in _NO_RESPONSE else name, int(arrow[2]) if arrow[2] else None
    text = _BRANCH.sub(":", str(error))
    code, status = _CODE.search(text), _STATUS.search(text)
    return code and code[1], int(status[1]) if status else None


def store_error(uri: str, error: Exception) -> StoreError:
    """The error to raise for an error of a store at `uri`: what to do, and nothing secret."""
    kind = error_kind(error)
    code, host = response_code(error), _HOST.search(str(error))
    message = _MESSAGES.get(kind, _FAILED).format(
        uri=uri,
        bucket=S3_SCHEME + split_s3(uri)[0],
        answer=f" (the store answered {code})" if code else "",
        host=f" at {host[1]}" if host else "",
    )
    return StoreAccessError(message) if kind in _NEED_THE_USER else StoreError(message)


def local_error(uri: str, error: OSError) -> StoreError:
    """The error to raise for an error of the file system at `uri`: what to do."""
    if isinstance(error, FileNotFoundError):
        return StoreAccessError(f"{uri} does not exist: check the path")
    if isinstance(error, PermissionError):
        return StoreAccessError(f"permission denied at {uri}: check who owns it and its mode")
    if isinstance(error, IsADirectoryError):
        return StoreAccessError(f"{uri} is a folder: expected a file")
    if isinstance(error, NotADirectoryError):
        return StoreAccessError(f"{uri}: a part of this path is a file, not a folder")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreError(f"{uri} can't be written: no space is left on its disk. Free some and run the command again")
    return StoreError(f"{uri} can't be used: {error.strerror or error}")


def request_failed(error: Exception) -> bool:
    """Whether pyarrow's error comes from a request to S3, rather than from the content of a file."""
    return _ARROW_ERROR.search(str(error)) is not None


@contextmanager
def translate_io_errors(uri: str) -> Iterator[None]:
    """Raises errors of boto3, obstore and the file system as those for the user, at a file or object.

    Raises:
        StoreAccessError: it is absent, or access is denied.
        StoreError: the store failed, retries exhausted.
    """
    if is_remote(uri):
        try:
            yield
        except S3_ERRORS as error:
            raise store_error(uri, error) from error
    else:
        try:
            yield
        except OSError as error:
            raise local_error(uri, error) from error
