"""What deltalake raises, as errors that a user can act on. Used by whatever touches the table."""

from collections.abc import Iterator
from contextlib import contextmanager

from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from locray import storage
from locray.errors import StoreAccessError
from locray.storage.s3_errors import store_error


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Raises what deltalake raises of a store or of a damaged log, at the table of the URI, as an error for the user.

    Raises:
        CommitFailedError, TableNotFoundError: as they are: they are answers, which the callers read.
        StoreError: the store failed, or access is denied.
        StoreAccessError: the table can't be read or written to.
    """
    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, OSError) as error:
        if storage.is_remote(uri) and isinstance(error, OSError):
            raise store_error(uri, error) from error
        raise StoreAccessError(
            f"the table at {uri} can't be used: {in_one_line(error)}. Make its folder accessible if it is not, "
            "restore its _delta_log if that is damaged, or give another --table"
        ) from error


def in_one_line(error: Exception) -> str:
    """The message without the backtrace and the line breaks that deltalake puts into it."""
    return " ".join(str(error).split("\n   0: ")[0].split())
