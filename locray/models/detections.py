"""Parts of all detectors: selection of candidates, decoding of boxes, and targets for torchvision's losses.

Shapes: as in `interface`, and N candidates per image, A anchors, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from locray.models.interface import NO_OBJECT, Targets

MAX_CANDIDATES = 1000
"""Candidates per image before suppression."""

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
    """The `MAX_CANDIDATES` best of scores (B, A, C) per image; scores up to `floor` become 0, NaN stays."""
    num_classes = scores.shape[2]
    flat = torch.where(scores <= floor, 0, scores).flatten(1)
    best, places = flat.topk(min(MAX_CANDIDATES, flat.shape[1]), dim=1)
    return TopScores(best, places // num_classes, places % num_classes)


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of values (B, A, D) at indices (B, N): (B, N, D)."""
    return values.gather(1, indices[:, :, None].expand(-1, -1, values.shape[2]))


def clipped_candidates(boxes_xyxy_px: Tensor, scores: Tensor, label_ids: Tensor, input_size_px: int) -> Candidates:
    """Candidates with boxes (B, N, 4) clipped to the image; those outside of it get score 0."""
    boxes = boxes_xyxy_px.clamp(0, input_size_px)
    is_outside = (boxes[..., 2:] - boxes[..., :2]).amin(dim=2) < _MIN_SIDE_PX
    return Candidates(boxes, torch.where(is_outside, 0, scores), label_ids)


def decode_boxes(coder: BoxCoder, offsets: Tensor, anchors_xyxy_px: Tensor) -> Tensor:
    """Boxes (..., 4) from offsets (..., 4) and their anchors (..., 4), coded as in R-CNN (Girshick et al. 2014).

    The same as `coder.decode_single`, which makes tensors on the CPU: a CUDA graph can't hold their copies.
    """
    weight_x, weight_y, weight_width, weight_height = coder.weights
    left, top, right, bottom = anchors_xyxy_px.to(offsets.dtype).unbind(dim=-1)
    shift_x, shift_y, log_width, log_height = offsets.unbind(dim=-1)
    width, height = right - left, bottom - top
    centre_x = shift_x / weight_x * width + (left + 0.5 * width)
    centre_y = shift_y / weight_y * height + (top + 0.5 * height)
    half_width = 0.5 * (torch.exp((log_width / weight_width).clamp(max=coder.bbox_xform_clip)) * width)
    half_height = 0.5 * (torch.exp((log_height / weight_height).clamp(max=coder.bbox_xform_clip)) * height)
    corners = (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)
    return torch.stack(corners, dim=-1)


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
