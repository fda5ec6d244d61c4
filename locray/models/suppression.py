"""Non-maximum suppression.

Shapes: B images, N candidates per image, K places per image in the result.
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from locray.models.detections import Candidates, gather_rows
from locray.models.interface import PredictedBoxes

# The cost of `nms` grows with the number of boxes times those that it keeps: one image per call, unless it has few.
_BOXES_PER_CALL = 1024
# A place costs a GPU the time of sixteen small kernels: a thousand places are better left to `nms`.
_MAX_PLACES_WITHOUT_NMS = 256


def suppress(found: Candidates, iou_threshold: float, num_places: int, input_size_px: int) -> PredictedBoxes:
    """Greedy non-maximum suppression among candidates of the same image and label.

    Output shapes don't depend on the data, so that the function can be exported. An image with a score that is NaN gets
    it as its first score.

    Args:
        found: the candidates.
        iou_threshold: of two candidates with a larger IoU, the one with the lower score is dropped.
        num_places: K, number of places per image in the result.
        input_size_px: side of the square input.
    """
    num_images, num_candidates = found.scores.shape
    num_found = min(num_places, num_candidates)
    if found.scores.is_cuda and num_found <= _MAX_PLACES_WITHOUT_NMS:
        scores, places = select_in_turn(found, iou_threshold, num_found)
    else:
        is_kept = _is_kept(found, iou_threshold, input_size_px)
        scores, places = torch.where(is_kept, found.scores, 0).topk(num_found, dim=1)
    used = scores > 0
    boxes = torch.where(used[:, :, None], gather_rows(found.boxes_xyxy_px, places), 0)
    label_ids = torch.where(used, found.label_ids.gather(1, places), 0)
    missing = num_places - scores.shape[1]
    if missing > 0:
        boxes = torch.cat([boxes, boxes.new_zeros(num_images, missing, 4)], dim=1)
        scores = torch.cat([scores, scores.new_zeros(num_images, missing)], dim=1)
        label_ids = torch.cat([label_ids, label_ids.new_zeros(num_images, missing)], dim=1)
    return PredictedBoxes(boxes, scores, label_ids)


def select_in_turn(found: Candidates, iou_threshold: float, num_places: int) -> tuple[Tensor, Tensor]:
    """The scores (B, K) and places (B, K) that remain, best first, in a fixed number of operations.

    Takes the best candidate of each image and drops what overlaps it, K times: a GPU needs no `nms`, whose output has
    as many rows as boxes remain, and whose number the CPU has to wait for. IoUs are computed from the coordinates as
    they are, in float32.
    """
    boxes, scores, label_ids = found
    num_candidates = scores.shape[1]
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    candidates = torch.arange(num_candidates, device=scores.device)
    best_scores, best_places = [], []
    for _ in range(num_places):
        best, place = scores.max(dim=1, keepdim=True)  # the first of equal ones
        box = gather_rows(boxes, place)
        sides = torch.minimum(boxes[..., 2:], box[..., 2:]) - torch.maximum(boxes[..., :2], box[..., :2])
        width, height = sides.clamp(min=0).unbind(dim=2)
        overlap = width * height
        iou = overlap / (areas + areas.gather(1, place) - overlap)
        is_dropped = (iou > iou_threshold) & (label_ids == label_ids.gather(1, place))
        scores = scores.masked_fill(is_dropped | (candidates == place), 0)
        best_scores.append(best)
        best_places.append(place)
    return torch.cat(best_scores, dim=1), torch.cat(best_places, dim=1)


def _is_kept(found: Candidates, iou_threshold: float, input_size_px: int) -> Tensor:
    """Mask (B, N) of the candidates that survive."""
    num_images, num_candidates = found.scores.shape
    images_per_call = 1 if found.scores.is_cuda else max(1, _BOXES_PER_CALL // num_candidates)
    parts = [
        _is_kept_in_one_call(
            Candidates(*(values[start : start + images_per_call] for values in found)), iou_threshold, input_size_px
        )
        for start in range(0, num_images, images_per_call)
    ]
    return torch.cat(parts)


def _is_kept_in_one_call(found: Candidates, iou_threshold: float, input_size_px: int) -> Tensor:
    """Mask (B, N) of the candidates that survive.

    One call of `nms` serves all images and labels: their boxes are shifted to disjoint squares of the plane. A shift
    in float64 keeps all digits of float32 coordinates, so that no IoU depends on the position of an image in its
    batch; `batched_nms` shifts in float32. GPUs are slow in float64: there a call has one image, and few labels.
    """
    boxes, scores, label_ids = found
    used = ~(scores <= 0)
    image_ids = torch.arange(len(scores), device=scores.device)[:, None]
    squares = (label_ids.max() + 1) * image_ids + label_ids + 1
    dtype = torch.float32 if scores.is_cuda else torch.float64
    shifted = boxes.to(dtype) + (squares * (input_size_px + 1))[:, :, None]
    # Unused places share one box, (0, 0, 1, 1), in a square of their own: the first one suppresses all others.
    nowhere = (torch.arange(4, device=boxes.device) >= 2).to(dtype)  # noqa: PLR2004
    shifted = torch.where(used[:, :, None], shifted, nowhere)
    survivors = nms(shifted.flatten(0, 1), scores.to(dtype).flatten(), iou_threshold)
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    return kept.index_fill(0, survivors, value=True).view_as(scores) & used
