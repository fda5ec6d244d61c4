"""What boto3, obstore and deltalake raise, sorted by what it means for us. Used by whatever sends requests to S3.

Messages for users are built here from the store's error code: the full texts hold access keys and signed requests.
"""

import re
from enum import StrEnum

import botocore.exceptions
import obstore.exceptions

from locray.errors import StoreAccessError, StoreError
from locray.storage.uris import S3_SCHEME, split_s3


class ErrorKind(StrEnum):
    """What went wrong with a request, as far as it makes a difference to us."""

    NO_OBJECT = "no_object"
    NO_BUCKET = "no_bucket"
    DENIED = "denied"
    CREDENTIALS = "credentials"
    CHANGED = "changed"
    UNREACHABLE = "unreachable"
    UNAVAILABLE = "unavailable"


_KIND_BY_CODE = {
    "NoSuchKey": ErrorKind.NO_OBJECT,
    "KeyTooLongError": ErrorKind.NO_OBJECT,
    "NoSuchBucket": ErrorKind.NO_BUCKET,
    "PreconditionFailed": ErrorKind.CHANGED,
    "InvalidRequest": ErrorKind.DENIED,  # the object is encrypted with a key that only its owner has
} | dict.fromkeys(
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
)
_KIND_BY_STATUS = {
    401: ErrorKind.CREDENTIALS,
    403: ErrorKind.DENIED,
    404: ErrorKind.NO_OBJECT,
    412: ErrorKind.CHANGED,
}
_CREDENTIAL_ERRORS = (
    botocore.exceptions.ConfigNotFound,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
    obstore.exceptions.UnauthenticatedError,
)
S3_ERRORS = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    obstore.exceptions.BaseError,
    FileNotFoundError,
)
"""What boto3 and obstore raise for a request; `error_kind` takes each of them."""

_CODE_IN_TEXT = re.compile(r"<Code>(\w+)</Code>")
_STATUS_IN_TEXT = re.compile(r"non-2xx status code[:\s↳]*(\d{3})")
_COLOUR_IN_TEXT = re.compile(r"\x1b\[\d*m")  # deltalake draws its errors as a tree for a terminal


def response_code(error: Exception) -> str | None:
    """The S3 error code or HTTP status in an error of one of the three; holds no secret, unlike the full text."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) or None
    text = _text(error)
    found = _CODE_IN_TEXT.search(text) or _STATUS_IN_TEXT.search(text)
    return found[1] if found else None


def error_kind(error: Exception) -> ErrorKind:
    """Sorts an error of boto3, obstore or deltalake."""
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ErrorKind.CREDENTIALS
    code = response_code(error)
    if code in _KIND_BY_CODE:
        return _KIND_BY_CODE[code]
    status = http_status(error)
    if status is not None:
        return _KIND_BY_STATUS.get(status, ErrorKind.UNAVAILABLE)
    if isinstance(error, FileNotFoundError):
        return ErrorKind.NO_OBJECT
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return ErrorKind.NO_BUCKET  # the only parameter of ours that botocore validates is the bucket's name
    return ErrorKind.UNREACHABLE


def http_status(error: Exception) -> int | None:
    """The HTTP status in an error of one of the three."""
    if isinstance(error, botocore.exceptions.ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    found = _STATUS_IN_TEXT.search(_text(error))
    return int(found[1]) if found else None


def _text(error: Exception) -> str:
    return _COLOUR_IN_TEXT.sub("", str(error))


_MESSAGES = {
    ErrorKind.NO_OBJECT: "{uri} does not exist{answer}: check its name",
    ErrorKind.NO_BUCKET: "there is no bucket {bucket}{answer}: check its name, and AWS_ENDPOINT_URL",
    ErrorKind.DENIED: (
        "access to {uri} is denied{answer}: the credentials in use need s3:ListBucket on the bucket and s3:GetObject "
        "(to write: s3:PutObject, s3:DeleteObject) on its objects"
    ),
    ErrorKind.CREDENTIALS: (
        "no valid AWS credentials to reach {uri}{answer}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
        "AWS_PROFILE, or run where an instance role applies; `aws sts get-caller-identity` shows what is found"
    ),
    ErrorKind.CHANGED: "{uri} was replaced while it was read: try again",
    ErrorKind.UNREACHABLE: "the store of {uri} does not answer{host}: check AWS_ENDPOINT_URL and the network",
    ErrorKind.UNAVAILABLE: "the store failed at {uri}{answer}, retries exhausted: try again later",
}
_NEEDS_THE_USER = {ErrorKind.NO_OBJECT, ErrorKind.NO_BUCKET, ErrorKind.DENIED, ErrorKind.CREDENTIALS}

_HOST_IN_TEXT = re.compile(r"https?://(?:[^/@\s]*@)?([^/\s\"]+)")


def store_error(uri: str, error: Exception) -> StoreError:
    """The error to raise for what boto3, obstore or deltalake raised at `uri`; says what to do, and nothing secret."""
    trouble = error_kind(error)
    code, host = response_code(error), _HOST_IN_TEXT.search(str(error))
    message = _MESSAGES[trouble].format(
        uri=uri,
        bucket=S3_SCHEME + split_s3(uri)[0],
        answer=f" (the store answered {code})" if code else "",
        host=f" at {host[1]}" if host else "",
    )
    return StoreAccessError(message) if trouble in _NEEDS_THE_USER else StoreError(message)
