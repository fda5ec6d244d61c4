"""Annotated data sets: one module per format."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from locray import storage
from locray.config import DatasetOptions
from locray.config.common import AnnotatedFrame
from locray.datasets import coco, csv_boxes, folders, parquet, regions, voc, yolo
from locray.datasets.files import (
    SPLIT_ALIASES,
    SPLIT_NAMES,
    MissingSplitError,
    canonical_split,
    list_files,
    relative_path,
)
from locray.datasets.predictions import PredictionsFormat
from locray.datasets.records import Annotation, Dataset, Record, SkipReason
from locray.errors import UsageError, did_you_mean

__all__ = [
    "FORMATS",
    "Annotation",
    "Dataset",
    "DatasetFormat",
    "Record",
    "SkipReason",
    "check_nothing_skipped",
    "list_splits",
    "read_dataset",
    "read_split",
    "split_for_validation",
]


class DatasetFormat(Protocol):
    """A layout of annotations in a folder or under a prefix. Every module of a format is one."""

    def splits(self, data_uri: str) -> list[str]:
        """Names of the splits under `data_uri`, sorted; empty if nothing has this format."""
        ...

    def read(self, data_uri: str, split: str) -> Dataset:
        """Reads one split.

        Raises:
            UsageError: no such split (the message names those found), or a file that can't be parsed.
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
"""All formats by name, as for `--format`."""

VALIDATION_SPLIT = "val"

_SKIPPED_BY_OPTION = frozenset({SkipReason.LOW_SCORE})
"""Skipped because of an option: no error under `strict`."""


def read_dataset(
    data_uri: str,
    format_name: str,
    split: str,
    *,
    min_score: float = DEFAULT_MIN_SCORE,
    strict: bool = False,
    annotated_frame: AnnotatedFrame = "upright",
) -> Dataset:
    """Reads the images of one split with their objects.

    Args:
        data_uri: Folder, .zip file or object store prefix. Of an archive with a single folder, that folder is read.
        format_name: A name of `FORMATS`.
        split: Name of the split; of its other names (`val`, `valid`, `validation`, in any case), any is found.
        min_score: Minimum score of a detection, for the format `predictions`.
        strict: Whether unusable annotations are an error. Otherwise they are skipped and counted.
        annotated_frame: Image that boxes refer to where EXIF turns it and the annotated size does not tell.

    Raises:
        UsageError: nothing there, an unknown format or split, or annotations that can't be parsed.
        StoreError: the store failed.
    """
    chosen = _format_named(format_name)
    if isinstance(chosen, PredictionsFormat):
        chosen = replace(chosen, min_score=min_score)
    dataset = _read_from_root(chosen, _root(data_uri, chosen), split)
    if strict:
        check_nothing_skipped(dataset)
    if annotated_frame == "stored":
        return replace(dataset, records=tuple(replace(record, is_stored=True) for record in dataset.records))
    return dataset


def read_split(options: DatasetOptions, split: str) -> Dataset:
    """`read_dataset` with the options of a command."""
    return read_dataset(
        options.data,
        options.format,
        split,
        min_score=options.min_score,
        strict=options.strict,
        annotated_frame=options.annotated_frame,
    )


def _read_from_root(chosen: DatasetFormat, root: str, split: str) -> Dataset:
    try:
        return chosen.read(root, split)
    except MissingSplitError:
        there = chosen.splits(root)
        other = next((name for name in sorted(there) if canonical_split(name) == canonical_split(split)), None)
        if other is None:
            raise
    return replace(chosen.read(root, other), split=split)


def check_nothing_skipped(dataset: Dataset) -> None:
    """Raises UsageError if anything was skipped but what an option excludes: the check of `strict`."""
    counts = {reason: count for reason, count in dataset.skipped.items() if reason not in _SKIPPED_BY_OPTION}
    if not counts:
        return
    reason, places = next(pair for pair in dataset.skip_examples.items() if pair[0] in counts)
    found = ", ".join(f"{count} x {reason}" for reason, count in counts.items())
    raise UsageError(
        f"{places[0]}: {reason}. Found in split {dataset.split!r}: {found}. Expected annotations that can all be used, "
        "as --strict demands: correct them, or run without --strict to skip them."
    )


def list_splits(data_uri: str, format_name: str) -> list[str]:
    """Names of the splits, sorted; `valid`, `training` and other aliases as `val`, `train` and `test`.

    Raises:
        UsageError: an unknown format, or nothing there.
        StoreError: the store failed.
    """
    chosen = _format_named(format_name)
    found = set(chosen.splits(_root(data_uri, chosen)))
    for usual in SPLIT_ALIASES:
        other = next((name for name in sorted(found) if canonical_split(name) == usual), None)
        if other is not None and usual not in found:
            found = found - {other} | {usual}
    return sorted(found)


def _root(data_uri: str, chosen: DatasetFormat) -> str:
    """The folder that holds the format's files."""
    uri = storage.normalise(data_uri)
    if not storage.folder_exists(uri) and not storage.exists(uri):
        raise UsageError(f"{uri} does not exist: check the path. Expected a folder, a .zip file or an s3:// prefix.")
    if not storage.is_archive(uri):
        return uri
    whole_uri = storage.archive_folder(uri)
    names = {relative_path(whole_uri, member).partition("/")[0] for member in list_files(whole_uri)}
    if len(names) != 1 or names <= SPLIT_NAMES:
        return whole_uri
    folder_uri = storage.join(whole_uri, *names)
    return folder_uri if chosen.splits(folder_uri) else whole_uri


def _format_named(name: str) -> DatasetFormat:
    if name not in FORMATS:
        expected = f"{', '.join(FORMATS)}{did_you_mean(name, FORMATS)}"
        raise UsageError(f"Found the data set format {name!r}. Expected one of: {expected}")
    return FORMATS[name]


def split_for_validation(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Splits a data set without a validation split into a training and a validation part.

    The part of an image depends on its file name only, so a data set that grows or moves keeps its parts. Only if one
    part would be empty (a handful of images) does the image nearest to the limit change sides.

    Args:
        dataset: At least 2 records.
        fraction: Expected share of the validation part, between 0 and 1.

    Returns:
        (training, validation), both with the classes of the whole. Training has the counts of skipped entries.

    Raises:
        UsageError: fewer than 2 images.
    """
    assert 0 < fraction < 1, fraction
    if len(dataset.records) < 2:  # noqa: PLR2004
        raise UsageError(
            f"Found {len(dataset.records)} image in split {dataset.split!r}: can't split off a validation part. "
            "Expected at least 2."
        )
    fractions = [_hash_fraction(record.image_uri) for record in dataset.records]
    in_validation = [one < fraction for one in fractions]
    if not any(in_validation):
        in_validation[fractions.index(min(fractions))] = True
    if all(in_validation):
        in_validation[fractions.index(max(fractions))] = False
    training = tuple(record for record, chosen in zip(dataset.records, in_validation, strict=True) if not chosen)
    validation = tuple(record for record, chosen in zip(dataset.records, in_validation, strict=True) if chosen)
    return (
        replace(dataset, records=training),
        replace(dataset, split=VALIDATION_SPLIT, records=validation, skipped={}, skip_examples={}, num_clipped_boxes=0),
    )


def _hash_fraction(image_uri: str) -> float:
    """Uniform in [0, 1), determined by the file name."""
    file_name = image_uri.rstrip("/").rsplit("/", 1)[-1]
    return int.from_bytes(hashlib.sha256(file_name.encode()).digest()[:6]) / 2**48
