"""An evaluation, from configuration to metrics, through the same stages as labelling. Called by the command line."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from locray import schema, storage
from locray.config import EvaluateConfig
from locray.datasets import read_dataset
from locray.datasets.records import Dataset, Record
from locray.errors import StoreError, UsageError
from locray.labelling.identity import Identity
from locray.labelling.pipeline import Pipeline
from locray.labelling.summary import Clock
from locray.labelling.worklist import InlineWorklist
from locray.metrics.detection import mean_average_precision
from locray.metrics.localization import localization
from locray.metrics.results import ImageResult
from locray.progress import Progress, Report


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """An artifact's metrics on one split, as `--json` prints them."""

    model_id: str
    data: str
    split: str
    images: int
    objects: int
    class_accuracy: float
    mean_iou: float
    localization_accuracy: float
    map_50_95: float
    map_50: float
    errors: dict[str, int]
    left_out: dict[str, int]
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def evaluate(config: EvaluateConfig, report: Report) -> EvaluationSummary:
    """Labels the images of a split in memory and compares with their annotations.

    Raises:
        UsageError: the data set, the split or the model is not what it should be.
        StoreError: an image could not be fetched; metrics of a part would mislead.
    """
    clock = Clock()
    report(Progress("checking"))
    identity = Identity.of(config.model or "", config)
    dataset = read_dataset(config.data, config.format, config.split, min_score=config.min_score, strict=config.strict)
    if not dataset.records:
        raise UsageError(f"the split {config.split!r} of {config.data} holds no images")
    worklist = InlineWorklist.of(_listing(dataset), config.unit_size)
    report(Progress("starting", planned=worklist.num_images))
    pipeline = Pipeline(identity.decode, identity.predict, config.predictors, config.verbose)
    results: dict[int, ImageResult] = {}
    errors: Counter[str] = Counter()
    for rows in pipeline.rows(worklist):
        for row in rows.to_pylist():
            if row[schema.STATUS] == schema.STATUS_DEFERRED:
                raise StoreError(f"{row[schema.IMAGE_URI]} could not be fetched: {row[schema.ERROR_MESSAGE]}")
            errors.update([row[schema.ERROR_CODE]] if row[schema.ERROR_CODE] else [])
            results[row[schema.ORDINAL]] = _result(dataset.records[row[schema.ORDINAL]], row[schema.DETECTIONS] or [])
        clock.tick(len(results))
        report(Progress("evaluating", len(results), worklist.num_images, {"images/s": clock.images_per_s_steady}))
    summary = _summarise(config, identity, dataset, [results[ordinal] for ordinal in sorted(results)], errors, clock)
    if config.output is not None:
        document = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n"
        storage.write_bytes(storage.normalise(config.output), document.encode())
    return summary


def _listing(dataset: Dataset) -> pa.Table:
    uris = pa.array([record.image_uri for record in dataset.records], pa.string())
    unknown = [pa.nulls(len(uris), field.type) for field in list(schema.LISTING_SCHEMA)[1:]]
    return pa.table([uris, *unknown], schema=schema.LISTING_SCHEMA)


def _result(record: Record, detections: list[dict[str, Any]]) -> ImageResult:
    edges = (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)
    return ImageResult(
        true_labels=tuple(annotation.label for annotation in record.objects),
        true_boxes_xyxy_px=np.array(
            [annotation.box_xyxy_px or (0, 0, 0, 0) for annotation in record.objects], dtype=np.float64
        ).reshape(-1, 4),
        true_has_box=np.array([annotation.box_xyxy_px is not None for annotation in record.objects], dtype=np.bool_),
        true_is_crowd=np.array([annotation.is_crowd for annotation in record.objects], dtype=np.bool_),
        labels=tuple(detection[schema.LABEL] for detection in detections),
        scores=tuple(detection[schema.SCORE] for detection in detections),
        boxes_xyxy_px=np.array([[d[edge] for edge in edges] for d in detections], dtype=np.float64).reshape(-1, 4),
    )


def _summarise(
    config: EvaluateConfig,
    identity: Identity,
    dataset: Dataset,
    results: list[ImageResult],
    errors: Counter[str],
    clock: Clock,
) -> EvaluationSummary:
    metrics = localization(results)
    map_50_95, map_50 = mean_average_precision(results)
    return EvaluationSummary(
        model_id=identity.model_id,
        data=config.data,
        split=config.split,
        images=len(results),
        objects=sum(len(result.true_labels) for result in results),
        class_accuracy=metrics.class_accuracy,
        mean_iou=metrics.mean_iou,
        localization_accuracy=metrics.localization_accuracy,
        map_50_95=map_50_95,
        map_50=map_50,
        errors=dict(errors),
        left_out=dict(dataset.left_out),
        wall_s=clock.wall_s,
    )
