"""Data sets and predictions tables, read from Python."""

import os
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds

from locray import datasets, schema, storage
from locray.errors import UsageError
from locray.models.files import read_artifact_info
from locray.table.data_files import row_dataset
from locray.table.key import KeySelector
from locray.table.open import open_existing_table

if TYPE_CHECKING:
    from locray.config.common import AnnotatedFrame
    from locray.datasets.records import Dataset


def read_dataset(
    uri: str | os.PathLike[str],
    *,
    format: str,  # noqa: A002 - the name of the option
    split: str = "train",
    min_score: float = datasets.DEFAULT_MIN_SCORE,
    strict: bool = False,
    annotated_frame: "AnnotatedFrame" = "upright",
) -> "Dataset":
    """Reads the annotations of one split of a data set.

    Args:
        uri: Folder, .zip file or s3:// prefix.
        format: How the annotations are written: a name that `locray train --format` takes.
        split: Name of the split; `train`, `val` and `test` also find their usual other names.
        min_score: Minimum score of a detection that counts as an annotation, with format `predictions`.
        strict: Whether annotations that can't be used are an error instead of being skipped and counted.
        annotated_frame: What boxes refer to in images that EXIF turns, where the annotated size doesn't tell:
            `upright` or `stored`.

    Raises:
        UsageError: nothing is there, the format or the split is unknown, or the annotations can't be read.
        StoreError: the store failed.
    """
    return datasets.read_dataset(
        os.fspath(uri), format, split, min_score=min_score, strict=strict, annotated_frame=annotated_frame
    )


def read_predictions(
    table: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    run_date: date | str | None = None,
) -> Any:
    """Opens the rows of a predictions table as a `pyarrow.dataset.Dataset`, which reads them lazily.

    Call `.to_table(columns=...)` for an Arrow table, `.to_batches()` to stream, or query it with DuckDB.

    Args:
        table: Folder or s3:// prefix of the table.
        model: Only rows of this model: its id (`name@0123456789ab`), its id and configuration
            (`name@0123456789ab/ba9876543210`), or the folder or s3:// prefix of its artifact.
        run_date: Only rows of runs of this date, `date` or YYYY-MM-DD.

    Raises:
        UsageError: there is no predictions table, or no artifact; or the date can't be read.
        StoreAccessError: the folder or bucket can't be reached.
    """
    uri = storage.normalise(os.fspath(table))
    rows = row_dataset(open_existing_table(uri), uri)
    if model is not None:
        selector = _selector(os.fspath(model))
        rows = rows.filter(ds.field(schema.MODEL_ID) == selector.model_id)
        if selector.config_hash is not None:
            rows = rows.filter(ds.field(schema.CONFIG_HASH) == selector.config_hash)
    if run_date is not None:
        rows = rows.filter(ds.field(schema.RUN_DATE) == _as_date(run_date))
    return rows


def _selector(model: str) -> KeySelector:
    return KeySelector.parse(model) or KeySelector(read_artifact_info(storage.normalise(model)).model_id)


def _as_date(value: date | str) -> date:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise UsageError(f"{schema.RUN_DATE}: expected a date, YYYY-MM-DD; found {value!r}") from None
