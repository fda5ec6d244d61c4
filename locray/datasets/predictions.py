"""A predictions table as annotations (pseudo-labels). Format name `predictions`.

The split `train` is the newest row of each image, of any model. If several models wrote to the table, each model id is
a split, too: the newest row of each image by that model.
"""

from dataclasses import dataclass, replace
from typing import Any

import duckdb
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from locray import schema, storage
from locray.datasets.builder import DatasetBuilder
from locray.datasets.files import missing_split
from locray.datasets.parquet import parse_table
from locray.datasets.records import Dataset, SkipReason
from locray.errors import UsageError

SPLIT = "train"
EXPECTED = "a predictions table, as `locray label --table` makes it"

_NUM_DETECTIONS = "num_detections"


@dataclass(frozen=True, slots=True)
class PredictionsFormat:
    """Detections with a score of at least `min_score`, as a `DatasetFormat`.

    Skipped are images whose newest row is a failure, and images with detections that all score less: the model did not
    say that those show nothing.
    """

    min_score: float

    def splits(self, data_uri: str) -> list[str]:
        """`train`, and the model ids if there are several; empty if there is no table."""
        table = _open(data_uri)
        return [] if table is None else _splits(table)

    def read(self, data_uri: str, split: str) -> Dataset:
        """The newest row of each image, sorted by image.

        Raises:
            UsageError: no predictions table, no such model, or no image left.
            StoreError: the store failed.
        """
        table = _open(data_uri)
        found = [] if table is None else _splits(table)
        if table is None or split not in found:
            raise missing_split(data_uri, split, found, EXPECTED)
        rows = self._newest_rows(table, data_uri, None if split == SPLIT else split)
        builder = DatasetBuilder(data_uri, split)
        num_detections = rows[_NUM_DETECTIONS].to_pylist()
        statuses = rows[schema.STATUS].to_pylist()
        parsed = parse_table(rows, data_uri)
        for image, status, total in zip(parsed.images, statuses, num_detections, strict=True):
            name = image.filename or ""
            if status != schema.STATUS_OK:
                builder.skip(SkipReason.FAILED_IMAGE, f"{data_uri}, image {name}")
            elif total and not image.objects:
                builder.skip(SkipReason.LOW_SCORE, f"{data_uri}, image {name}")
            else:
                builder.add(name, replace(image, where=name))
        return builder.build()

    def _newest_rows(self, table: DeltaTable, data_uri: str, model_id: str | None) -> Any:
        """Rows of `schema.ANNOTATED_SCHEMA` with their status and the number of detections of any score."""
        connection = duckdb.connect()
        connection.register("predictions", table.to_pyarrow_dataset(filesystem=storage.arrow_filesystem(data_uri)))
        detections = f"coalesce({schema.DETECTIONS}, [])"
        newest = f"PARTITION BY {schema.IMAGE_URI} ORDER BY {schema.LABELLED_AT} DESC, {schema.MODEL_ID}"
        return connection.sql(
            f"""
            SELECT {schema.IMAGE_URI}, {schema.WIDTH}, {schema.HEIGHT}, {schema.STATUS},
                   list_filter({detections}, lambda found: found.{schema.SCORE} >= $min_score) AS {schema.OBJECTS},
                   len({detections}) AS {_NUM_DETECTIONS}
            FROM (
                SELECT *, row_number() OVER ({newest}, {schema.CONFIG_HASH}) AS place
                FROM predictions WHERE $model IS NULL OR {schema.MODEL_ID} = $model
            )
            WHERE place = 1 ORDER BY {schema.IMAGE_URI}
            """,
            params={"min_score": self.min_score, "model": model_id},
        ).to_arrow_table()


def _open(data_uri: str) -> DeltaTable | None:
    if storage.is_in_archive(data_uri):
        return None
    try:
        table = DeltaTable(data_uri, storage_options=storage.delta_storage_options(data_uri))
    except (TableNotFoundError, FileNotFoundError):
        return None
    except DeltaError as error:
        raise UsageError(f"{data_uri}: no table that can be read ({error}). Expected {EXPECTED}.") from None
    names = {field.name for field in table.schema().fields}
    missing = [name for name in schema.PREDICTIONS_SCHEMA.names if name not in names]
    if missing:
        raise UsageError(f"{data_uri} is a Delta table without the columns {', '.join(missing)}. Expected {EXPECTED}.")
    return table


def _splits(table: DeltaTable) -> list[str]:
    models = sorted({str(partition[schema.MODEL_ID]) for partition in table.partitions()})
    if not models:
        return []
    return [SPLIT, *models] if len(models) > 1 else [SPLIT]
