"""How well a network does on the validation split, from the predictions of a batch. Called by the worker."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from locray.metrics.calibration import best_threshold, score_detections
from locray.metrics.detection import mean_average_precision
from locray.metrics.localization import localization_metrics
from locray.metrics.results import ImageResult
from locray.models.interface import NO_OBJECT, PredictedBoxes
from locray.training.samples import BOXES, HAS_BOX, LABEL_IDS, OUTCOMES

CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY = "class_accuracy", "mean_iou", "localization_accuracy"
MAP_50_95, MAP_50 = "map_50_95", "map_50"
SCORE = "score"
"""What the best epoch is chosen by."""
BEST_CUT = "best_score_threshold"
"""The score threshold with the highest F1, of networks that find many objects."""

METRICS = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY, MAP_50_95, MAP_50)
SHOWN = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY, MAP_50)

_Found = tuple[tuple[str, ...], tuple[float, ...], NDArray[np.float64]]
_NOTHING: _Found = ((), (), np.zeros((0, 4)))


def image_results(
    predicted: PredictedBoxes | None, batch: Mapping[str, Tensor], classes: Sequence[str]
) -> list[ImageResult]:
    """A batch's images one by one. Boxes stay in pixels of the network's input, for both sides.

    Args:
        predicted: what was found in the usable images of the batch, in their order; None where none is usable.
        batch: of `samples`. In an image that can't be used nothing is found, as in an evaluation.
        classes: the names.
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
    """The metrics of a split. `one_object`: the network finds one object an image.

    The score is then the mean of the three localization metrics (one alone moves in coarse steps on a small split),
    or class accuracy where no box is known; for a detector it is mAP@[.5:.95], and the score to cut at comes with it.
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
        cut = best_threshold(score_detections(results))
        return metrics | {SCORE: map_50_95, BEST_CUT: cut.score_threshold if cut else 0.0}
    three = (found.class_accuracy, found.mean_iou, found.localization_accuracy)
    return metrics | {SCORE: sum(three) / len(three)}
