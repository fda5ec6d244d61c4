"""Folders as pyarrow's file systems.

They are native: none of Arrow's threads runs Python code. A process that ends while such a thread still holds a Python
file is aborted, after its last line of output (https://github.com/apache/arrow/issues/34314).
"""

import os

import pyarrow.fs as pa_fs

from locray.storage.s3 import delta_storage_options
from locray.storage.uris import is_remote, local_path, split_s3


def arrow_filesystem(folder_uri: str) -> pa_fs.FileSystem:
    """A file system whose root is a folder or prefix.

    The credentials of a role in it expire within hours: don't keep it.

    Raises:
        StoreAccessError: there are no credentials, or the AWS configuration can't be used.
    """
    if not is_remote(folder_uri):
        return pa_fs.SubTreeFileSystem(os.fspath(local_path(folder_uri)), pa_fs.LocalFileSystem())
    options = delta_storage_options(folder_uri)
    assert options is not None
    scheme, _, host = options.get("AWS_ENDPOINT_URL", "https://").partition("://")
    store = pa_fs.S3FileSystem(
        access_key=options["AWS_ACCESS_KEY_ID"],
        secret_key=options["AWS_SECRET_ACCESS_KEY"],
        session_token=options.get("AWS_SESSION_TOKEN"),
        region=options["AWS_REGION"],
        scheme=scheme,
        endpoint_override=host or None,
    )
    return pa_fs.SubTreeFileSystem("/".join(split_s3(folder_uri)), store)
