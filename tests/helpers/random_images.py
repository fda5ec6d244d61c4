"""Random images with detections that cover every rule of matching."""

import numpy as np

from locray.metrics.results import ImageResult

LABELS = ("a", "b", "c", "d")
MAX_OBJECTS = 8


def random_image(random: np.random.Generator, num_detections: int | None = None) -> ImageResult:
    """Objects of all sizes, some crowds; detections near them and elsewhere, sometimes more than COCO counts."""

    def boxes(count: int) -> np.ndarray:
        corners = random.uniform(0, 300, (count, 2))
        return np.concatenate(
            [corners, corners + random.choice([12, 60, 200], (count, 1)) * random.uniform(0.5, 1.5, (count, 2))], 1
        )

    num_objects = int(random.integers(0, MAX_OBJECTS))
    if num_detections is None:
        num_detections = int(random.integers(0, 130 if random.random() < 0.1 else 12))
    true_boxes, found_boxes = boxes(num_objects), boxes(num_detections)
    true_labels, labels = random.choice(LABELS, num_objects), random.choice(LABELS, num_detections)
    for index in range(num_detections if num_objects else 0):
        if random.random() < 0.7:
            near = random.integers(num_objects)
            found_boxes[index] = true_boxes[near] + random.normal(0, 4, 4)
            labels[index] = true_labels[near]
    found_boxes[:, 2:] = np.maximum(found_boxes[:, 2:], found_boxes[:, :2] + 1)
    return ImageResult(
        true_labels=tuple(map(str, true_labels)),
        true_boxes_xyxy_px=true_boxes,
        true_has_box=np.ones(num_objects, dtype=bool),
        true_is_crowd=random.random(num_objects) < 0.2,
        labels=tuple(map(str, labels)),
        # Two digits, so that there are ties within and between images.
        scores=tuple(np.sort(random.random(num_detections).round(2))[::-1].tolist()),
        boxes_xyxy_px=found_boxes,
    )
