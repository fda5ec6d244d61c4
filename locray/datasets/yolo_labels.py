"""Which label file of a YOLO data set belongs to which image."""

import posixpath
from collections.abc import Iterable, Sequence

from locray import storage
from locray.datasets.files import extension_of, is_image_name, nfc, relative_path
from locray.datasets.yolo_description import is_class_file
from locray.datasets.yolo_layout import IMAGES, split_of

LABELS = "labels"
EXTENSION = ".txt"

_MIN_FIELDS = 5


class LabelFiles:
    """The label files of a data set: in `labels/` where the images are in `images/`, or beside them."""

    def __init__(self, data_uri: str, uris: Sequence[str]) -> None:
        self._data_uri = data_uri
        self._by_path = {
            self._key(uri): uri for uri in uris if extension_of(uri) == EXTENSION and not is_class_file(uri)
        }
        self._image_uris = [uri for uri in uris if is_image_name(uri)]

    def of_image(self, image_uri: str) -> str | None:
        """The image's label file; None if it has none."""
        stem = self._key(image_uri)
        return next((self._by_path[path] for path in _label_paths(stem) if path in self._by_path), None)

    def without_image(self, split: str, image_uris: Iterable[str]) -> list[str]:
        """Label files of a split that belong to no image of the whole data set.

        They lie in a folder for labels of the split's images or of the split's name; or beside the split's images,
        where other texts lie, too.
        """
        used = {self.of_image(uri) for uri in self._image_uris}
        unused = {path: uri for path, uri in self._by_path.items() if uri not in used}
        if not unused:
            return []
        folders = {posixpath.dirname(self._key(uri)) for uri in image_uris}
        label_folders = _label_folders(folders)
        all_label_folders = _label_folders({posixpath.dirname(self._key(uri)) for uri in self._image_uris})
        found, beside = [], []
        for path, uri in sorted(unused.items()):
            folder = posixpath.dirname(path)
            if LABELS in folder.split("/"):
                named = split_of("/".join(IMAGES if part == LABELS else part for part in path.split("/")))
                if named == split or folder in label_folders or (named is None and folder not in all_label_folders):
                    found.append(uri)
            elif folder in folders:
                beside.append(uri)
        texts = storage.read_all(beside)
        return found + [uri for uri, text in zip(beside, texts, strict=True) if _is_label(text)]

    def _key(self, uri: str) -> str:
        return nfc(posixpath.splitext(relative_path(self._data_uri, uri))[0])


def _label_folders(image_folders: Iterable[str]) -> set[str]:
    return {posixpath.dirname(path) for folder in image_folders for path in _label_paths(f"{folder}/x")}


def _label_paths(stem: str) -> list[str]:
    """Where the labels of an image may be, by their path without extension; the usual place first."""
    parts = stem.strip("/").split("/")
    places = [at for at, part in enumerate(parts[:-1]) if part == IMAGES]
    mirrored = ["/".join([*parts[:at], LABELS, *parts[at + 1 :]]) for at in (places[-1:] + places[:1])]
    folder, name = posixpath.split("/".join(parts))
    elsewhere = ["/".join([LABELS, *parts]), posixpath.join(folder, LABELS, name)]
    flat = [f"{LABELS}/{parts[-1]}"] if places[:1] == [0] else []
    return list(dict.fromkeys([*mirrored, "/".join(parts), *elsewhere, *flat]))


def _is_label(text: bytes) -> bool:
    """Whether the first line begins with numbers, as a box does."""
    fields = next((line.split() for line in text.splitlines() if line.strip()), [])
    try:
        return len([float(value) for value in fields]) >= _MIN_FIELDS
    except ValueError:
        return False
