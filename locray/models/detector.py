"""`detector/<name>[/<backbone>]`: finds many objects per image.

Without a backbone the name stands for torchvision's own network, which takes torchvision's COCO weights; with one, for
a smaller network on that backbone. A new detector is one entry of `DETECTORS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

from locray.errors import UsageError, did_you_mean
from locray.models.backbones import Backbone, build_backbone, split_by_stride
from locray.models.dense_detectors import Fcos, RetinaNet, SsdLite
from locray.models.faster_rcnn import FasterRcnn
from locray.models.interface import IMAGENET_MEAN, IMAGENET_STD, LabelModel, Normalise
from locray.models.necks import CoarserMaps, Pyramid
from locray.models.small_detectors import (
    SSDLITE_STRIDES,
    STRIDES,
    small_faster_rcnn,
    small_fcos,
    small_retinanet,
    small_ssdlite,
)
from locray.models.weights import fill, is_file, read_state, torchvision_state

_SMALL_INPUT_PX = 320
_COARSEST_STRIDE = 32
_HALF = (0.5, 0.5, 0.5)
_BACKBONE_PREFIX = "backbone."


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector: torchvision's network, and the builder of its small version on another backbone."""

    network: Callable[..., LabelModel]
    torchvision_name: str
    """torchvision's name of the complete network."""
    backbone: str
    """torchvision's name of the classification network in it."""
    strides: tuple[int, ...]
    """Strides of the backbone's maps that the neck reads."""
    num_coarser: int
    """Number of maps that the neck adds."""
    class_tensors: str
    """Prefix of the names of the tensors whose shape depends on the classes."""
    has_background: bool
    """Whether background is a class of the head."""
    default_input_size_px: int
    score_floor: float
    """Candidates must score higher: low enough for precision-recall curves, high enough for a fast suppression."""
    build_small: Callable[[Backbone, int, int], tuple[Pyramid | CoarserMaps, Any]]
    """A function of `small_detectors`."""
    small_strides: tuple[int, ...]
    """Strides of the backbone's maps that the neck of the small network reads."""


DETECTORS = {
    "fcos": Detector(
        network=Fcos,
        torchvision_name="fcos_resnet50_fpn",
        backbone="resnet50",
        strides=(8, 16, 32),
        num_coarser=2,
        class_tensors="head.classification_head.cls_logits.",
        has_background=False,
        default_input_size_px=512,
        score_floor=0.05,
        build_small=small_fcos,
        small_strides=STRIDES,
    ),
    "retinanet": Detector(
        network=RetinaNet,
        torchvision_name="retinanet_resnet50_fpn",
        backbone="resnet50",
        strides=(8, 16, 32),
        num_coarser=2,
        class_tensors="head.classification_head.cls_logits.",
        has_background=False,
        default_input_size_px=512,
        score_floor=0.05,
        build_small=small_retinanet,
        small_strides=STRIDES,
    ),
    "ssdlite320": Detector(
        network=SsdLite,
        torchvision_name="ssdlite320_mobilenet_v3_large",
        backbone="mobilenet_v3_large",
        strides=(16, 32),
        num_coarser=4,
        class_tensors="head.classification_head.module_list.",
        has_background=True,
        default_input_size_px=320,
        score_floor=0.01,
        build_small=small_ssdlite,
        small_strides=SSDLITE_STRIDES,
    ),
    "faster_rcnn": Detector(
        network=FasterRcnn,
        torchvision_name="fasterrcnn_resnet50_fpn",
        backbone="resnet50",
        strides=(4, 8, 16, 32),
        num_coarser=1,
        class_tensors="roi_heads.box_predictor.",
        has_background=True,
        default_input_size_px=512,
        score_floor=0.05,
        build_small=small_faster_rcnn,
        small_strides=STRIDES,
    ),
}
"""Detectors by name."""

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "retinanet_resnet50_fpn_coco-eeacb38b.pth")
"""torchvision's weights that were trained with batch norms without an epsilon."""


def build_detector(variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """See `ModelBuilder`. The variant is `<name>` or `<name>/<torchvision network>`."""
    name, _, backbone = variant.partition("/")
    if name not in DETECTORS:
        raise UsageError(
            f"no detector named {name!r}{did_you_mean(name, DETECTORS)}. Known: {', '.join(DETECTORS)}, each alone "
            "(detector/fcos) or on a backbone for smaller machines (detector/fcos/resnet18)"
        )
    chosen = DETECTORS[name]
    multiple = _COARSEST_STRIDE if backbone or chosen.network is SsdLite else _COARSEST_STRIDE << chosen.num_coarser
    if input_size_px <= 0 or input_size_px % multiple:
        nearest = max(1, round(input_size_px / multiple)) * multiple
        raise UsageError(
            f"detector/{variant} needs an input size that is a multiple of {multiple} pixels, found {input_size_px}: "
            f"use {nearest}"
        )
    if backbone:
        return _small_detector(chosen, backbone, num_classes, input_size_px, weights)
    return _torchvision_detector(chosen, num_classes, input_size_px, weights)


def default_input_size_px(variant: str) -> int:
    """Default side of the square input, in pixels."""
    name, _, backbone = variant.partition("/")
    return _SMALL_INPUT_PX if backbone or name not in DETECTORS else DETECTORS[name].default_input_size_px


def _small_detector(
    chosen: Detector, backbone_name: str, num_classes: int, input_size_px: int, weights: str | None
) -> LabelModel:
    backbone = build_backbone(backbone_name, weights, chosen.small_strides)
    neck, model = chosen.build_small(backbone, num_classes, input_size_px)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    return chosen.network(backbone, neck, model, normalise, num_classes, input_size_px, chosen.score_floor)


def _torchvision_detector(chosen: Detector, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """Builds torchvision's network, loads its weights, and takes its parts."""
    model: Any = detection.__dict__[chosen.torchvision_name](
        weights=None, weights_backbone=None, num_classes=num_classes + chosen.has_background
    )
    if weights is not None:
        _load(chosen, model, weights)
    layers: Any = model.backbone
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    neck: Pyramid | CoarserMaps
    if chosen.network is SsdLite:
        body, neck, normalise = nn.Sequential(*layers.features), CoarserMaps(layers.extra), Normalise(_HALF, _HALF)
    else:
        body, neck = layers.body, Pyramid(layers.fpn, chosen.num_coarser)
    backbone = split_by_stride(body, chosen.backbone, chosen.strides)
    return chosen.network(backbone, neck, model, normalise, num_classes, input_size_px, chosen.score_floor)


def _load(chosen: Detector, model: nn.Module, weights: str) -> None:
    """Loads weights of the whole network, or of its backbone alone."""
    of_all = torchvision.models.get_model_weights(chosen.torchvision_name).__members__
    of_backbone = torchvision.models.get_model_weights(chosen.backbone).__members__
    origin = weights
    if is_file(weights):
        state = read_state(weights)
    else:
        choices = of_backbone if weights in of_backbone and weights not in of_all else of_all
        state = torchvision_state(chosen.torchvision_name, weights, {**of_backbone, **choices})
        origin = choices[weights].url
    if any(key.startswith(_BACKBONE_PREFIX) for key in state):
        fill(model, chosen.torchvision_name, state, weights, (chosen.class_tensors,))
        if origin.endswith(_WITHOUT_EPSILON):
            _compensate_epsilon(model)
    else:
        _load_backbone(chosen, model, state, weights)


def _load_backbone(chosen: Detector, model: Any, state: Mapping[str, Tensor], origin: str) -> None:
    """Loads weights of the classification network into the backbone."""
    if chosen.network is SsdLite:
        raise UsageError(
            f"{origin} holds weights of a classification network, whose last layers are wider than those of "
            f"torchvision's {chosen.torchvision_name}. Use --model detector/ssdlite320/{chosen.backbone}, or weights "
            "of the detector"
        )
    fill(model.backbone.body, chosen.backbone, state, origin, ())


@torch.no_grad()
def _compensate_epsilon(model: nn.Module) -> None:
    """Makes batch norms with an epsilon compute what they did without one."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_var -= layer.eps
