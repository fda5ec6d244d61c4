"""Files of a data set: listed once, and found by the names that annotations give."""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from locray import storage
from locray.errors import UsageError, did_you_mean

Files = TypeVar("Files")

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".mpo"}
)
"""In lower case. Images are recognised by name, since none is opened to read annotations."""

SPLIT_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
)
"""Usual names of splits, in lower case: a folder of this name is a split where nothing else says so."""

_LONGER_SPLIT_NAME = re.compile(rf"({'|'.join(SPLIT_NAMES)})[-_ ]?(\d+|set|data|list|images?|imgs?|split)?")
"""With a year or a word, such as train2017 or val_set."""

SPLIT_ALIASES: Mapping[str, Sequence[str]] = {
    "train": ("training",),
    "val": ("valid", "validation"),
    "test": ("testing",),
}
"""Names that other tools give to splits; used if the data has no split of our name."""

_SYSTEM_FOLDER = "__MACOSX"


def is_split_name(name: str) -> bool:
    """Whether a folder or a list of this name is a split: a usual name, or one with a year or a word after it."""
    return _LONGER_SPLIT_NAME.fullmatch(name.lower()) is not None


def canonical_split(name: str) -> str:
    """Our name of a split that other tools call `valid`, `Training` and so on; other names as they are."""
    folded = name.lower()
    return next((usual for usual, others in SPLIT_ALIASES.items() if folded == usual or folded in others), name)


class MissingSplitError(UsageError):
    """The data has no split of this name."""


def missing_split(data_uri: str, split: str, found: Iterable[str], expected: str) -> MissingSplitError:
    """The error for a split that is not there; the message names those found, and the nearest."""
    names = sorted(found)
    if not names:
        return MissingSplitError(f"Found no splits in {data_uri}. Expected: {expected}.")
    has = f"{', '.join(names)}{did_you_mean(split, names)}"
    return MissingSplitError(f"Found no split {split!r} in {data_uri}. It has: {has}")


def choose_split(found: Mapping[str, Files], split: str, data_uri: str, expected: str) -> Files:
    """The files of one split.

    Raises:
        MissingSplitError: there is no such split.
    """
    if split not in found:
        raise missing_split(data_uri, split, found, expected)
    return found[split]


def list_files(folder_uri: str) -> list[str]:
    """The URIs of all files under a folder, sorted, without hidden files and `__MACOSX/`."""
    return [uri for uri in storage.list_uris(folder_uri) if _is_data(uri[len(folder_uri) :])]


def _is_data(path: str) -> bool:
    return not any(name.startswith(".") or name == _SYSTEM_FOLDER for name in path.split("/"))


def relative_path(folder_uri: str, uri: str) -> str:
    """The path of a file relative to a folder above it."""
    return uri[len(folder_uri) :].lstrip("/")


def extension_of(uri: str) -> str:
    """File extension in lower case, with its dot; empty if there is none."""
    return posixpath.splitext(uri)[1].lower()


def is_image_name(uri: str) -> bool:
    """Whether the extension is that of an image."""
    return extension_of(uri) in IMAGE_EXTENSIONS


def nfc(name: str) -> str:
    """A name in Unicode's composed form (NFC). macOS writes file names decomposed, most annotation tools composed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(uri: str) -> str:
    """A path as it is compared: its extension in lower case, Unicode composed."""
    stem, ending = posixpath.splitext(uri)
    return nfc(stem + ending.lower())


class ImageFinder:
    """Finds images by the names in annotations: extensions in any case, backslashes as slashes, Unicode in any form."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._exact = set(uris)
        self._by_folded: dict[str, str] | None = None

    def find(self, folder_uris: Sequence[str], filename: str) -> str | None:
        """The image in the first of the folders that has it; None if none has."""
        for name in _spellings(filename):
            for folder_uri in folder_uris:
                uri = storage.join(folder_uri, name)
                if uri in self._exact:
                    return uri
        return self._find_folded(folder_uris, filename)

    def find_or_absolute(self, folder_uris: Sequence[str], name: str) -> str | None:
        """Like `find`, but an `s3://` URI or the absolute path of an existing file is returned as it is.

        Whether an object exists is not checked: that would take one request per image.
        """
        if storage.is_remote(name) or (name.startswith("/") and storage.exists(name)):
            return name
        return self.find(folder_uris, name)

    def _find_folded(self, folder_uris: Sequence[str], filename: str) -> str | None:
        if self._by_folded is None:
            self._by_folded = {}
            for uri in sorted(self._exact):
                self._by_folded.setdefault(folded(uri), uri)
        candidates = (
            folded(storage.join(folder_uri, name)) for name in _spellings(filename) for folder_uri in folder_uris
        )
        return next((self._by_folded[name] for name in candidates if name in self._by_folded), None)


def _spellings(filename: str) -> list[str]:
    """The name as written, and normalised; none for the absolute path of a file on another machine."""
    tidy = posixpath.normpath(filename.replace("\\", "/")) if filename else ""
    return list(dict.fromkeys(name for name in (filename, tidy) if name and not name.startswith("/")))
