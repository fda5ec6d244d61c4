"""Errors of deltalake, translated into errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from locray import storage
from locray.errors import StoreAccessError
from locray.storage.errors import store_error


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translates what deltalake raises about the store or the log of the table at the URI.

    Raises:
        CommitFailedError, TableNotFoundError: unchanged; callers handle them.
        StoreError: the store failed, or access is denied.
        StoreAccessError: the table can't be read or written.
    """
    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, OSError) as error:
        if storage.is_remote(uri) and isinstance(error, OSError):
            raise store_error(uri, error) from error
        raise StoreAccessError(
            f"can't use the table at {uri}: {one_line(error)}. Check the permissions of its folder, restore its "
            "_delta_log if it is damaged, or give another --table"
        ) from error


def one_line(error: Exception) -> str:
    """The message of an error without deltalake's backtrace and line breaks."""
    return " ".join(str(error).split("\n   0: ")[0].split())
