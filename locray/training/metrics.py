"""Metrics on the validation split, from predictions of batches."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from locray.metrics.calibration import best_threshold, score_detections
from locray.metrics.detection import mean_average_precision
from locray.metrics.localization import localization_metrics
from locray.metrics.results import ImageResult
from locray.models.interface import NO_OBJECT, PredictedBoxes
from locray.training.batches import BOXES, HAS_BOX, LABEL_IDS, OUTCOMES

CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY = "class_accuracy", "mean_iou", "localization_accuracy"
MAP_50_95, MAP_50 = "map_50_95", "map_50"
SCORE = "score"
"""The best epoch has the highest score."""
BEST_SCORE_THRESHOLD = "best_score_threshold"
"""Score threshold with the highest F1, for networks that find many objects."""

METRICS = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY, MAP_50_95, MAP_50)
SHOWN = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY, MAP_50)

_Found = tuple[tuple[str, ...], tuple[float, ...], NDArray[np.float64]]
_NOTHING: _Found = ((), (), np.zeros((0, 4)))


def image_results(
    predicted: PredictedBoxes | None, batch: Mapping[str, Tensor], classes: Sequence[str]
) -> list[ImageResult]:
    """Annotations and predictions of each image of a batch, in pixels of the network's input.

    Args:
        predicted: Predictions for the usable images of the batch, in their order; None where none is usable.
        batch: See `batches`. An image that can't be used has no predictions, as in an evaluation.
        classes: Names by label id.
    """
    names = np.asarray(classes, dtype=object)
    usable = (batch[OUTCOMES] == 0).numpy()
    places = np.cumsum(usable) - 1
    results = []
    for row, is_usable in enumerate(usable):
        label_ids = batch[LABEL_IDS][row].numpy()
        used = label_ids != NO_OBJECT
        found = _found(predicted, places[row], names) if predicted is not None and is_usable else _NOTHING
        results.append(
            ImageResult(
                true_labels=tuple(names[label_ids[used] % len(names)]),
                true_boxes_xyxy_px=batch[BOXES][row].double().numpy()[used],
                true_has_box=batch[HAS_BOX][row].numpy()[used],
                true_is_crowd=label_ids[used] >= len(names),
                labels=found[0],
                scores=found[1],
                boxes_xyxy_px=found[2],
            )
        )
    return results


def _found(predicted: PredictedBoxes, place: int, names: NDArray[np.object_]) -> _Found:
    kept = (predicted.scores[place] > 0).numpy()
    return (
        tuple(names[predicted.label_ids[place].numpy()[kept]]),
        tuple(predicted.scores[place].double().numpy()[kept].tolist()),
        predicted.boxes_xyxy_px[place].double().numpy()[kept],
    )


def summarise(results: Sequence[ImageResult], *, one_object: bool) -> dict[str, float]:
    """Metrics of a split.

    The score of a network that finds one object per image is the mean of the three localization metrics (a single one
    moves in coarse steps on a small split), or class accuracy where no box is known. A detector's is mAP@[.5:.95], and
    its best score threshold is included.

    Args:
        results: All images of the split.
        one_object: Whether the network finds one object per image.
    """
    found = localization_metrics(results)
    metrics = {CLASS_ACCURACY: found.class_accuracy}
    if not any(result.true_has_box.any() for result in results):
        return metrics | {SCORE: found.class_accuracy}
    map_50_95, map_50 = mean_average_precision(results)
    metrics |= {
        MEAN_IOU: found.mean_iou,
        LOCALIZATION_ACCURACY: found.localization_accuracy,
        MAP_50_95: map_50_95,
        MAP_50: map_50,
    }
    if not one_object:
        best = best_threshold(score_detections(results))
        return metrics | {SCORE: map_50_95, BEST_SCORE_THRESHOLD: best.score_threshold if best else 0.0}
    three = (found.class_accuracy, found.mean_iou, found.localization_accuracy)
    return metrics | {SCORE: sum(three) / len(three)}
