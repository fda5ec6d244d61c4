"""Short notation for results of images."""

from collections.abc import Collection, Sequence

import numpy as np

from locray.metrics.results import ImageResult

Box = tuple[float, ...]


def result(
    truth: Sequence[tuple[str, Box | None]], found: Sequence[tuple[str, float, Box]], crowds: Collection[int] = ()
) -> ImageResult:
    """`truth` holds (label, box or None), with crowds at the positions `crowds`; `found` is sorted, best first."""
    return ImageResult(
        true_labels=tuple(label for label, _ in truth),
        true_boxes_xyxy_px=np.array([box or (0, 0, 0, 0) for _, box in truth], dtype=float).reshape(-1, 4),
        true_has_box=np.array([box is not None for _, box in truth], dtype=bool),
        true_is_crowd=np.array([index in crowds for index in range(len(truth))], dtype=bool),
        labels=tuple(label for label, _, _ in found),
        scores=tuple(score for _, score, _ in found),
        boxes_xyxy_px=np.array([box for _, _, box in found], dtype=float).reshape(-1, 4),
    )


BOX = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)
FAR = (50.0, 50.0, 60.0, 60.0)
