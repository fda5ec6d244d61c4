"""How well a network does on the validation split, from the predictions of a batch. Called by the worker."""

from collections.abc import Sequence

import numpy as np

from locray.metrics.calibration import best_cut, judge
from locray.metrics.detection import mean_average_precision
from locray.metrics.localization import localization
from locray.metrics.results import ImageResult
from locray.models.contract import NO_OBJECT, PredictedBoxes, Targets

CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY = "class_accuracy", "mean_iou", "localization_accuracy"
MAP_50_95, MAP_50 = "map_50_95", "map_50"
SCORE = "score"
"""What the best epoch is chosen by."""
BEST_CUT = "best_score_threshold"
"""The score threshold with the highest F1, of networks that find many objects."""

METRICS = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY, MAP_50_95, MAP_50)
SHOWN = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY, MAP_50)


def image_results(predicted: PredictedBoxes, targets: Targets, classes: Sequence[str]) -> list[ImageResult]:
    """A batch's images one by one. Boxes stay in pixels of the network's input, for both sides."""
    names = np.asarray(classes, dtype=object)
    results = []
    for row in range(len(predicted.scores)):
        kept = (predicted.scores[row] > 0).numpy()
        used = (targets.label_ids[row] != NO_OBJECT).numpy()
        results.append(
            ImageResult(
                true_labels=tuple(names[targets.label_ids[row].numpy()[used]]),
                true_boxes_xyxy_px=targets.boxes_xyxy_px[row].double().numpy()[used],
                true_has_box=targets.has_box[row].numpy()[used],
                true_is_crowd=np.zeros(used.sum(), dtype=bool),
                labels=tuple(names[predicted.label_ids[row].numpy()[kept]]),
                scores=tuple(predicted.scores[row].double().numpy()[kept].tolist()),
                boxes_xyxy_px=predicted.boxes_xyxy_px[row].double().numpy()[kept],
            )
        )
    return results


def summarise(results: Sequence[ImageResult], *, one_object: bool) -> dict[str, float]:
    """The metrics of a split. `one_object`: the network finds one object an image.

    The score is then the mean of the three localization metrics (one alone moves in coarse steps on a small split),
    or class accuracy where no box is known; for a detector it is mAP@[.5:.95], and the score to cut at comes with it.
    """
    found = localization(results)
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
        cut = best_cut(judge(results))
        return metrics | {SCORE: map_50_95, BEST_CUT: cut.score_threshold if cut else 0.0}
    three = (found.class_accuracy, found.mean_iou, found.localization_accuracy)
    return metrics | {SCORE: sum(three) / len(three)}
