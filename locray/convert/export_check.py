"""Whether an exported network gives the answers of its artifact: images to ask about, and what differs.

Called by `export`. Detections are compared as sets: where scores are tied, another runtime may order them otherwise.
"""

from dataclasses import dataclass

import torch

from locray.errors import ExportError
from locray.models.interface import PredictedBoxes

BOX_BOUND_PX = 0.05
SCORE_BOUND = 1e-3
_TIED = 1e-5


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences between two answers to the same images; not a number where an answer is none."""

    box_px: float
    score: float
    compared: int
    """Detections of the artifact that have a counterpart."""
    unmatched: int
    """Those that have no counterpart of the same label, and of the same score but for `SCORE_BOUND`."""

    @property
    def is_within_bounds(self) -> bool:
        """Whether the two are the same answer in float32."""
        return self.box_px <= BOX_BOUND_PX and self.score <= SCORE_BOUND and self.unmatched == 0

    def __str__(self) -> str:
        return (
            f"boxes differ by up to {self.box_px:.3g} px (allowed: {BOX_BOUND_PX}), scores by up to {self.score:.3g} "
            f"(allowed: {SCORE_BOUND}), and {self.unmatched} detections have no counterpart"
        )


def largest_difference(expected: PredictedBoxes, found: PredictedBoxes) -> Difference:
    """Compares two answers to the same images.

    Raises:
        ExportError: they differ in shape or type.
    """
    for name, wanted, given in zip(PredictedBoxes._fields, expected, found, strict=True):
        if wanted.shape != given.shape or wanted.dtype != given.dtype:
            raise ExportError(
                f"the exported network gives {name} as {given.dtype} {tuple(given.shape)}, and not as {wanted.dtype} "
                f"{tuple(wanted.shape)}. No file was written"
            )
    box_px, compared, unmatched = 0.0, 0, 0
    for index in range(len(expected.scores)):
        distances, missing = _matched(_of_image(expected, index), _of_image(found, index))
        box_px = max([box_px, *distances])
        compared += len(distances)
        unmatched += missing
    score = (expected.scores - found.scores).abs().amax().item()
    finite = torch.stack([values.isfinite().all() for values in (found.boxes_xyxy_px, found.scores)]).all()
    return Difference(*((box_px, score) if finite else (torch.nan, torch.nan)), compared, unmatched)


def _of_image(answer: PredictedBoxes, index: int) -> PredictedBoxes:
    return PredictedBoxes(*(values[index] for values in answer))


def _matched(expected: PredictedBoxes, found: PredictedBoxes) -> tuple[list[float], int]:
    """Of one image: how far apart the detections are that belong together, and how many have no counterpart."""
    apart = (expected.boxes_xyxy_px[:, None] - found.boxes_xyxy_px[None, :]).abs().amax(dim=2)
    same_label = expected.label_ids[:, None] == found.label_ids[None, :]
    same_score = (expected.scores[:, None] - found.scores[None, :]).abs() <= SCORE_BOUND
    apart = torch.where(same_label & same_score, apart, torch.inf)
    lowest = expected.scores[-1].item()
    distances, missing = [], 0
    for place, score in enumerate(expected.scores.tolist()):
        if score == 0:
            break
        nearest = int(apart[place].argmin())
        distance = apart[place, nearest].item()
        if distance < torch.inf:
            distances.append(distance)
            apart[:, nearest] = torch.inf
        elif place == 0 or score - lowest > _TIED:
            missing += 1
        # else it is tied with the last place: which of them found one is chance
    return distances, missing
