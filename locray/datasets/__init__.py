"""Annotated data sets: one reader a format. Called by training and evaluation."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from locray import storage
from locray.datasets import coco, csv_boxes, folders, parquet, regions, voc, yolo
from locray.datasets.files import USUAL_SPLITS, MissingSplitError, below, list_files
from locray.datasets.predictions import PredictionsFormat
from locray.datasets.records import Annotation, Dataset, Record, SkipReason
from locray.errors import UsageError
from locray.names import did_you_mean

__all__ = [
    "FORMATS",
    "Annotation",
    "Dataset",
    "DatasetFormat",
    "Record",
    "SkipReason",
    "list_splits",
    "read_dataset",
    "split_for_validation",
]


class DatasetFormat(Protocol):
    """How annotations lie in a folder or under an object store's prefix. Met by each module of a format."""

    def splits(self, data_uri: str) -> list[str]:
        """The names of the splits under `data_uri`, sorted; empty where nothing looks like this format."""
        ...

    def read(self, data_uri: str, split: str) -> Dataset:
        """One split.

        Raises:
            UsageError: no such split (naming those there are), or a file that can't be read as annotations.
        """
        ...


DEFAULT_MIN_SCORE = 0.5

FORMATS: Mapping[str, DatasetFormat] = {
    "coco": coco,
    "csv": csv_boxes,
    "folders": folders,
    "parquet": parquet,
    "predictions": PredictionsFormat(DEFAULT_MIN_SCORE),
    "regions": regions,
    "voc": voc,
    "yolo": yolo,
}
"""Every format, by the name that `--format` takes."""

VALIDATION_SPLIT = "val"

_USUAL_NAMES = {
    "train": ("training",),
    VALIDATION_SPLIT: ("valid", "validation"),
    "test": ("testing",),
}
"""What the splits of other tools are called for ours; taken where the data has none of our name."""

_ASKED_FOR = frozenset({SkipReason.LOW_SCORE})
"""What is left out by an option, not because it can't be used: no reason for `strict` to stop."""


def read_dataset(
    data_uri: str, format_name: str, split: str, *, min_score: float = DEFAULT_MIN_SCORE, strict: bool = False
) -> Dataset:
    """The images of one split with their boxes, from a folder, a zip archive or an object store.

    Args:
        data_uri: As a user names it. In an archive that holds one folder alone, that folder is meant.
        format_name: A name of `FORMATS`.
        split: Its name; `train`, `val` and `test` also find `training`, `valid`, `validation` and `testing`.
        min_score: Least score of a detection, with `predictions`.
        strict: Whether annotations that can't be used are an error, instead of being left out and counted.

    Raises:
        UsageError: nothing is there, unknown format or split, or annotations that can't be read; the message names
            what was found.
        StoreError: the store failed.
    """
    chosen = _format_named(format_name)
    if isinstance(chosen, PredictionsFormat):
        chosen = replace(chosen, min_score=min_score)
    dataset = _read_split(chosen, _root(data_uri, chosen), split)
    if strict:
        _check_nothing_left_out(dataset)
    return dataset


def _read_split(chosen: DatasetFormat, root: str, split: str) -> Dataset:
    try:
        return chosen.read(root, split)
    except MissingSplitError:
        there = set(chosen.splits(root))
        other = next((name for name in _USUAL_NAMES.get(split, ()) if name in there), None)
        if other is None:
            raise
    return replace(chosen.read(root, other), split=split)


def _check_nothing_left_out(dataset: Dataset) -> None:
    counts = {reason: count for reason, count in dataset.skipped.items() if reason not in _ASKED_FOR}
    if not counts:
        return
    reason, places = next(pair for pair in dataset.left_out_places.items() if pair[0] in counts)
    found = ", ".join(f"{count} x {reason}" for reason, count in counts.items())
    raise UsageError(
        f"{places[0]}: {reason}. Found in split {dataset.split!r}: {found}. Expected annotations that can all be used, "
        "as --strict asks for: correct them, or leave them out by reading without it."
    )


def list_splits(data_uri: str, format_name: str) -> list[str]:
    """The names of the splits, sorted, by the usual ones where others mean the same; empty where nothing is found.

    Raises:
        UsageError: unknown format, or nothing is there.
        StoreError: the store failed.
    """
    chosen = _format_named(format_name)
    found = set(chosen.splits(_root(data_uri, chosen)))
    for usual, others in _USUAL_NAMES.items():
        other = next((name for name in others if name in found), None)
        if other is not None and usual not in found:
            found = found - {other} | {usual}
    return sorted(found)


def _root(data_uri: str, chosen: DatasetFormat) -> str:
    """The folder that the format's files are looked for in."""
    uri = storage.normalise(data_uri)
    if not storage.folder_exists(uri) and not storage.exists(uri):
        raise UsageError(f"{uri} does not exist: check the path. Expected a folder, a .zip file or an s3:// prefix.")
    if not storage.is_archive(uri):
        return uri
    whole_uri = storage.archive_folder(uri)
    names = {below(whole_uri, member).partition("/")[0] for member in list_files(whole_uri)}
    if len(names) != 1 or names <= USUAL_SPLITS:
        return whole_uri
    folder_uri = storage.join(whole_uri, *names)
    return folder_uri if chosen.splits(folder_uri) else whole_uri


def _format_named(name: str) -> DatasetFormat:
    if name not in FORMATS:
        expected = f"{', '.join(FORMATS)}{did_you_mean(name, FORMATS)}"
        raise UsageError(f"Found the data set format {name!r}. Expected one of: {expected}")
    return FORMATS[name]


def split_for_validation(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Training and validation part of a data set that came without a validation split.

    An image's part depends on its file name alone: not on the order of the files, on the folder they lie in, or on
    which other images there are. So a data set that grows or moves keeps its parts. Only where that leaves one
    part empty (a handful of images) does the image nearest to the limit change sides.

    Args:
        dataset: At least 2 records.
        fraction: The expected share of the validation part, between 0 and 1.

    Returns:
        (training, validation), both with the classes of the whole. What was left out is counted with training.

    Raises:
        UsageError: fewer than 2 images.
    """
    assert 0 < fraction < 1, fraction
    if len(dataset.records) < 2:  # noqa: PLR2004
        raise UsageError(
            f"Found {len(dataset.records)} image in split {dataset.split!r}: can't set any apart for validation. "
            "Expected at least 2."
        )
    places = [_place(record.image_uri) for record in dataset.records]
    in_validation = [place < fraction for place in places]
    if not any(in_validation):
        in_validation[places.index(min(places))] = True
    if all(in_validation):
        in_validation[places.index(max(places))] = False
    training = tuple(record for record, chosen in zip(dataset.records, in_validation, strict=True) if not chosen)
    validation = tuple(record for record, chosen in zip(dataset.records, in_validation, strict=True) if chosen)
    return (
        replace(dataset, records=training),
        replace(
            dataset, split=VALIDATION_SPLIT, records=validation, skipped={}, left_out_places={}, num_clipped_boxes=0
        ),
    )


def _place(image_uri: str) -> float:
    """Where an image stands in [0, 1): even, and fixed by its file name."""
    file_name = image_uri.rstrip("/").rsplit("/", 1)[-1]
    return int.from_bytes(hashlib.sha256(file_name.encode()).digest()[:6]) / 2**48
