"""The detectors on small backbones, sized for CPUs: few levels, few channels, light heads. Called by `detector`.

What they consist of is torchvision's; what differs from its large ones is here. Boxes are sought relative to the
input's side, since a small input shows small objects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign

from locray.models.backbones import Backbone
from locray.models.pyramids import CoarserMaps, Pyramid, coarser_maps, group_norm, small_pyramid

_STRIDES = (8, 16, 32)
_CHANNELS = 128
_HEAD_CONVOLUTIONS = 2
# Where FCOS begins to learn the distances to the sides of an object, in strides. torchvision cuts off distances
# below zero; from zero half of the cells could never move.
_FIRST_DISTANCE = 2.0
_ANCHORS_PER_LEVEL = 3
_SMALLEST_ANCHOR, _LARGEST_ANCHOR = 0.05, 0.8
_RATIOS = (0.5, 1.0, 2.0)
_SSD_COARSER_CHANNELS = (512, 256, 256, 128)
_ROI_SIDE = 7
_ROI_FEATURES = 256


@dataclass(frozen=True, slots=True)
class SmallDetector:
    """How a detector is put on a small backbone."""

    strides: tuple[int, ...]
    """Of the maps that it takes from the backbone."""
    build: Callable[[Backbone, int, int], tuple[Pyramid | CoarserMaps, Any]]
    """From backbone, number of classes and side of the input to the neck and torchvision's model with that backbone."""


def _fcos(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[Pyramid, Any]:  # noqa: ARG001
    neck = _pyramid(backbone)
    head = FCOSHead(_CHANNELS, 1, num_classes, num_convs=_HEAD_CONVOLUTIONS)
    nn.init.constant_(head.regression_head.bbox_reg.bias, _FIRST_DISTANCE)
    cells = AnchorGenerator(tuple((stride,) for stride in _STRIDES), ((1.0,),) * len(_STRIDES))
    return neck, FCOS(neck, num_classes, anchor_generator=cells, head=head)


def _retinanet(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[Pyramid, Any]:
    neck = _pyramid(backbone)
    anchors = _anchors(input_size_px, _ANCHORS_PER_LEVEL)
    head = RetinaNetHead(_CHANNELS, _ANCHORS_PER_LEVEL * len(_RATIOS), num_classes, norm_layer=group_norm)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:_HEAD_CONVOLUTIONS]
    return neck, RetinaNet(neck, num_classes, anchor_generator=anchors, head=head)


def _ssdlite(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[CoarserMaps, Any]:
    channels = [*backbone.channels, *_SSD_COARSER_CHANNELS]
    neck = coarser_maps(backbone.channels[-1], _SSD_COARSER_CHANNELS)
    boxes = DefaultBoxGenerator([[2, 3] for _ in channels], min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), num_classes + 1, group_norm)
    side = (input_size_px, input_size_px)
    return neck, SSD(neck, boxes, side, num_classes + 1, head=head, nms_thresh=0.55)


def _faster_rcnn(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[Pyramid, Any]:
    neck = _pyramid(backbone)
    rules = FasterRCNN(
        neck,
        rpn_anchor_generator=_anchors(input_size_px, 1),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=300,
        rpn_post_nms_top_n_test=150,
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(len(_STRIDES))], _ROI_SIDE, 2),
        box_head=TwoMLPHead(_CHANNELS * _ROI_SIDE**2, _ROI_FEATURES),
        box_predictor=FastRCNNPredictor(_ROI_FEATURES, num_classes + 1),
        box_batch_size_per_image=128,
    )
    return neck, rules


SMALL_DETECTORS = {
    "fcos": SmallDetector(_STRIDES, _fcos),
    "retinanet": SmallDetector(_STRIDES, _retinanet),
    "ssdlite320": SmallDetector(_STRIDES[1:], _ssdlite),
    "faster_rcnn": SmallDetector(_STRIDES, _faster_rcnn),
}
"""By the names of `detector`."""


def _pyramid(backbone: Backbone) -> Pyramid:
    neck = small_pyramid(backbone.channels, _CHANNELS)
    # What torchvision's models ask of a backbone.
    neck.out_channels = _CHANNELS  # type: ignore[assignment]
    return neck


def _anchors(input_size_px: int, num_sizes: int) -> AnchorGenerator:
    """Anchors of `num_sizes` sizes a level, all in one geometric row from the smallest to the largest."""
    steps = num_sizes * len(_STRIDES) - 1
    factor = (_LARGEST_ANCHOR / _SMALLEST_ANCHOR) ** (1 / steps)
    sizes = [input_size_px * _SMALLEST_ANCHOR * factor**step for step in range(steps + 1)]
    levels = tuple(tuple(sizes[level * num_sizes : (level + 1) * num_sizes]) for level in range(len(_STRIDES)))
    return AnchorGenerator(levels, (_RATIOS,) * len(_STRIDES))
