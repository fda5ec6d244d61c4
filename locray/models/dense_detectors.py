"""FCOS, RetinaNet and SSDlite: detectors in which every anchor of every map is a candidate.

Backbone, neck and head run here, on square batches without resizing per image. The matching of objects and anchors,
the box coder and the losses are those of torchvision's model.

Shapes: as in `detections`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from locray.models.backbones import Backbone
from locray.models.detections import (
    Candidates,
    clipped_candidates,
    decode_boxes,
    gather_rows,
    target_lists,
    top_scores,
)
from locray.models.interface import LOSS, Normalise, PredictedBoxes, Targets
from locray.models.necks import CoarserMaps, Pyramid, grid_sides
from locray.models.suppression import suppress

MAX_DETECTIONS = 100

_LOGITS, _OFFSETS, _CENTRENESS = "cls_logits", "bbox_regression", "bbox_ctrness"
_LOSS_NAMES = {"classification": "class_loss", "bbox_regression": "box_loss", "bbox_ctrness": "centreness_loss"}


def anchors_xyxy_px(generator: nn.Module, input_size_px: int, sides: Sequence[int]) -> Tensor:
    """Anchors (A, 4) float32 of square maps, in pixels of the network input.

    Args:
        generator: an anchor generator of torchvision.
        input_size_px: side of the square input.
        sides: sides of the maps in cells, finest first.
    """
    frame = ImageList(torch.empty(1, 3, input_size_px, input_size_px), [(input_size_px, input_size_px)])
    anchors: Tensor = generator(frame, [torch.empty(1, 1, side, side) for side in sides])[0]
    return anchors


class DenseDetector(nn.Module, ABC):
    """A backbone, a neck, and a head that is applied to every cell of the neck's maps.

    Args:
        backbone: gives the feature maps.
        neck: makes the maps that the head reads.
        torchvision_model: its head, box coder and losses are used; its backbone and transform are deleted.
        normalise: normalisation that the backbone was trained with.
        num_classes: C, number of classes.
        input_size_px: side of the square input.
        score_floor: candidates must score higher.
    """

    max_detections = MAX_DETECTIONS
    has_static_postprocess = True

    def __init__(
        self,
        backbone: Backbone,
        neck: Pyramid | CoarserMaps,
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
        del torchvision_model.backbone, torchvision_model.transform
        self.torchvision_model = torchvision_model
        self.grid_sides = grid_sides(input_size_px, backbone.strides, neck.num_coarser)
        anchors = anchors_xyxy_px(self.torchvision_model.anchor_generator, input_size_px, self.grid_sides)
        self.register_buffer("anchors_xyxy_px", anchors, persistent=False)

    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        """Outputs of the head (B, A, ...) float32, by torchvision's names."""
        outputs = self.torchvision_model.head(self.neck(self.backbone(self.normalise(images_u8))))
        return {name: output.float() for name, output in outputs.items()}

    def network(self, images_u8: Tensor) -> Candidates:
        """See `LabelModel.network`."""
        outputs = self(images_u8)
        best = top_scores(self._scores(outputs), self.score_floor)
        anchors = self.get_buffer("anchors_xyxy_px")[best.anchors]
        boxes = self._decode(gather_rows(outputs[_OFFSETS], best.anchors), anchors)
        return clipped_candidates(boxes, best.scores, best.label_ids, self.input_size_px)

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.predict`."""
        return self.postprocess(self.network(images_u8))

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """See `LabelModel.postprocess`."""
        return suppress(
            Candidates(*outputs), self.torchvision_model.nms_thresh, self.max_detections, self.input_size_px
        )

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """See `LabelModel.loss`. Objects without a box are ignored."""
        outputs = self(images_u8)
        anchors = [self.get_buffer("anchors_xyxy_px")] * len(images_u8)
        parts = {_LOSS_NAMES[name]: part for name, part in self._losses(outputs, anchors, targets).items()}
        return {LOSS: torch.stack(list(parts.values())).sum(), **parts}

    @abstractmethod
    def _scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Scores (B, A, C) in [0, 1]."""

    def _decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (B, N, 4) in pixels, from offsets (B, N, 4) and their anchors (B, N, 4)."""
        return decode_boxes(self.torchvision_model.box_coder, offsets, anchors)

    @abstractmethod
    def _losses(self, outputs: dict[str, Tensor], anchors: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Scalar losses, by torchvision's names."""


class Fcos(DenseDetector):
    """FCOS (Tian et al. 2019): cells near the centre of an object predict the distances to its four sides."""

    def _scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return (outputs[_LOGITS].sigmoid() * outputs[_CENTRENESS].sigmoid()).sqrt()

    def _decode(self, offsets: Tensor, anchors: Tensor) -> Tensor:
        decoded: Tensor = self.torchvision_model.box_coder.decode(offsets, anchors)
        return decoded

    def _losses(self, outputs: dict[str, Tensor], anchors: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        level_sizes = [side * side for side in self.grid_sides]
        losses: dict[str, Tensor] = self.torchvision_model.compute_loss(
            target_lists(targets), outputs, anchors, level_sizes
        )
        return losses


class RetinaNet(DenseDetector):
    """RetinaNet (Lin et al. 2017): focal loss over anchors of several sizes and aspect ratios."""

    def _scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs[_LOGITS].sigmoid()

    def _losses(self, outputs: dict[str, Tensor], anchors: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.torchvision_model.compute_loss(target_lists(targets), outputs, anchors)
        return losses


class SsdLite(DenseDetector):
    """SSDlite (Liu et al. 2016, Sandler et al. 2018): softmax with a background class, hard negative mining."""

    def _scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs[_LOGITS].softmax(dim=2)[:, :, 1:]

    def _losses(self, outputs: dict[str, Tensor], anchors: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        lists = target_lists(targets, first_label=1)
        matched = [self._match(one["boxes"], anchors[0]) for one in lists]
        losses: dict[str, Tensor] = self.torchvision_model.compute_loss(lists, outputs, anchors, matched)
        return losses

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Index of the object matched to each anchor (A,), or -1."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, device=anchors.device)
        matched: Tensor = self.torchvision_model.proposal_matcher(box_iou(boxes, anchors))
        return matched
