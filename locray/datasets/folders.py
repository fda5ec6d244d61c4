"""Class folders: an image's class is the folder that it lies in. Format name `folders`.

Only the class is known, no box. The layout is `<anything>/<split>/<class>/<any depth>/<image>`, where the folder of a
split has a usual name (train, val, test, ...) or the same classes as a folder beside it. Without folders for splits,
`<anything>/<class>/<any depth>/<image>`, everything is the split `train`. Folders of splits that hold their images
directly, or in `images/`, have no classes.
"""

from collections.abc import Iterable, Mapping, Sequence

from locray.datasets.builder import DatasetBuilder
from locray.datasets.files import SPLIT_NAMES, is_image_name, list_files, missing_split, relative_path
from locray.datasets.records import Annotation, Dataset, ImageAnnotations, SkipReason

EXPECTED = "images in <split>/<class>/ or in <class>/"
ONLY_SPLIT = "train"

_NO_CLASSES = frozenset({"images", "img", "imgs", "jpegimages", "labels"})
"""Names of folders, in lower case, that other layouts have in a split: no classes, if there are no others."""

Folders = tuple[str, ...]
Place = tuple[str, str | None]
"""Split and class of an image; the class is None if it lies beside the class folders."""


def splits(data_uri: str) -> list[str]:
    """Names of the splits under `data_uri`, sorted."""
    return sorted({split for split, label in _places(data_uri).values() if label is not None})


def read(data_uri: str, split: str) -> Dataset:
    """The images of a split, each with one object that has a class and no box.

    Raises:
        UsageError: no such split.
        StoreError: the store failed.
    """
    places = _places(data_uri)
    builder = DatasetBuilder(data_uri, split)
    known: dict[str, tuple[Annotation, ...]] = {}  # shared by all images of a class
    for image_uri, (found, label) in places.items():
        if found != split:
            continue
        if label is None:
            builder.skip(SkipReason.NO_ANNOTATION, f"{image_uri}: lies beside the class folders")
            continue
        objects = known.setdefault(label, (Annotation(label, None),))
        builder.add(image_uri, ImageAnnotations(None, objects, where=image_uri))
    if not known:
        names = {name for name, label in places.values() if label is not None}
        raise missing_split(data_uri, split, names, EXPECTED)
    return builder.build()


def places_of(paths: Iterable[Folders]) -> dict[Folders, Place]:
    """Split and class of each folder that holds images, given as the names on its path.

    Folders above or beside those of the splits have none.
    """
    folders = sorted(set(paths))
    by_name = {folder: at for folder in folders if (at := _depth_of_split(folder)) is not None}
    places = {folder: _place(folder, at) for folder, at in by_name.items()}
    labels = {label for _, label in places.values()} - {None}
    if places and {label.lower() for label in labels if label} <= _NO_CLASSES and _are_splits_only(folders, by_name):
        return {folder: (split, None) for folder, (split, _) in places.items()}
    if labels:
        return places
    common = _common(folder[:-1] for folder in folders if folder)
    below_common = {folder: folder[common:] for folder in folders if len(folder) > common}
    if _splits_repeat_their_classes(below_common.values()):
        return {folder: _place(folder, common) for folder in below_common}
    return {folder: (ONLY_SPLIT, folder[common] if len(folder) > common else None) for folder in folders}


def _are_splits_only(folders: Iterable[Folders], by_name: Iterable[Folders]) -> bool:
    """Whether no image lies in a folder other than those of splits and the ones above them.

    Otherwise `train` is a class of vehicles, beside others.
    """
    of_splits = set(by_name)
    above = {folder[:depth] for folder in of_splits for depth in range(len(folder))}
    return all(folder in of_splits or folder in above for folder in folders)


def _depth_of_split(folder: Folders) -> int | None:
    """Position of the first folder with a usual name of a split."""
    return next((at for at, name in enumerate(folder) if name.lower() in SPLIT_NAMES), None)


def _place(folder: Folders, at: int) -> Place:
    return folder[at], folder[at + 1] if len(folder) > at + 1 else None


def _common(folders: Iterable[Folders]) -> int:
    """Number of leading names that all paths share."""
    depth = 0
    for names in zip(*folders, strict=False):
        if len(set(names)) > 1:
            break
        depth += 1
    return depth


def _splits_repeat_their_classes(folders: Iterable[Folders]) -> bool:
    """Whether all paths are `<split>/<class>`, with several splits and a class that several of them have."""
    pairs = [folder for folder in folders if len(folder) == 2]  # noqa: PLR2004  # split and class
    splits_found = {split for split, _ in pairs}
    classes = {label for _, label in pairs}
    return len(splits_found) > 1 and len(pairs) == len(list(folders)) and len(classes) < len(pairs)


def _places(data_uri: str) -> Mapping[str, Place]:
    """Split and class of each image that belongs to a split."""
    paths: dict[str, Folders] = {}
    for uri in list_files(data_uri):
        if is_image_name(uri):
            paths[uri] = _folders(data_uri, uri)
    place_of = places_of(paths.values())
    return {uri: place_of[folder] for uri, folder in paths.items() if folder in place_of}


def _folders(data_uri: str, uri: str) -> Folders:
    names: Sequence[str] = relative_path(data_uri, uri).split("/")[:-1]
    return tuple(names)
