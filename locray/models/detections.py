"""What detectors share: candidates of a batch, their suppression, and targets as torchvision's losses take them.

Letters of shapes as in `interface`, and N candidates an image, A anchors, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from locray.models.interface import NO_OBJECT, PredictedBoxes, Targets

MAX_CANDIDATES = 1000
"""Candidates of an image that go into the suppression."""

# The cost of a suppression grows with its boxes times those that stay. A processor gains nothing from more images a
# call; a GPU works on all boxes at once, and waits at the end of every call.
_BOXES_PER_CALL = 1024
_BOXES_PER_CALL_ON_GPU = 16384
_SMALLEST_SIDE_PX = 1e-2
_SMALLEST_OBJECT_PX = 1.0


class Candidates(NamedTuple):
    """What an image may show, before boxes of the same object are suppressed. An unused place has score 0."""

    boxes_xyxy_px: Tensor
    """(B, N, 4) float32, pixels of the network input, inside it."""
    scores: Tensor
    """(B, N) float32 in [0, 1]."""
    label_ids: Tensor
    """(B, N) int64."""


class Choice(NamedTuple):
    """The best scores of a batch, and what they belong to."""

    scores: Tensor
    """(B, N) float32, highest first."""
    anchors: Tensor
    """(B, N) int64."""
    label_ids: Tensor
    """(B, N) int64."""


def choose(scores: Tensor, floor: float) -> Choice:
    """The `MAX_CANDIDATES` best of scores (B, A, C); what isn't above `floor` becomes 0."""
    num_classes = scores.shape[2]
    flat = torch.where(scores > floor, scores, 0).flatten(1)
    best, places = flat.topk(min(MAX_CANDIDATES, flat.shape[1]), dim=1)
    return Choice(best, places // num_classes, places % num_classes)


def gather(values: Tensor, places: Tensor) -> Tensor:
    """The rows of values (B, A, D) at places (B, N), as (B, N, D)."""
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


def candidates(boxes_xyxy_px: Tensor, scores: Tensor, label_ids: Tensor, input_size_px: int) -> Candidates:
    """Candidates of boxes (B, N, 4), cut to the image; one of which nothing is left there gets score 0."""
    boxes = boxes_xyxy_px.clamp(0, input_size_px)
    seen = (boxes[..., 2:] - boxes[..., :2]).amin(dim=2) >= _SMALLEST_SIDE_PX
    return Candidates(boxes, torch.where(seen, scores, 0), label_ids)


def suppress(found: Candidates, iou_threshold: float, num_places: int, input_size_px: int) -> PredictedBoxes:
    """Greedy non-maximum suppression among the candidates of the same image and label id.

    One call for as many images as are worth it. Shapes don't depend on the data, so it can be exported.

    Args:
        found: the candidates.
        iou_threshold: of two candidates that overlap by more than this, the one with the lower score goes.
        num_places: places for what is left.
        input_size_px: side of the square input.
    """
    num_images, num_candidates = found.scores.shape
    boxes_per_call = _BOXES_PER_CALL_ON_GPU if found.scores.is_cuda else _BOXES_PER_CALL
    images_per_call = max(1, boxes_per_call // num_candidates)
    parts = [
        _kept(Candidates(*(values[start : start + images_per_call] for values in found)), iou_threshold, input_size_px)
        for start in range(0, num_images, images_per_call)
    ]
    scores, places = torch.where(torch.cat(parts), found.scores, 0).topk(min(num_places, num_candidates), dim=1)
    used = scores > 0
    boxes = torch.where(used[:, :, None], gather(found.boxes_xyxy_px, places), 0)
    label_ids = torch.where(used, found.label_ids.gather(1, places), 0)
    missing = num_places - scores.shape[1]
    if missing > 0:
        boxes = torch.cat([boxes, boxes.new_zeros(num_images, missing, 4)], dim=1)
        scores = torch.cat([scores, scores.new_zeros(num_images, missing)], dim=1)
        label_ids = torch.cat([label_ids, label_ids.new_zeros(num_images, missing)], dim=1)
    return PredictedBoxes(boxes, scores, label_ids)


def _kept(found: Candidates, iou_threshold: float, input_size_px: int) -> Tensor:
    """Which candidates (B, N) stay.

    Each image and label id has a square of the plane to itself. In float64 the shift costs no digit of a float32
    coordinate, so no IoU depends on the place of an image in its batch; `batched_nms` shifts in float32.
    """
    boxes, scores, label_ids = found
    used = scores > 0
    image_ids = torch.arange(len(scores), device=scores.device)[:, None]
    squares = (label_ids.max() + 1) * image_ids + label_ids + 1
    shifted = boxes.double() + (squares * (input_size_px + 1))[:, :, None]
    # Unused places share one box in a square of their own: the first of them suppresses all others at once.
    nowhere = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=boxes.device)
    shifted = torch.where(used[:, :, None], shifted, nowhere)
    survivors = nms(shifted.flatten(0, 1), scores.double().flatten(), iou_threshold)
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    return kept.index_fill(0, survivors, value=True).view_as(scores) & used


def target_lists(targets: Targets, first_label: int = 0) -> list[dict[str, Tensor]]:
    """The objects of each image as torchvision's losses take them: `boxes` (n, 4) and `labels` (n,).

    Unused places are left out, and so are objects whose box is not known or too small to be seen.

    Args:
        targets: the objects of a batch.
        first_label: the label of class 0; 1 where 0 means background.
    """
    sides = (targets.boxes_xyxy_px[..., 2:] - targets.boxes_xyxy_px[..., :2]).amin(dim=2)
    usable = targets.has_box & (targets.label_ids != NO_OBJECT) & (sides >= _SMALLEST_OBJECT_PX)
    return [
        {"boxes": boxes[use].float(), "labels": label_ids[use] + first_label}
        for boxes, label_ids, use in zip(targets.boxes_xyxy_px, targets.label_ids, usable, strict=True)
    ]


def grid_sides(input_size_px: int, strides: Sequence[int], num_coarser: int) -> list[int]:
    """Sides of the maps of a pyramid: those of `strides`, then coarser ones, each half of the last, rounded up."""
    sides = [input_size_px // stride for stride in strides]
    for _ in range(num_coarser):
        sides.append(-(-sides[-1] // 2))
    return sides
