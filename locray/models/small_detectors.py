"""Necks and heads of `detector/<name>/<backbone>`, sized for CPUs: few levels, few channels, light heads.

The parts are torchvision's; their sizes are chosen here. Anchors scale with the side of the input, since objects do.

Every function takes a backbone, the number of classes and the side of the input in pixels, and returns the neck and
torchvision's model, of which `DenseDetector` or `FasterRcnn` use the head and the losses.
"""

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
from locray.models.necks import CoarserMaps, Pyramid, coarser_maps, group_norm, small_pyramid

STRIDES = (8, 16, 32)
"""Strides of the maps that the necks take from the backbone, but for SSDlite's."""
SSDLITE_STRIDES = (16, 32)

_CHANNELS = 128
_HEAD_CONVOLUTIONS = 2
# Initial distance of FCOS to the sides of an object, in strides. torchvision clips distances at zero, so that half of
# the cells would get no gradient if they started there.
_INITIAL_DISTANCE = 2.0
_ANCHORS_PER_LEVEL = 3
_MIN_ANCHOR, _MAX_ANCHOR = 0.05, 0.8
"""Sides of the anchors, as shares of the side of the input."""
_RATIOS = (0.5, 1.0, 2.0)
_SSD_COARSER_CHANNELS = (512, 256, 256, 128)
_ROI_SIDE = 7
_ROI_FEATURES = 256


def small_fcos(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[Pyramid, Any]:  # noqa: ARG001
    """FCOS (Tian et al. 2019)."""
    neck = _pyramid(backbone)
    head = FCOSHead(_CHANNELS, 1, num_classes, num_convs=_HEAD_CONVOLUTIONS)
    nn.init.constant_(head.regression_head.bbox_reg.bias, _INITIAL_DISTANCE)
    cells = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
    return neck, FCOS(neck, num_classes, anchor_generator=cells, head=head)


def small_retinanet(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[Pyramid, Any]:
    """RetinaNet (Lin et al. 2017)."""
    neck = _pyramid(backbone)
    anchors = _anchors(input_size_px, _ANCHORS_PER_LEVEL)
    head = RetinaNetHead(_CHANNELS, _ANCHORS_PER_LEVEL * len(_RATIOS), num_classes, norm_layer=group_norm)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:_HEAD_CONVOLUTIONS]
    return neck, RetinaNet(neck, num_classes, anchor_generator=anchors, head=head)


def small_ssdlite(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[CoarserMaps, Any]:
    """SSDlite (Liu et al. 2016, Sandler et al. 2018)."""
    channels = [*backbone.channels, *_SSD_COARSER_CHANNELS]
    neck = coarser_maps(backbone.channels[-1], _SSD_COARSER_CHANNELS)
    boxes = DefaultBoxGenerator([[2, 3] for _ in channels], min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), num_classes + 1, group_norm)
    side = (input_size_px, input_size_px)
    return neck, SSD(neck, boxes, side, num_classes + 1, head=head, nms_thresh=0.55)


def small_faster_rcnn(backbone: Backbone, num_classes: int, input_size_px: int) -> tuple[Pyramid, Any]:
    """Faster R-CNN (Ren et al. 2015)."""
    neck = _pyramid(backbone)
    model = FasterRCNN(
        neck,
        rpn_anchor_generator=_anchors(input_size_px, 1),
        rpn_pre_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=300,
        rpn_post_nms_top_n_test=150,
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(len(STRIDES))], _ROI_SIDE, 2),
        box_head=TwoMLPHead(_CHANNELS * _ROI_SIDE**2, _ROI_FEATURES),
        box_predictor=FastRCNNPredictor(_ROI_FEATURES, num_classes + 1),
        box_batch_size_per_image=128,
    )
    return neck, model


def _pyramid(backbone: Backbone) -> Pyramid:
    neck = small_pyramid(backbone.channels, _CHANNELS)
    # torchvision's models read this attribute of their backbone.
    neck.out_channels = _CHANNELS  # type: ignore[assignment]
    return neck


def _anchors(input_size_px: int, num_sizes: int) -> AnchorGenerator:
    """Anchors of `num_sizes` sizes per level, all of them one geometric series."""
    steps = num_sizes * len(STRIDES) - 1
    factor = (_MAX_ANCHOR / _MIN_ANCHOR) ** (1 / steps)
    sizes = [input_size_px * _MIN_ANCHOR * factor**step for step in range(steps + 1)]
    levels = tuple(tuple(sizes[level * num_sizes : (level + 1) * num_sizes]) for level in range(len(STRIDES)))
    return AnchorGenerator(levels, (_RATIOS,) * len(STRIDES))
