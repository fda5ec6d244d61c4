"""Predictions of a model for a data set, by the same stages as labelling. Called by `run` and by training's page."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa

from locray import schema
from locray.config import InferenceOptions
from locray.datasets.records import Dataset
from locray.errors import StoreError
from locray.evaluation.truth import Comparison, Evaluated
from locray.labelling.identity import Identity
from locray.labelling.pipeline import Pipeline
from locray.labelling.summary import Clock
from locray.labelling.worklist import InlineWorklist
from locray.metrics.results import ImageResult
from locray.progress import Progress, Report


def evaluate_dataset(
    dataset: Dataset, identity: Identity, config: InferenceOptions, report: Report, *, strict: bool = False
) -> Evaluated:
    """Labels the images of a data set in memory.

    Raises:
        StoreError: an image could not be labelled; metrics of a part would mislead.
        UsageError: `strict`, and an image or a box can't be used.
    """
    clock = Clock()
    worklist = InlineWorklist.of_uris([record.image_uri for record in dataset.records], config.unit_size)
    report(Progress("starting", planned=worklist.num_images))
    pipeline = Pipeline(identity.decode, identity.predict, config.predictors, config.verbose)
    comparison = Comparison(identity.decode.limits, strict=strict)
    results: dict[int, ImageResult] = {}
    with closing(pipeline.rows(worklist)) as units:
        for rows in units:
            for row in _labelled(rows):
                ordinal = row[schema.ORDINAL]
                results[ordinal] = comparison.result(dataset.records[ordinal], row)
            clock.tick(len(results))
            report(Progress("evaluating", len(results), worklist.num_images, clock.speed()))
    in_order = [results[ordinal] for ordinal in range(worklist.num_images)]
    return Evaluated(
        identity.model_id, identity.config_hash, in_order, dict(comparison.errors), dict(comparison.skipped)
    )


def _labelled(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for row in rows.to_pylist():
        if row[schema.STATUS] == schema.STATUS_DEFERRED:
            raise StoreError(f"{row[schema.IMAGE_URI]} could not be labelled: {row[schema.ERROR_MESSAGE]}")
        yield row
