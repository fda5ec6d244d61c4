"""Bytes at URIs, local, `s3://` or in zip archives. Nothing else of locray opens files or stores."""

from locray.storage.arrow_filesystem import arrow_filesystem
from locray.storage.files import (
    delete,
    exists,
    is_archive,
    open_file,
    open_parquet,
    read_all,
    read_bytes,
    write_bytes,
    write_parquet,
)
from locray.storage.folders import check_readable_folder, delete_folder, folder_exists, list_uris
from locray.storage.s3 import delta_storage_options
from locray.storage.temporary_folder import temporary_folder
from locray.storage.uris import archive_folder, is_in_archive, is_remote, join, local_path, local_uri, normalise

__all__ = [
    "archive_folder",
    "arrow_filesystem",
    "check_readable_folder",
    "delete",
    "delete_folder",
    "delta_storage_options",
    "exists",
    "folder_exists",
    "is_archive",
    "is_in_archive",
    "is_remote",
    "join",
    "list_uris",
    "local_path",
    "local_uri",
    "normalise",
    "open_file",
    "open_parquet",
    "read_all",
    "read_bytes",
    "temporary_folder",
    "write_bytes",
    "write_parquet",
]
