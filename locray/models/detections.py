"""Parts of all detectors: selection of candidates, non-maximum suppression, and targets for torchvision's losses.

Shapes: as in `interface`, and N candidates per image, A anchors, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from locray.models.interface import NO_OBJECT, PredictedBoxes, Targets

MAX_CANDIDATES = 1000
"""Candidates per image before suppression."""

# The cost of a suppression grows with the number of boxes times those that it keeps. A CPU gains nothing from more
# images per call; a GPU processes all boxes at once, and synchronises at the end of every call.
_BOXES_PER_CALL = 1024
_BOXES_PER_CALL_ON_GPU = 16384
_MIN_SIDE_PX = 1e-2
_MIN_OBJECT_PX = 1.0


class Candidates(NamedTuple):
    """Detections before non-maximum suppression. An unused place has score 0."""

    boxes_xyxy_px: Tensor
    """(B, N, 4) float32, in pixels of the network input, clipped to it."""
    scores: Tensor
    """(B, N) float32 in [0, 1]."""
    label_ids: Tensor
    """(B, N) int64."""


class TopScores(NamedTuple):
    """The best scores per image, with their anchors and classes."""

    scores: Tensor
    """(B, N) float32, highest first."""
    anchors: Tensor
    """(B, N) int64."""
    label_ids: Tensor
    """(B, N) int64."""


def top_scores(scores: Tensor, floor: float) -> TopScores:
    """The `MAX_CANDIDATES` best of scores (B, A, C) per image; scores up to `floor` become 0."""
    num_classes = scores.shape[2]
    flat = torch.where(scores > floor, scores, 0).flatten(1)
    best, places = flat.topk(min(MAX_CANDIDATES, flat.shape[1]), dim=1)
    return TopScores(best, places // num_classes, places % num_classes)


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of values (B, A, D) at indices (B, N): (B, N, D)."""
    return values.gather(1, indices[:, :, None].expand(-1, -1, values.shape[2]))


def clipped_candidates(boxes_xyxy_px: Tensor, scores: Tensor, label_ids: Tensor, input_size_px: int) -> Candidates:
    """Candidates with boxes (B, N, 4) clipped to the image; those outside of it get score 0."""
    boxes = boxes_xyxy_px.clamp(0, input_size_px)
    is_inside = (boxes[..., 2:] - boxes[..., :2]).amin(dim=2) >= _MIN_SIDE_PX
    return Candidates(boxes, torch.where(is_inside, scores, 0), label_ids)


def suppress(found: Candidates, iou_threshold: float, num_places: int, input_size_px: int) -> PredictedBoxes:
    """Greedy non-maximum suppression among candidates of the same image and label.

    Output shapes don't depend on the data, so that the function can be exported.

    Args:
        found: the candidates.
        iou_threshold: of two candidates with a larger IoU, the one with the lower score is dropped.
        num_places: K, number of places per image in the result.
        input_size_px: side of the square input.
    """
    num_images, num_candidates = found.scores.shape
    boxes_per_call = _BOXES_PER_CALL_ON_GPU if found.scores.is_cuda else _BOXES_PER_CALL
    images_per_call = max(1, boxes_per_call // num_candidates)
    parts = [
        _is_kept(
            Candidates(*(values[start : start + images_per_call] for values in found)), iou_threshold, input_size_px
        )
        for start in range(0, num_images, images_per_call)
    ]
    scores, places = torch.where(torch.cat(parts), found.scores, 0).topk(min(num_places, num_candidates), dim=1)
    used = scores > 0
    boxes = torch.where(used[:, :, None], gather_rows(found.boxes_xyxy_px, places), 0)
    label_ids = torch.where(used, found.label_ids.gather(1, places), 0)
    missing = num_places - scores.shape[1]
    if missing > 0:
        boxes = torch.cat([boxes, boxes.new_zeros(num_images, missing, 4)], dim=1)
        scores = torch.cat([scores, scores.new_zeros(num_images, missing)], dim=1)
        label_ids = torch.cat([label_ids, label_ids.new_zeros(num_images, missing)], dim=1)
    return PredictedBoxes(boxes, scores, label_ids)


def _is_kept(found: Candidates, iou_threshold: float, input_size_px: int) -> Tensor:
    """Mask (B, N) of the candidates that survive.

    One call of `nms` serves all images and labels: their boxes are shifted to disjoint squares of the plane. A shift
    in float64 keeps all digits of float32 coordinates, so that no IoU depends on the position of an image in its
    batch; `batched_nms` shifts in float32.
    """
    boxes, scores, label_ids = found
    used = scores > 0
    image_ids = torch.arange(len(scores), device=scores.device)[:, None]
    squares = (label_ids.max() + 1) * image_ids + label_ids + 1
    shifted = boxes.double() + (squares * (input_size_px + 1))[:, :, None]
    # Unused places share one box in a square of their own, so that the first one suppresses all others.
    nowhere = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=boxes.device)
    shifted = torch.where(used[:, :, None], shifted, nowhere)
    survivors = nms(shifted.flatten(0, 1), scores.double().flatten(), iou_threshold)
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    return kept.index_fill(0, survivors, value=True).view_as(scores) & used


def target_lists(targets: Targets, first_label: int = 0) -> list[dict[str, Tensor]]:
    """Targets in the form of torchvision's losses: `boxes` (n, 4) float32 and `labels` (n,) int64 per image.

    Objects without a box and those of less than a pixel are left out.

    Args:
        targets: objects of a batch.
        first_label: label of class 0; 1 where label 0 means background.
    """
    sides = (targets.boxes_xyxy_px[..., 2:] - targets.boxes_xyxy_px[..., :2]).amin(dim=2)
    usable = targets.has_box & (targets.label_ids != NO_OBJECT) & (sides >= _MIN_OBJECT_PX)
    return [
        {"boxes": boxes[use].float(), "labels": label_ids[use] + first_label}
        for boxes, label_ids, use in zip(targets.boxes_xyxy_px, targets.label_ids, usable, strict=True)
    ]
