"""The files of a data set: listed once, looked up by the names that annotations give. Used by the readers."""

import posixpath
from collections.abc import Iterable, Sequence

from locray import storage
from locray.errors import UsageError
from locray.names import did_you_mean

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".mpo"})
"""In lower case. By name, since no image is opened to read annotations; what decodes is decided by content."""

USUAL_SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
)
"""What folders of splits are called, in lower case, where nothing else tells them from other folders."""

_NOT_DATA = "__MACOSX"
"""Beside what begins with a dot."""


class MissingSplitError(UsageError):
    """The data has no split of this name."""


def missing_split(data_uri: str, split: str, found: Iterable[str], expected: str) -> MissingSplitError:
    """The error for a split that the data doesn't have; names those found, and the nearest."""
    names = sorted(found)
    if not names:
        return MissingSplitError(f"Found no splits in {data_uri}. Expected: {expected}.")
    has = f"{', '.join(names)}{did_you_mean(split, names)}"
    return MissingSplitError(f"Found no split {split!r} in {data_uri}. It has: {has}")


def list_files(folder_uri: str) -> list[str]:
    """The URIs of all files below a folder, sorted.

    But those that systems and tools leave there: `.DS_Store`, `.ipynb_checkpoints/`, `.git/`, `__MACOSX/`.
    """
    return [uri for uri in storage.list_uris(folder_uri) if _is_data(uri[len(folder_uri) :])]


def _is_data(path: str) -> bool:
    return not any(name.startswith(".") or name == _NOT_DATA for name in path.split("/"))


def below(folder_uri: str, uri: str) -> str:
    """The path of a file from a folder that it lies in."""
    return uri[len(folder_uri) :].lstrip("/")


def ending_of(uri: str) -> str:
    """`.jpg`, in lower case; empty where the name has none."""
    return posixpath.splitext(uri)[1].lower()


def is_image_name(uri: str) -> bool:
    """Whether the name is one of an image; says nothing of the content."""
    return ending_of(uri) in IMAGE_ENDINGS


class ImageFinder:
    """The images of a data set, found by the names in annotations: endings in any case, and Windows' backslashes."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._exact = set(uris)
        self._by_folded: dict[str, str] | None = None

    def find(self, folder_uris: Sequence[str], filename: str) -> str | None:
        """The image in the first of the folders that has it, None where none has."""
        for name in _spellings(filename):
            for folder_uri in folder_uris:
                uri = storage.join(folder_uri, name)
                if uri in self._exact:
                    return uri
        return self._find_folded(folder_uris, filename)

    def locate(self, folder_uris: Sequence[str], name: str) -> str | None:
        """As `find`, but an `s3://` URI, or the absolute path of a file on this machine, is the image itself.

        An object is not looked for: that would take a request each.
        """
        if storage.is_remote(name) or (name.startswith("/") and storage.exists(name)):
            return name
        return self.find(folder_uris, name)

    def _find_folded(self, folder_uris: Sequence[str], filename: str) -> str | None:
        if self._by_folded is None:
            self._by_folded = {}
            for uri in sorted(self._exact):
                self._by_folded.setdefault(_folded(uri), uri)
        candidates = (
            _folded(storage.join(folder_uri, name)) for name in _spellings(filename) for folder_uri in folder_uris
        )
        return next((self._by_folded[name] for name in candidates if name in self._by_folded), None)


def _folded(uri: str) -> str:
    stem, ending = posixpath.splitext(uri)
    return stem + ending.lower()


def _spellings(filename: str) -> list[str]:
    """As written, and with what Windows and shells put there undone; none for an absolute path of another machine."""
    tidy = posixpath.normpath(filename.replace("\\", "/")) if filename else ""
    return list(dict.fromkeys(name for name in (filename, tidy) if name and not name.startswith("/")))
