"""Places that images are listed from."""

import os

from locray.errors import UsageError, did_you_mean
from locray.sources.folder import FolderSource
from locray.sources.glob import GlobSource, ObjectGlobSource
from locray.sources.inventory import MANIFEST_NAME, InventorySource
from locray.sources.object_store import ObjectStoreSource
from locray.sources.single_file import SingleFileSource
from locray.sources.source import NamedSource, Source
from locray.sources.uri_table import TABLE_SUFFIXES, UriTableSource
from locray.storage import local_path, normalise

__all__ = ["SOURCES", "Source", "open_source"]

SOURCES: dict[str, type[NamedSource]] = {
    "table of URIs": UriTableSource,
    "S3 Inventory": InventorySource,
    "folder": FolderSource,
    "pattern": GlobSource,
    "pattern in an object store": ObjectGlobSource,
    "object store": ObjectStoreSource,
    "file": SingleFileSource,
}
"""All kinds of sources. The first one whose `from_uri` accepts a URI takes it."""

_TABLE_NAMES = ", ".join(f"*{suffix}" for suffix in TABLE_SUFFIXES)


def open_source(images: str, uri_column: str | None = None) -> Source:
    """The source that `--images` names. Makes no request: `Source.check` does.

    Args:
        images: A folder, an `s3://` prefix, a pattern of either, the manifest.json of an S3 Inventory, or a CSV or
            Parquet table of URIs.
        uri_column: The column of the URIs, for a table.

    Raises:
        UsageError: it is none of these.
    """
    uri = normalise(images)
    for kind in SOURCES.values():
        source = kind.from_uri(uri, uri_column)
        if source is None:
            continue
        if uri_column is not None and not isinstance(source, UriTableSource):
            raise UsageError(f"--uri-column is for a table of URIs; {images!r} is none ({_TABLE_NAMES})")
        return source
    raise UsageError(
        f"--images {images!r}: {_describe(local_path(uri))}. Expected a folder, a pattern such as "
        f"'photos/**/*.jpg', an s3://BUCKET/PREFIX, an S3 Inventory's {MANIFEST_NAME}, or a table of image URIs "
        f"({_TABLE_NAMES})"
    )


def _describe(path: str) -> str:
    """Why a local path is no source, with the most similar name that exists."""
    if os.path.lexists(path):
        return "a file that is no table" if os.path.isfile(path) else "neither a file nor a folder"
    folder, name = os.path.split(path)
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    return f"{folder} has no {name!r}{did_you_mean(name, names)}"
