"""Comparison of an exported network with its artifact, detection by detection.

Detections of an image are compared as a set: where scores are tied, another runtime may order them differently.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from locray.convert.export_formats import ExportedFile, Predict, eager_network, root_cause
from locray.errors import ExportError
from locray.models.artifact import LoadedArtifact
from locray.models.interface import PredictedBoxes

_MAX_BOX_DIFFERENCE_PX = 0.05
_MAX_SCORE_DIFFERENCE = 1e-3
_TIED = 1e-5


@dataclass(frozen=True, slots=True)
class DetectionDiff:
    """Largest differences between corresponding detections of two networks; NaN where an output is not finite."""

    box_px: float
    score: float
    matched: int
    """Number of detections of the artifact with a counterpart."""
    unmatched: int
    """Number of those without a counterpart of the same label and about the same score."""

    @property
    def is_within_bounds(self) -> bool:
        """Whether float32 arithmetic explains the difference."""
        return self.box_px <= _MAX_BOX_DIFFERENCE_PX and self.score <= _MAX_SCORE_DIFFERENCE and self.unmatched == 0

    def __str__(self) -> str:
        return (
            f"boxes differ by up to {self.box_px:.3g} px (allowed: {_MAX_BOX_DIFFERENCE_PX}), scores by up to "
            f"{self.score:.3g} (allowed: {_MAX_SCORE_DIFFERENCE}), and {self.unmatched} detections have no counterpart"
        )


def compare_with_artifact(artifact: LoadedArtifact, exported: ExportedFile, images: Tensor) -> DetectionDiff:
    """Runs both networks on images (N, S, S, 3) uint8, in float32 on the CPU.

    Raises:
        ExportError: the exported network fails at an image, or its outputs have other shapes or dtypes.
    """
    expected = eager_network(artifact)(images)
    try:
        found = _predict_all(exported.predict, images, exported.batch_size)
    except Exception as error:
        raise ExportError(
            f"the exported network fails at an image ({root_cause(error)}). No file was written"
        ) from error
    return detection_diff(expected, found)


def detection_diff(expected: PredictedBoxes, found: PredictedBoxes) -> DetectionDiff:
    """Compares predictions for the same images.

    Raises:
        ExportError: shapes or dtypes differ.
    """
    for name, one, other in zip(PredictedBoxes._fields, expected, found, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ExportError(
                f"the exported network returns {name} as {other.dtype} {tuple(other.shape)}, expected {one.dtype} "
                f"{tuple(one.shape)}. No file was written"
            )
    box_px, matched, unmatched = 0.0, 0, 0
    for index in range(len(expected.scores)):
        per_image = (PredictedBoxes(*(values[index] for values in boxes)) for boxes in (expected, found))
        distances, missing = _match(*per_image)
        box_px = max([box_px, *distances])
        matched += len(distances)
        unmatched += missing
    score = (expected.scores - found.scores).abs().amax().item()
    if not (found.boxes_xyxy_px.isfinite().all() and found.scores.isfinite().all()):
        box_px = score = torch.nan
    return DetectionDiff(box_px, score, matched, unmatched)


def _match(expected: PredictedBoxes, found: PredictedBoxes) -> tuple[list[float], int]:
    """Distances in pixels between matched detections of one image, and the number of unmatched ones."""
    distance_px = (expected.boxes_xyxy_px[:, None] - found.boxes_xyxy_px[None, :]).abs().amax(dim=2)
    same_label = expected.label_ids[:, None] == found.label_ids[None, :]
    same_score = (expected.scores[:, None] - found.scores[None, :]).abs() <= _MAX_SCORE_DIFFERENCE
    distance_px = torch.where(same_label & same_score, distance_px, torch.inf)
    lowest = expected.scores[-1].item()
    distances, missing = [], 0
    for place, score in enumerate(expected.scores.tolist()):
        if score == 0:
            break
        nearest = int(distance_px[place].argmin())
        distance = distance_px[place, nearest].item()
        if distance < torch.inf:
            distances.append(distance)
            distance_px[:, nearest] = torch.inf
        elif place == 0 or score - lowest > _TIED:
            missing += 1
        # Among detections tied with the last place, chance decides which ones are returned.
    return distances, missing


def _predict_all(predict: Predict, images: Tensor, batch_size: int | None) -> PredictedBoxes:
    """Predictions for all images, in batches of `batch_size`; for any size, the first image is a batch of its own."""
    if batch_size is None:
        parts = [predict(images[:1]), predict(images[1:])]
    else:
        missing = -len(images) % batch_size
        padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        parts = [predict(padded[start : start + batch_size]) for start in range(0, len(padded), batch_size)]
    return PredictedBoxes(*(torch.cat(values)[: len(images)] for values in zip(*parts, strict=True)))
