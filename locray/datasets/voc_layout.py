"""Where the images and annotations of a Pascal VOC data set lie, by split."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from locray import storage
from locray.datasets.fields import decode_text
from locray.datasets.files import IMAGE_EXTENSIONS, is_image_name, list_files, nfc, relative_path

XML_EXTENSION = ".xml"
LIST_EXTENSION = ".txt"

_NOT_IMAGES = frozenset({".txt", ".json", ".csv"})
_CLASS_MARK = re.compile(r"\s+(-1|0|1)$")


@dataclass(frozen=True)
class VocImages:
    """Images by id: their path below the folder of images, in NFC and without extension."""

    uris_by_id: Mapping[str, Sequence[str]]

    def find(self, image_id: str, filename: str | None) -> str | None:
        """The image with this id, or the one that the annotation names; of several, the named one."""
        same_id = self.uris_by_id.get(image_id)
        if same_id:
            return _preferred(same_id, filename)
        return self.find_named(image_id, filename) or self._in_any_folder(posixpath.basename(image_id), filename)

    def find_named(self, image_id: str, filename: str | None) -> str | None:
        """The image that the annotation names: in its own folder, at the top, or the only one in any folder."""
        name = _base_name(filename)
        stem = posixpath.splitext(name)[0]
        for named_id in (posixpath.join(posixpath.dirname(image_id), stem), stem):
            if stem and named_id in self.uris_by_id:
                return _preferred(self.uris_by_id[named_id], filename)
        return self._in_any_folder(stem, filename)

    def _in_any_folder(self, stem: str, filename: str | None) -> str | None:
        ids = self._ids_by_stem.get(stem, ())
        return _preferred(self.uris_by_id[ids[0]], filename) if len(ids) == 1 else None

    @cached_property
    def _ids_by_stem(self) -> Mapping[str, Sequence[str]]:
        ids: defaultdict[str, list[str]] = defaultdict(list)
        for image_id in self.uris_by_id:
            ids[posixpath.basename(image_id)].append(image_id)
        return ids


@dataclass(frozen=True)
class VocSplit:
    """The files of a split.

    Attributes:
        ids: Ids of the split's annotations by URI: the path below the folder of annotations, as for `VocImages`.
        images: Images that annotations of the split may belong to.
        ids_without_annotation: Ids that are listed, or are those of images in the split's folder.
        repeated_ids: Listed once more.
        unlisted: Annotations that the list of the split does not name.
    """

    ids: Mapping[str, str]
    images: VocImages
    ids_without_annotation: Sequence[str]
    repeated_ids: Sequence[str] = ()
    unlisted: Mapping[str, str] | None = None

    @property
    def annotation_uris(self) -> list[str]:
        """Of the split."""
        return list(self.ids)

    @property
    def unlisted_annotation_uris(self) -> list[str]:
        """Not named by the list of the split."""
        return list(self.unlisted or {})

    def id_of(self, annotation_uri: str) -> str:
        """Id of an annotation."""
        return self.ids.get(annotation_uri) or (self.unlisted or {})[annotation_uri]


def split_names(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted(_split_lists(data_uri) or _folder_splits(data_uri))


def find_split(data_uri: str, split: str) -> VocSplit | None:
    """The files of a split; None if there is no such split."""
    return _listed_split(data_uri, split) or _folder_split(data_uri, split)


def _preferred(uris: Sequence[str], filename: str | None) -> str:
    name = _base_name(filename)
    return next((uri for uri in uris if nfc(posixpath.basename(uri)) == name), uris[0])


def _base_name(filename: str | None) -> str:
    return nfc(re.split(r"[/\\]", filename or "")[-1])


def _files_by_id(folder_uri: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """XML files and images of a folder, by id."""
    annotations: dict[str, str] = {}
    images: defaultdict[str, list[str]] = defaultdict(list)
    for uri in list_files(folder_uri):
        image_id, ending = posixpath.splitext(nfc(relative_path(folder_uri, uri)))
        if ending.lower() == XML_EXTENSION:
            annotations[image_id] = uri
        elif ending.lower() not in _NOT_IMAGES:
            images[image_id].append(uri)
    return annotations, dict(images)


def _listed_split(data_uri: str, split: str) -> VocSplit | None:
    """The split that `ImageSets/Main/<split>.txt` lists."""
    lines = _split_lists(data_uri).get(split)
    if lines is None:
        return None
    annotations, _ = _files_by_id(storage.join(data_uri, "Annotations"))
    _, images = _files_by_id(storage.join(data_uri, "JPEGImages"))
    counts = Counter(_listed_id(nfc(line), annotations, images) for line in lines)
    listed = {annotations[image_id]: image_id for image_id in counts if image_id in annotations}
    missing = [image_id for image_id in counts if image_id not in annotations]
    return VocSplit(
        ids=listed,
        images=VocImages(images),
        ids_without_annotation=missing,
        repeated_ids=[image_id for image_id, times in counts.items() for _ in range(times - 1)],
        unlisted={uri: image_id for image_id, uri in annotations.items() if uri not in listed},
    )


def _listed_id(line: str, *known: Collection[str]) -> str:
    """The id that a line of a list gives: an id may itself end in " 1", or be written as the path of a file."""
    without_mark = _CLASS_MARK.sub("", line)
    for name in (line, without_mark):
        stem, ending = posixpath.splitext(name.replace("\\", "/"))
        path = stem if ending.lower() in IMAGE_EXTENSIONS | {XML_EXTENSION} else name
        parts = path.split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        for image_id in (name, *tails):
            if any(image_id in ids for ids in known):
                return image_id
    return without_mark


def _folder_split(data_uri: str, split: str) -> VocSplit | None:
    """The split in a folder of images and XML files."""
    if split not in _folder_splits(data_uri):
        return None
    for folder_uri in (storage.join(data_uri, "images", split), storage.join(data_uri, split)):
        annotations, images = _files_by_id(folder_uri)
        if annotations and images:
            without = [image_id for image_id in images if image_id not in annotations]
            return VocSplit(
                ids={uri: image_id for image_id, uri in annotations.items()},
                images=VocImages(images),
                ids_without_annotation=[one for one in without if any(map(is_image_name, images[one]))],
            )
    return None


def _split_lists(data_uri: str) -> dict[str, list[str]]:
    """The lines of every list in ImageSets/Main that is no list of a single class, by split.

    The list of a class marks every image with -1, 0 or 1, and is named `<class>_<split>` after a list that exists.
    """
    folder_uri = storage.join(data_uri, "ImageSets", "Main")
    uris = [uri for uri in list_files(folder_uri) if uri.lower().endswith(LIST_EXTENSION)]
    names = [relative_path(folder_uri, uri)[: -len(LIST_EXTENSION)] for uri in uris]
    lines = [
        [line.strip() for line in decode_text(data, uri).splitlines()]
        for uri, data in zip(uris, storage.read_all(uris), strict=True)
    ]
    lists = {name: [line for line in of_one if line] for name, of_one in zip(names, lines, strict=True)}
    return {
        name: of_one
        for name, of_one in lists.items()
        if not (any(name.endswith(f"_{other}") for other in lists) and all(map(_CLASS_MARK.search, of_one)))
    }


def _folder_splits(data_uri: str) -> set[str]:
    """Names of the folders `<split>/` and `images/<split>/` that hold both XML files and others, at any depth."""
    return {folder for folder, kinds in _kinds_by_folder(data_uri, list_files(data_uri)) if kinds == {True, False}}


def _kinds_by_folder(data_uri: str, uris: Iterable[str]) -> Iterable[tuple[str, set[bool]]]:
    """Whether each folder holds XML files, others, or both."""
    holds: defaultdict[str, set[bool]] = defaultdict(set)
    for uri in uris:
        folder, _, _ = relative_path(data_uri, uri).removeprefix("images/").partition("/")
        if folder and "/" in relative_path(data_uri, uri).removeprefix("images/"):
            holds[folder].add(uri.lower().endswith(XML_EXTENSION))
    return holds.items()
