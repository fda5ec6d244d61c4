"""All metrics of an evaluation, and its summary in plain values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from locray.datasets.records import Dataset
from locray.evaluation.comparison import Evaluated
from locray.metrics.calibration import BestThreshold, Calibration, best_threshold, calibration, score_detections
from locray.metrics.classification import ClassMetrics, ConfusionMatrix, class_metrics, confusion_matrix
from locray.metrics.detection import DetectionMetrics, detection_metrics
from locray.metrics.localization import LocalizationMetrics, localization_metrics
from locray.metrics.results import ImageResult


@dataclass(frozen=True, slots=True)
class EvaluationMetrics:
    """All metrics of predictions against annotations. Without an annotated box, metrics of boxes are 0 or None."""

    images: int
    objects: int
    has_boxes: bool
    localization: LocalizationMetrics
    detection: DetectionMetrics
    classes: tuple[ClassMetrics, ...]
    confusion: ConfusionMatrix
    calibration: Calibration
    best_threshold: BestThreshold | None
    score_threshold: float
    """Of the precision and recall of each class, and of the confusion matrix."""

    @classmethod
    def of(cls, results: Sequence[ImageResult], score_threshold: float = 0.0) -> Self:
        """Computes the metrics of a data set, precision, recall and confusion from a score threshold."""
        detection = detection_metrics(results)
        scored = score_detections(results)
        return cls(
            images=len(results),
            objects=sum(len(result.object_labels) for result in results),
            has_boxes=bool(detection.classes),
            localization=localization_metrics(results),
            detection=detection,
            classes=class_metrics(results, detection.classes, score_threshold),
            confusion=confusion_matrix(results, score_threshold),
            calibration=calibration(scored),
            best_threshold=best_threshold(scored),
            score_threshold=score_threshold,
        )


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix in plain values; the last row and column stand for "nothing"."""

    labels: list[str]
    counts: list[list[int]]
    counted: str
    """`images`, each by its best detection, or `objects`."""


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """Metrics of one split, as `--json` prints them. Metrics that need annotations which aren't there are None."""

    model_id: str
    config_hash: str
    data: str
    split: str
    table: str | None
    images: int
    objects: int
    class_accuracy: float
    mean_iou: float | None
    localization_accuracy: float | None
    map_50_95: float | None
    map_50: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    score_threshold: float
    """Of the precision and recall of each class, and of the confusion matrix: the model's, or --score-threshold."""
    best_threshold: BestThreshold | None
    """The score threshold with the highest F1."""
    calibration: Calibration
    classes: list[ClassMetrics]
    confusion: Confusion
    errors: dict[str, int]
    """Images that could not be labelled, by error code."""
    skipped: dict[str, int]
    """Annotations that can't be used, by reason."""
    wall_s: float

    @classmethod
    def of(
        cls,
        data: str,
        dataset: Dataset,
        evaluated: Evaluated,
        metrics: EvaluationMetrics,
        *,
        table: str | None,
        wall_s: float,
    ) -> Self:
        """Summarises the evaluation of the data at a URI, by a model or from a table."""
        localization, detection, confusion = metrics.localization, metrics.detection, metrics.confusion
        return cls(
            model_id=evaluated.model_id,
            config_hash=evaluated.config_hash,
            data=data,
            split=dataset.split,
            table=table,
            images=metrics.images,
            objects=metrics.objects,
            class_accuracy=localization.class_accuracy,
            mean_iou=localization.mean_iou if metrics.has_boxes else None,
            localization_accuracy=localization.localization_accuracy if metrics.has_boxes else None,
            map_50_95=detection.map_50_95 if metrics.has_boxes else None,
            map_50=detection.map_50 if metrics.has_boxes else None,
            map_small=detection.map_small,
            map_medium=detection.map_medium,
            map_large=detection.map_large,
            score_threshold=metrics.score_threshold,
            best_threshold=metrics.best_threshold,
            calibration=metrics.calibration,
            classes=list(metrics.classes),
            confusion=Confusion(
                list(confusion.labels), confusion.counts.tolist(), "images" if confusion.per_image else "objects"
            ),
            errors=evaluated.errors,
            skipped=dict(sorted((Counter(dataset.skipped) + Counter(evaluated.skipped)).items())),
            wall_s=wall_s,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
