"""Annotated data sets: one reader a format. Called by training and evaluation."""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from locray import storage
from locray.datasets import csv_boxes, voc
from locray.datasets.records import Annotation, Dataset, LeftOut, Record
from locray.errors import UsageError

__all__ = [
    "FORMATS",
    "Annotation",
    "Dataset",
    "DatasetFormat",
    "LeftOut",
    "Record",
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


FORMATS: Mapping[str, DatasetFormat] = {"csv": csv_boxes, "voc": voc}
"""Every format, by the name that `--format` takes."""

VALIDATION_SPLIT = "val"


def read_dataset(data_uri: str, format_name: str, split: str) -> Dataset:
    """The images of one split with their boxes, from a folder or an object store.

    Raises:
        UsageError: unknown format or split, or annotations that can't be read; the message names what was found.
        StoreError: the store failed.
    """
    return _format_named(format_name).read(storage.normalise(data_uri), split)


def list_splits(data_uri: str, format_name: str) -> list[str]:
    """The names of the splits, sorted; empty where nothing looks like this format.

    Raises:
        UsageError: unknown format.
        StoreError: the store failed.
    """
    return _format_named(format_name).splits(storage.normalise(data_uri))


def _format_named(name: str) -> DatasetFormat:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"Found the data set format {name!r}. Expected one of: {', '.join(FORMATS)}.{hint}")
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
        replace(dataset, split=VALIDATION_SPLIT, records=validation, left_out={}, num_clipped_boxes=0),
    )


def _place(image_uri: str) -> float:
    """Where an image stands in [0, 1): even, and fixed by its file name."""
    file_name = image_uri.rstrip("/").rsplit("/", 1)[-1]
    return int.from_bytes(hashlib.sha256(file_name.encode()).digest()[:6]) / 2**48
