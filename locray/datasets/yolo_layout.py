"""Where the images and labels of a YOLO data set lie, by split."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from locray import storage
from locray.datasets.fields import decode_text
from locray.datasets.files import canonical_split, extension_of, is_image_name, is_split_name, relative_path
from locray.datasets.path_tails import PathTails, TailMatch, parts_of
from locray.datasets.yolo_description import Description

ONLY_SPLIT = "train"
IMAGES = "images"

_LIST_EXTENSION = ".txt"
_CVAT_FOLDER = re.compile(r"obj_(.+)_data$", re.IGNORECASE)
_PATTERN = re.compile(r"[/\\][^/\\]*\*.*$")


@dataclass(frozen=True, slots=True)
class YoloSplit:
    """The images of a split, and a message for each path that names none."""

    image_uris: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class _Named:
    """A path that names images of a split: where it is written, and what it means here."""

    split: str
    place: str
    written: str
    match: TailMatch | None


def find_splits(data_uri: str, uris: Sequence[str], description: Description) -> dict[str, YoloSplit]:
    """The images of each split: as the description names them, as lists do, and as folders do.

    A split that is named and has no image here is among them, empty: it is not what its folder would be.
    """
    images = [relative_path(data_uri, uri) for uri in uris if is_image_name(uri)]
    named = _named_splits(data_uri, uris, images, description)
    used = {uri for split in named.values() for uri in split.image_uris}
    by_folder: dict[str, list[str]] = {}
    for path in images:
        uri, split = storage.join(data_uri, path), split_of(path)
        if split is not None and uri not in used:
            by_folder.setdefault(split, []).append(uri)
    folders = {split: YoloSplit(found, []) for split, found in by_folder.items()}
    if not folders and not named:
        has_labels = any(extension_of(uri) == ".txt" for uri in uris)
        only = [storage.join(data_uri, path) for path in images]
        return {ONLY_SPLIT: YoloSplit(only, [])} if only and has_labels else {}
    return folders | {name: split for name, split in named.items() if split.image_uris or name not in folders}


def split_of(path: str) -> str | None:
    """The split of a path: the first folder with a usual name, CVAT's `obj_<split>_data`, or beside `images`."""
    folders = path.split("/")[:-1]
    for name in folders:
        if is_split_name(name):
            return name
        if of_cvat := _CVAT_FOLDER.match(name):
            return of_cvat[1]
    if len(folders) < 2 or IMAGES not in folders[:2]:  # noqa: PLR2004  # images/ and the split's folder
        return None
    return folders[1] if folders[0] == IMAGES else folders[0]


def _named_splits(
    data_uri: str, uris: Sequence[str], images: Sequence[str], description: Description
) -> dict[str, YoloSplit]:
    """The splits that the description names, and those of lists that it does not name."""
    texts = [relative_path(data_uri, uri) for uri in uris if extension_of(uri) == _LIST_EXTENSION]
    text_tails, image_tails = PathTails(data_uri, texts), PathTails(data_uri, images)
    folder_tails = PathTails(data_uri, {"", *(folder for path in images for folder in _folders_above(path))})
    own_folder = posixpath.dirname(relative_path(data_uri, description.uri or data_uri))
    below = [posixpath.join(own_folder, *parts_of(description.root)), own_folder, ""]
    of_folders, of_lists = [], []
    for split, paths in description.splits.items():
        place = f"{description.uri}, field {split}"
        for path in paths:
            if extension_of(path.strip()) != _LIST_EXTENSION:
                of_folders.append(_Named(split, place, path, folder_tails.find(_PATTERN.sub("", path), below)))
            elif match := text_tails.find(path, below):
                of_lists += _lines_of(data_uri, match.path, split, image_tails)
            else:
                of_lists.append(_Named(split, place, path, None))
    known = set(map(canonical_split, description.splits))
    for split, path in _lists(data_uri, texts, images).items():
        if canonical_split(split) not in known:
            of_lists += _lines_of(data_uri, path, split, image_tails)
    return _as_splits(data_uri, images, _without_conflicts(of_folders), _without_conflicts(of_lists))


def _as_splits(
    data_uri: str, images: Sequence[str], of_folders: Sequence[_Named], of_lists: Sequence[_Named]
) -> dict[str, YoloSplit]:
    """The images that the paths name. A folder inside that of another split is none of that split's."""
    folders = {one.match.path: one.split for one in of_folders if one.match}
    splits: defaultdict[str, YoloSplit] = defaultdict(lambda: YoloSplit([], []))
    for one in of_folders:
        if one.match is None:
            splits[one.split].missing.append(f"{one.place}: {one.written!r} is no folder of images here")
            continue
        inner = [f"{path}/" for path, split in folders.items() if split != one.split and path != one.match.path]
        prefix = f"{one.match.path}/".lstrip("/")
        excluded = tuple(path for path in inner if path.startswith(prefix))
        splits[one.split].image_uris.extend(
            storage.join(data_uri, path)
            for path in images
            if path.startswith(prefix) and not (excluded and path.startswith(excluded))
        )
    for one in of_lists:
        if one.match is None:
            splits[one.split].missing.append(f"{one.place}: {one.written!r} is not here")
        else:
            splits[one.split].image_uris.append(storage.join(data_uri, one.match.path))
    return {name: YoloSplit(list(dict.fromkeys(split.image_uris)), split.missing) for name, split in splits.items()}


def _without_conflicts(named: Sequence[_Named]) -> list[_Named]:
    """The paths with the matches that can be meant: two different paths written elsewhere are two files."""
    best: dict[str, int] = {}
    for one in named:
        if one.match:
            best[one.match.path] = max(best.get(one.match.path, 0), one.match.num_shared)
    writings: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for one in named:
        if one.match and not one.match.is_whole and one.match.num_shared == best[one.match.path]:
            writings[one.match.path].add(parts_of(one.written))
    return [
        one
        if not one.match
        or one.match.is_exact
        or (one.match.num_shared == best[one.match.path] and len(writings[one.match.path]) <= 1)
        else _Named(one.split, one.place, one.written, None)
        for one in named
    ]


def _lines_of(data_uri: str, list_path: str, split: str, image_tails: PathTails) -> list[_Named]:
    """The images that a list names, one a line. An empty list names nothing that is here."""
    uri = storage.join(data_uri, list_path)
    lines = decode_text(storage.read_bytes(uri), uri).splitlines()
    below = [posixpath.dirname(list_path), ""]
    named = [
        _Named(split, f"{uri}, line {number}", line.strip(), image_tails.find(line, below))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return named or [_Named(split, uri, "an image", None)]


def _lists(data_uri: str, texts: Sequence[str], images: Sequence[str]) -> dict[str, str]:
    """Text files with the name of a split that list images, the nearest to the root of each split."""
    stems = {posixpath.splitext(path)[0] for path in images}
    lists: dict[str, str] = {}
    for path in sorted(texts, key=lambda path: path.count("/")):
        stem = posixpath.splitext(path)[0]
        name = posixpath.basename(stem)
        if not is_split_name(name) or stem in stems or canonical_split(name) in map(canonical_split, lists):
            continue
        uri = storage.join(data_uri, path)
        lines = [line.strip() for line in decode_text(storage.read_bytes(uri), uri).splitlines() if line.strip()]
        if all(map(is_image_name, lines)) and (lines or "/" not in path):
            lists[name] = path
    return lists


def _folders_above(path: str) -> Iterable[str]:
    parts = path.split("/")[:-1]
    return ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
