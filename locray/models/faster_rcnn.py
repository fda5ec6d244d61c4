"""Faster R-CNN (Ren et al. 2015): a network that proposes boxes, then a head that classifies and refines them.

torchvision's modules, run on square batches. The number of proposals is fixed, so that both stages are static graphs.

Shapes: as in `detections`, and P proposals per image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from locray.models.backbones import Backbone
from locray.models.dense_detectors import MAX_DETECTIONS, anchors_xyxy_px
from locray.models.detections import (
    Candidates,
    clipped_candidates,
    decode_boxes,
    gather_rows,
    target_lists,
    top_scores,
)
from locray.models.interface import LOSS, Normalise, PredictedBoxes, Targets
from locray.models.necks import Pyramid, grid_sides
from locray.models.suppression import suppress

_LOSS_NAMES = {
    "loss_classifier": "class_loss",
    "loss_box_reg": "box_loss",
    "loss_objectness": "objectness_loss",
    "loss_rpn_box_reg": "proposal_loss",
}


class _InFloat32(nn.Module):
    """Converts the outputs of a head to float32: bfloat16 rounds a coordinate of 500 pixels to even numbers."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Any) -> Any:
        first, second = self.head(inputs)
        if isinstance(first, Tensor):
            return first.float(), second.float()
        return [one.float() for one in first], [one.float() for one in second]


class _FixedAnchors(nn.Module):
    """Anchor generator of torchvision's proposal network for a fixed input size."""

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchors_xyxy_px", anchors, persistent=False)

    def forward(self, images: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:  # noqa: ARG002
        return [self.get_buffer("anchors_xyxy_px")] * len(images.image_sizes)


class FasterRcnn(nn.Module):
    """A backbone, a pyramid, a proposal network, and a head that reads the maps inside each proposal.

    Args:
        backbone: gives the feature maps.
        neck: the pyramid.
        torchvision_model: its proposal network and heads are used.
        normalise: normalisation that the backbone was trained with.
        num_classes: C, number of classes.
        input_size_px: side of the square input.
        score_floor: candidates must score higher.
    """

    max_detections = MAX_DETECTIONS
    has_static_postprocess = False

    def __init__(
        self,
        backbone: Backbone,
        neck: Pyramid,
        torchvision_model: Any,
        normalise: Normalise,
        num_classes: int,
        input_size_px: int,
        score_floor: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_size_px = input_size_px
        self.score_floor = score_floor
        self.normalise = normalise
        self.backbone = backbone
        self.neck = neck
        self.rpn = torchvision_model.rpn
        self.roi_heads = torchvision_model.roi_heads
        sides = grid_sides(input_size_px, backbone.strides, neck.num_coarser)
        anchors = anchors_xyxy_px(self.rpn.anchor_generator, input_size_px, sides)
        counts = zip(sides, self.rpn.anchor_generator.num_anchors_per_location(), strict=True)
        self._level_sizes = [side * side * count for side, count in counts]
        self.rpn.anchor_generator = _FixedAnchors(anchors)
        self.rpn.head = _InFloat32(self.rpn.head)
        self.roi_heads.box_predictor = _InFloat32(self.roi_heads.box_predictor)

    def _maps(self, images_u8: Tensor) -> list[Tensor]:
        """Maps of the pyramid, finest first."""
        maps: list[Tensor] = self.neck(self.backbone(self.normalise(images_u8)))
        return maps

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.predict`."""
        return self.postprocess(self.network(images_u8))

    def network(self, images_u8: Tensor) -> tuple[Tensor, ...]:
        """See `LabelModel.network`: proposals before suppression, with their level as label id, and the maps."""
        maps = self._maps(images_u8)
        return (*self._proposals(maps), *maps)

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """See `LabelModel.postprocess`."""
        found = self.second_stage(outputs)
        return suppress(found, self.roi_heads.nms_thresh, self.max_detections, self.input_size_px)

    def second_stage(self, outputs: Sequence[Tensor]) -> Candidates:
        """Candidates of the second stage, before their suppression, from the outputs of `network`."""
        boxes, scores, levels, *maps = outputs
        num_proposals = self.rpn.post_nms_top_n()
        proposed = suppress(Candidates(boxes, scores, levels), self.rpn.nms_thresh, num_proposals, self.input_size_px)
        return self._classified(maps, proposed)

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """See `LabelModel.loss`. Objects without a box are ignored."""
        lists = target_lists(targets, first_label=1)
        frames = [(self.input_size_px, self.input_size_px)] * len(images_u8)
        maps = self._named(self._maps(images_u8))
        proposals, first = self.rpn(ImageList(images_u8, frames), maps, lists)
        _, second = self.roi_heads(maps, proposals, frames, lists)
        parts = {_LOSS_NAMES[name]: part for name, part in {**second, **first}.items()}
        return {LOSS: torch.stack(list(parts.values())).sum(), **parts}

    def _named(self, maps: list[Tensor]) -> dict[str, Tensor]:
        return {str(level): one for level, one in enumerate(maps)}

    def _proposals(self, maps: list[Tensor]) -> Candidates:
        """The most likely anchors of each level, moved by their predicted offsets."""
        objectness, offsets = concat_box_prediction_layers(*self.rpn.head(maps))
        num_images, anchors = len(maps[0]), self.rpn.anchor_generator.get_buffer("anchors_xyxy_px")
        objectness, offsets = objectness.view(num_images, -1), offsets.view(num_images, -1, 4)
        chosen, levels, start = [], [], 0
        for level, scores in enumerate(objectness.split(self._level_sizes, dim=1)):
            indices = scores.topk(min(self.rpn.pre_nms_top_n(), scores.shape[1]), dim=1).indices
            chosen.append(indices + start)
            levels.append(torch.full_like(indices, level))
            start += scores.shape[1]
        places = torch.cat(chosen, dim=1)
        moved = decode_boxes(self.rpn.box_coder, gather_rows(offsets, places), anchors[places])
        scores = objectness.gather(1, places).sigmoid()
        return clipped_candidates(moved, scores, torch.cat(levels, dim=1), self.input_size_px)

    def _classified(self, maps: list[Tensor], proposed: PredictedBoxes) -> Candidates:
        """Candidates from the classes and refined boxes of the proposals (B, P): one static graph."""
        num_images, num_proposals = proposed.scores.shape
        heads, boxes = self.roi_heads, list(proposed.boxes_xyxy_px.unbind())
        frames = [(self.input_size_px, self.input_size_px)] * num_images
        features = heads.box_head(heads.box_roi_pool(self._named(maps), boxes, frames))
        logits, offsets = heads.box_predictor(features)
        scores = logits.softmax(dim=1)[:, 1:].reshape(num_images, num_proposals, self.num_classes)
        best = top_scores(torch.where(proposed.scores[:, :, None] <= 0, 0, scores), self.score_floor)
        # The head also regresses a box for background, its class 0.
        offsets = offsets.reshape(num_images, num_proposals * (self.num_classes + 1), 4)
        offsets = gather_rows(offsets, best.anchors * (self.num_classes + 1) + best.label_ids + 1)
        origins = gather_rows(proposed.boxes_xyxy_px, best.anchors)
        moved = decode_boxes(heads.box_coder, offsets, origins)
        return clipped_candidates(moved, best.scores, best.label_ids, self.input_size_px)
