"""Predictions for a data set out of a predictions table. Called by `run`."""

from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa

from locray import schema
from locray.config import EvaluateConfig
from locray.datasets.records import Dataset
from locray.errors import UsageError
from locray.evaluation.same_image import file_name, match_uris
from locray.evaluation.truth import Comparison, Evaluated
from locray.images.decode import DecodeLimits
from locray.labelling.identity import Identity
from locray.table.key import KeySelector, PredictionKey, choose_key
from locray.table.open import open_existing_table

_COLUMNS = (
    schema.IMAGE_URI,
    schema.WIDTH,
    schema.HEIGHT,
    schema.ERROR_CODE,
    schema.DETECTIONS,
    schema.MODEL_ID,
    schema.CONFIG_HASH,
)
_NAMED = 3


def read_table(dataset: Dataset, table_uri: str, config: EvaluateConfig) -> Evaluated:
    """The rows of one model and configuration for the images of a data set.

    Of an image that was labelled in several versions, the row that was written last counts. `match_uris` says which
    row is about which image.

    Raises:
        UsageError: there is no table, it is not clear which of its models is meant, or images have no row; with
            `--strict`, an image or a box can't be used.
    """
    table = open_existing_table(table_uri)
    candidates = _rows_named_alike(table.to_pyarrow_dataset() if table.file_uris() else None, dataset)
    if not len(candidates):
        raise UsageError(
            f"{table_uri} holds no row for any of the {len(dataset.records):,} images of split {dataset.split!r}, such "
            f"as {dataset.records[0].image_uri}. Expected rows whose path ends in the same file name: look whether the "
            "table is that of these images"
        )
    key = _choose(candidates, table_uri, config)
    mask = [
        PredictionKey(row[schema.MODEL_ID], row[schema.CONFIG_HASH]) == key
        for row in candidates.select([schema.MODEL_ID, schema.CONFIG_HASH]).to_pylist()
    ]
    rows = candidates.filter(pa.array(mask)).to_pylist()
    own = _own_rows(dataset, rows, f"{table_uri} ({key})")
    limits = DecodeLimits.of(config)
    comparison = Comparison(limits, min_score=config.score_threshold or 0.0, strict=config.strict)
    results = [comparison.result(record, row) for record, row in zip(dataset.records, own, strict=True)]
    return Evaluated(key.model_id, key.config_hash, results, dict(comparison.errors), dict(comparison.skipped))


def _rows_named_alike(predictions: Any, dataset: Dataset) -> pa.Table:
    """The rows whose file name some image of the data set has; of each image URI the newest for a configuration."""
    if predictions is None:
        return pa.table({name: [] for name in _COLUMNS})
    names = pa.table({"name": pa.array(sorted({file_name(record.image_uri) for record in dataset.records}))})
    connection = duckdb.connect()
    connection.register("predictions", predictions)
    connection.register("names", names)
    columns = ", ".join(_COLUMNS)
    found: pa.Table = connection.sql(
        f"""
        SELECT {columns} FROM predictions
        WHERE split_part({schema.IMAGE_URI}, '/', -1) IN (SELECT name FROM names)
        QUALIFY 1 = row_number() OVER (
            PARTITION BY {schema.IMAGE_URI}, {schema.MODEL_ID}, {schema.CONFIG_HASH} ORDER BY {schema.LABELLED_AT} DESC
        )
        """
    ).to_arrow_table()
    return found


def _choose(candidates: pa.Table, table_uri: str, config: EvaluateConfig) -> PredictionKey:
    """The model and configuration that `--model` selects, or the only one there."""
    keys = zip(candidates[schema.MODEL_ID].to_pylist(), candidates[schema.CONFIG_HASH].to_pylist(), strict=True)
    num_rows = Counter(PredictionKey(*key) for key in keys)
    key = choose_key(num_rows, _wanted(config), f"for these images {table_uri}")
    assert key is not None
    return key


def _wanted(config: EvaluateConfig) -> KeySelector | None:
    if config.model is None:
        return None
    selector = KeySelector.parse(config.model)
    if selector is not None:
        return selector
    identity = Identity.of(config.model, config)
    return KeySelector(identity.model_id, identity.config_hash)


def _own_rows(dataset: Dataset, rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    uris = [record.image_uri for record in dataset.records]
    same = match_uris(uris, [row[schema.IMAGE_URI] for row in rows])
    if same.ambiguous:
        raise UsageError(
            f"{len(same.ambiguous):,} of {len(uris):,} images can't be told apart in {where} by the ends of paths: "
            f"{_some([uris[image] for image in same.ambiguous])}. Expected paths that agree in more than the file name"
        )
    missing = [uri for image, uri in enumerate(uris) if image not in same.row_of]
    if missing:
        raise UsageError(
            f"{len(missing):,} of {len(uris):,} images have no row in {where}: {_some(missing)}. "
            "Label them first (`locray label`): figures of a part would mislead"
        )
    return [rows[same.row_of[image]] for image in range(len(uris))]


def _some(uris: list[str]) -> str:
    more = f" and {len(uris) - _NAMED:,} more" if len(uris) > _NAMED else ""
    return ", ".join(uris[:_NAMED]) + more
