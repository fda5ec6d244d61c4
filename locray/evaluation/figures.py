"""Every metric of an evaluation at once. Made by `run` and by the pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from locray.metrics.calibration import BestThreshold, Calibration, best_threshold, calibration, score_detections
from locray.metrics.classification import ClassMetrics, ConfusionMatrix, class_metrics, confusion_matrix
from locray.metrics.detection import DetectionMetrics, detection_metrics
from locray.metrics.localization import LocalizationMetrics, localization_metrics
from locray.metrics.results import ImageResult


@dataclass(frozen=True, slots=True)
class Figures:
    """What predictions are worth against annotations. Where no box is annotated, figures of boxes are 0 or absent."""

    images: int
    objects: int
    has_boxes: bool
    localization: LocalizationMetrics
    detection: DetectionMetrics
    classes: tuple[ClassMetrics, ...]
    confusion: ConfusionMatrix
    calibration: Calibration
    best_cut: BestThreshold | None

    @classmethod
    def of(cls, results: Sequence[ImageResult]) -> "Figures":
        """Computes all of them."""
        average_precision = detection_metrics(results)
        judged = score_detections(results)
        return cls(
            images=len(results),
            objects=sum(len(result.object_labels) for result in results),
            has_boxes=bool(average_precision.classes),
            localization=localization_metrics(results),
            detection=average_precision,
            classes=class_metrics(results, average_precision.classes),
            confusion=confusion_matrix(results),
            calibration=calibration(judged),
            best_cut=best_threshold(judged),
        )
