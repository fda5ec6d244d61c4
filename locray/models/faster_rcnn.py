"""Faster R-CNN (Ren et al. 2015): proposals of where something is, then what it is. Built by `detector`.

torchvision's modules, run on square batches: proposals have fixed places, so both stages are static graphs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from locray.models.backbones import Backbone
from locray.models.dense_detectors import MAX_DETECTIONS, anchors_xyxy_px
from locray.models.detections import Candidates, candidates, choose, gather, grid_sides, suppress, target_lists
from locray.models.interface import LOSS, Normalise, PredictedBoxes, Targets
from locray.models.pyramids import Pyramid

_PARTS = {
    "loss_classifier": "class_loss",
    "loss_box_reg": "box_loss",
    "loss_objectness": "objectness_loss",
    "loss_rpn_box_reg": "proposal_loss",
}


class _InFloat32(nn.Module):
    """A head whose answers are float32: in bfloat16 a coordinate of 500 pixels is off by one."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Any) -> Any:
        first, second = self.head(inputs)
        if isinstance(first, Tensor):
            return first.float(), second.float()
        return [one.float() for one in first], [one.float() for one in second]


class _FixedAnchors(nn.Module):
    """The anchors of a square input, for torchvision's proposal network."""

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchors_xyxy_px", anchors, persistent=False)

    def forward(self, images: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:  # noqa: ARG002
        return [self.get_buffer("anchors_xyxy_px")] * len(images.image_sizes)


class FasterRcnn(nn.Module):
    """A backbone, a pyramid, a proposal network and a head that reads the maps under each proposal.

    Args:
        backbone: the feature maps.
        neck: the pyramid.
        rules: torchvision's model, of which all but the backbone and the pyramid stays.
        normalise: from pixels to what the backbone was trained on.
        num_classes: number of classes.
        input_size_px: side of the square input.
        score_floor: candidates must score higher.
    """

    max_detections = MAX_DETECTIONS

    def __init__(
        self,
        backbone: Backbone,
        neck: Pyramid,
        rules: Any,
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
        self.rpn = rules.rpn
        self.roi_heads = rules.roi_heads
        sides = grid_sides(input_size_px, backbone.strides, neck.num_coarser)
        anchors = anchors_xyxy_px(self.rpn.anchor_generator, input_size_px, sides)
        counts = zip(sides, self.rpn.anchor_generator.num_anchors_per_location(), strict=True)
        self._level_sizes = [side * side * count for side, count in counts]
        self.rpn.anchor_generator = _FixedAnchors(anchors)
        self.rpn.head = _InFloat32(self.rpn.head)
        self.roi_heads.box_predictor = _InFloat32(self.roi_heads.box_predictor)

    def maps(self, images_u8: Tensor) -> list[Tensor]:
        """The maps of the pyramid, finest first."""
        maps: list[Tensor] = self.neck(self.backbone(self.normalise(images_u8)))
        return maps

    def candidates(self, images_u8: Tensor) -> Candidates:
        """Where (B, 3, S, S) uint8 RGB images may show something; the label is the level. One static graph."""
        return self._proposals(self.maps(images_u8))

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """See `LabelModel.predict`."""
        return self.postprocess(self.network(images_u8))

    def network(self, images_u8: Tensor) -> tuple[Tensor, ...]:
        """See `LabelModel.network`: the proposals, and the maps that are read under them."""
        maps = self.maps(images_u8)
        return (*self._proposals(maps), *maps)

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """See `LabelModel.postprocess`."""
        found = self._seen(outputs)
        return suppress(found, self.roi_heads.nms_thresh, self.max_detections, self.input_size_px)

    def last_candidates(self, images_u8: Tensor) -> Candidates:
        """What is seen in the proposals that are left after a first suppression."""
        return self._seen(self.network(images_u8))

    def _seen(self, outputs: Sequence[Tensor]) -> Candidates:
        boxes, scores, levels, *maps = outputs
        num_proposals = self.rpn.post_nms_top_n()
        proposed = suppress(Candidates(boxes, scores, levels), self.rpn.nms_thresh, num_proposals, self.input_size_px)
        return self._classified(maps, proposed)

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """See `LabelModel.loss`. Objects without a box don't count."""
        lists = target_lists(targets, first_label=1)
        frames = [(self.input_size_px, self.input_size_px)] * len(images_u8)
        maps = self._named(self.maps(images_u8))
        proposals, first = self.rpn(ImageList(images_u8, frames), maps, lists)
        _, second = self.roi_heads(maps, proposals, frames, lists)
        parts = {_PARTS[name]: part for name, part in {**second, **first}.items()}
        return {LOSS: torch.stack(list(parts.values())).sum(), **parts}

    def _named(self, maps: list[Tensor]) -> dict[str, Tensor]:
        return {str(level): one for level, one in enumerate(maps)}

    def _proposals(self, maps: list[Tensor]) -> Candidates:
        """The likeliest anchors of each level, moved."""
        objectness, offsets = concat_box_prediction_layers(*self.rpn.head(maps))
        num_images, anchors = len(maps[0]), self.rpn.anchor_generator.get_buffer("anchors_xyxy_px")
        objectness, offsets = objectness.view(num_images, -1), offsets.view(num_images, -1, 4)
        chosen, levels, start = [], [], 0
        for level, scores in enumerate(objectness.split(self._level_sizes, dim=1)):
            best = scores.topk(min(self.rpn.pre_nms_top_n(), scores.shape[1]), dim=1).indices
            chosen.append(best + start)
            levels.append(torch.full_like(best, level))
            start += scores.shape[1]
        places = torch.cat(chosen, dim=1)
        moved = self.rpn.box_coder.decode_single(
            gather(offsets, places).flatten(0, 1), anchors[places].flatten(0, 1)
        ).view(num_images, -1, 4)
        scores = objectness.gather(1, places).sigmoid()
        return candidates(moved, scores, torch.cat(levels, dim=1), self.input_size_px)

    def _classified(self, maps: list[Tensor], proposed: PredictedBoxes) -> Candidates:
        """What the proposals (B, P) show. One static graph."""
        num_images, num_proposals = proposed.scores.shape
        heads, boxes = self.roi_heads, list(proposed.boxes_xyxy_px.unbind())
        frames = [(self.input_size_px, self.input_size_px)] * num_images
        features = heads.box_head(heads.box_roi_pool(self._named(maps), boxes, frames))
        logits, offsets = heads.box_predictor(features)
        scores = logits.softmax(dim=1)[:, 1:].reshape(num_images, num_proposals, self.num_classes)
        choice = choose(torch.where(proposed.scores[:, :, None] > 0, scores, 0), self.score_floor)
        # The regression of background, class 0 of the head, is of no use.
        offsets = offsets.reshape(num_images, num_proposals * (self.num_classes + 1), 4)
        offsets = gather(offsets, choice.anchors * (self.num_classes + 1) + choice.label_ids + 1)
        origins = gather(proposed.boxes_xyxy_px, choice.anchors)
        moved = heads.box_coder.decode_single(offsets.flatten(0, 1), origins.flatten(0, 1)).view_as(origins)
        return candidates(moved, choice.scores, choice.label_ids, self.input_size_px)
