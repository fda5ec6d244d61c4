"""Predictions for a data set from a predictions table."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from locray import schema
from locray.config import EvaluateConfig
from locray.datasets.records import Dataset
from locray.errors import UsageError
from locray.evaluation.comparison import Comparison, Evaluated
from locray.images.decode import DecodeLimits
from locray.labelling.model import ModelSpec
from locray.table.data_files import row_dataset
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
_MAX_NAMED = 3


def read_table(dataset: Dataset, table_uri: str, config: EvaluateConfig) -> Evaluated:
    """Reads the rows of one model and configuration for the images of a data set.

    Of an image that was labelled in several versions, the latest row counts. See `match_uris` for the row of an image.

    Raises:
        UsageError: there is no table, it holds several models of which none was chosen, or images have no row; with
            `--strict`, an image or a box can't be used.
    """
    table = open_existing_table(table_uri)
    candidates = _rows_with_names_of(row_dataset(table, table_uri), dataset)
    if not len(candidates):
        raise UsageError(
            f"{table_uri} holds no row for any of the {len(dataset.records):,} images of split {dataset.split!r}, such "
            f"as {dataset.records[0].image_uri}. Expected rows whose path ends in the same file name: check that "
            "the table is that of these images"
        )
    key = _choose_key(candidates, table_uri, config)
    mask = [
        PredictionKey(row[schema.MODEL_ID], row[schema.CONFIG_HASH]) == key
        for row in candidates.select([schema.MODEL_ID, schema.CONFIG_HASH]).to_pylist()
    ]
    rows = candidates.filter(pa.array(mask)).to_pylist()
    own_rows = _rows_of_images(dataset, rows, f"{table_uri} ({key})")
    comparison = Comparison(DecodeLimits.of(config), min_score=config.score_threshold or 0.0, strict=config.strict)
    results = [comparison.result(record, row) for record, row in zip(dataset.records, own_rows, strict=True)]
    return Evaluated(key.model_id, key.config_hash, results, dict(comparison.errors), dict(comparison.skipped))


def _rows_with_names_of(predictions: Any, dataset: Dataset) -> pa.Table:
    """Rows with the file name of an image of the data set; the latest per image URI, model and configuration."""
    names = pa.table({"name": pa.array(sorted({_file_name(record.image_uri) for record in dataset.records}))})
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


def _choose_key(candidates: pa.Table, table_uri: str, config: EvaluateConfig) -> PredictionKey:
    """The model and configuration that `--model` selects, or the only one there."""
    keys = zip(candidates[schema.MODEL_ID].to_pylist(), candidates[schema.CONFIG_HASH].to_pylist(), strict=True)
    num_rows = Counter(PredictionKey(*key) for key in keys)
    key = choose_key(num_rows, _selector(config), f"for these images {table_uri}")
    assert key is not None
    return key


def _selector(config: EvaluateConfig) -> KeySelector | None:
    if config.model is None:
        return None
    selector = KeySelector.parse(config.model)
    if selector is not None:
        return selector
    return KeySelector.of(ModelSpec.read(config.model, config).key)


def _rows_of_images(dataset: Dataset, rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    uris = [record.image_uri for record in dataset.records]
    matches = match_uris(uris, [row[schema.IMAGE_URI] for row in rows])
    if matches.ambiguous:
        raise UsageError(
            f"{len(matches.ambiguous):,} of {len(uris):,} images can't be told apart in {where} by the ends of paths: "
            f"{_first_few([uris[image] for image in matches.ambiguous])}. Expected paths that agree in more than "
            "the file name"
        )
    missing = [uri for image, uri in enumerate(uris) if image not in matches.row_of]
    if missing:
        raise UsageError(
            f"{len(missing):,} of {len(uris):,} images have no row in {where}: {_first_few(missing)}. "
            "Label them first (`locray label`): metrics of a part would be misleading"
        )
    return [rows[matches.row_of[image]] for image in range(len(uris))]


def _first_few(uris: list[str]) -> str:
    more = f" and {len(uris) - _MAX_NAMED:,} more" if len(uris) > _MAX_NAMED else ""
    return ", ".join(uris[:_MAX_NAMED]) + more


@dataclass(frozen=True, slots=True)
class UriMatches:
    """Rows of images, by position.

    Attributes:
        row_of: Row of each image, without those that are missing or ambiguous.
        ambiguous: Images that share the end of their path with several rows, or a row with other images.
    """

    row_of: dict[int, int]
    ambiguous: list[int]


def match_uris(image_uris: Sequence[str], row_uris: Sequence[str]) -> UriMatches:
    """Finds the row of each image, where annotations and table may name images differently.

    Equal URIs are matched first. Of the others, an image and a row match if their paths end in the same segments, at
    least in the same file name. More common segments take precedence, and the match must be unique: no other image
    and no other row may have them. `/data/val/a/1.jpg` and `s3://bucket/a/1.jpg` match even if there is a
    `s3://bucket/b/1.jpg`.

    Args:
        image_uris: All different.
        row_uris: All different.
    """
    position_of = {uri: position for position, uri in enumerate(row_uris)}
    row_of = {image: position_of[uri] for image, uri in enumerate(image_uris) if uri in position_of}
    matched_rows = set(row_of.values())
    images = {image: uri.split("/") for image, uri in enumerate(image_uris) if image not in row_of}
    rows = {row: uri.split("/") for row, uri in enumerate(row_uris) if row not in matched_rows}
    ambiguous: list[int] = []
    max_depth = min(max(map(len, images.values()), default=0), max(map(len, rows.values()), default=0))
    for depth in range(max_depth, 0, -1):
        rows_by_ending, images_by_ending = _by_ending(rows, depth), _by_ending(images, depth)
        for ending in rows_by_ending.keys() & images_by_ending.keys():
            same_images, same_rows = images_by_ending[ending], rows_by_ending[ending]
            if len(same_images) == len(same_rows) == 1:
                row_of[same_images[0]] = same_rows[0]
            else:
                ambiguous += same_images
            for image in same_images:
                del images[image]
            for row in same_rows:
                del rows[row]
    return UriMatches(row_of, sorted(ambiguous))


def _file_name(uri: str) -> str:
    """The last segment of a URI."""
    return uri.rsplit("/", 1)[-1]


def _by_ending(segments_of: dict[int, list[str]], depth: int) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, segments in segments_of.items():
        if len(segments) >= depth:
            found[tuple(segments[-depth:])].append(position)
    return found
