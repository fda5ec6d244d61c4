"""An evaluation, from configuration to metrics."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from locray import schema, storage
from locray.config import EvaluateConfig
from locray.datasets import read_split
from locray.datasets.records import Dataset
from locray.errors import StoreError, UsageError
from locray.evaluation.comparison import Comparison, Evaluated
from locray.evaluation.summary import EvaluationMetrics, EvaluationSummary
from locray.evaluation.table import read_table
from locray.images.decode import DecodeLimits
from locray.labelling.model import ModelSpec
from locray.labelling.pipeline import Pipeline
from locray.labelling.worklist import InlineWorklist, unit_size_for
from locray.metrics.results import ImageResult
from locray.progress import Clock, Progress, Report


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation, with the predictions and annotations that it was computed from."""

    summary: EvaluationSummary
    metrics: EvaluationMetrics
    dataset: Dataset
    evaluated: Evaluated


def evaluate(config: EvaluateConfig, report: Report) -> Evaluation:
    """Compares predictions for the images of a split with their annotations.

    The predictions come from a table, or are made now, in memory, by a model.

    Raises:
        UsageError: data set, split, model, table or an output is invalid; with `--strict`, an annotation or an image
            can't be used.
        StoreError: an image could not be labelled: metrics of a part would be misleading.
    """
    clock = Clock()
    report(Progress("checking"))
    for output in (config.output, config.page):
        _check_is_no_folder(output)
    # Precision-recall curves need the detections below the artifact's threshold, too.
    all_detections = config.model_copy(update={"score_threshold": config.score_threshold or 0.0})
    # The configuration requires a model where there is no table.
    model = ModelSpec.read(config.model or "", all_detections) if config.table is None else None
    dataset = read_split(config, config.split)
    if not dataset.records:
        raise UsageError(f"split {config.split!r} of {config.data} holds no images")
    threshold = config.score_threshold or 0.0
    if model is not None and config.score_threshold is None:
        threshold = model.artifact_score_threshold
    if model is None:
        evaluated = read_table(dataset, storage.normalise(config.table or ""), config)
    else:
        evaluated = evaluate_dataset(dataset, model, report, strict=config.strict)
    report(Progress("measuring"))
    metrics = EvaluationMetrics.of(evaluated.results, threshold)
    summary = EvaluationSummary.of(config.data, dataset, evaluated, metrics, table=config.table, wall_s=clock.wall_s)
    if config.output is not None:
        document = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n"
        storage.write_bytes(storage.normalise(config.output), document.encode())
    return Evaluation(summary, metrics, dataset, evaluated)


def evaluate_dataset(dataset: Dataset, model: ModelSpec, report: Report, *, strict: bool = False) -> Evaluated:
    """Labels the images of a data set in memory, by the same stages as `locray label`.

    Raises:
        StoreError: an image could not be labelled: metrics of a part would be misleading.
        UsageError: with `strict`, an image or a box can't be used.
    """
    clock = Clock()
    uris = [record.image_uri for record in dataset.records]
    worklist = InlineWorklist.of_uris(uris, unit_size_for(len(uris), model.options.unit_size))
    report(Progress("starting", planned=worklist.num_images))
    comparison = Comparison(DecodeLimits.of(model.options), strict=strict)
    results: dict[int, ImageResult] = {}
    with closing(Pipeline(model).rows(worklist)) as units:
        for rows in units:
            for row in _labelled(rows):
                ordinal = row[schema.ORDINAL]
                results[ordinal] = comparison.result(dataset.records[ordinal], row)
            clock.tick(len(results))
            report(Progress("evaluating", len(results), worklist.num_images, clock.speed()))
    in_order = [results[ordinal] for ordinal in range(worklist.num_images)]
    key = model.key
    return Evaluated(key.model_id, key.config_hash, in_order, dict(comparison.errors), dict(comparison.skipped))


def _labelled(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for row in rows.to_pylist():
        if row[schema.STATUS] == schema.STATUS_DEFERRED:
            raise StoreError(f"{row[schema.IMAGE_URI]} could not be labelled: {row[schema.ERROR_MESSAGE]}")
        yield row


def _check_is_no_folder(output: str | None) -> None:
    if output is None:
        return
    uri = storage.normalise(output)
    if not storage.is_remote(uri) and os.path.isdir(storage.local_path(uri)):
        raise UsageError(f"{uri} is a folder: expected the name of a file to write, such as {uri}/evaluation.html")
