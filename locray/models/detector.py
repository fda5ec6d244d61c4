"""`detector/<name>[/<backbone>]`: the objects of an image, their classes and boxes. Built by `models.build_model`.

Without a backbone a name stands for torchvision's own network, whose COCO weights it takes; with one, for a smaller
network on that backbone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

from locray.errors import UsageError, did_you_mean
from locray.models.backbones import build_backbone, split
from locray.models.dense_detectors import Fcos, RetinaNet, SsdLite
from locray.models.faster_rcnn import FasterRcnn
from locray.models.interface import IMAGENET_MEAN, IMAGENET_STD, LabelModel, Normalise
from locray.models.pyramids import CoarserMaps, Pyramid
from locray.models.small_detectors import SMALL_DETECTORS
from locray.models.weights import fill, is_file, read_state, torchvision_state

_SMALL_INPUT_PX = 320
_COARSEST_STRIDE = 32
_HALF = (0.5, 0.5, 0.5)
_BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector of torchvision."""

    network: Callable[..., LabelModel]
    whole: str
    """torchvision's name of the complete network."""
    backbone: str
    """torchvision's name of the classification network in it."""
    strides: tuple[int, ...]
    """Of the backbone's maps that its neck takes."""
    num_coarser: int
    """Maps that the neck adds."""
    class_tensors: str
    """Beginning of the names of those tensors whose shape depends on the classes."""
    has_background: bool
    """Whether background is a class of the head."""
    default_input_size_px: int
    score_floor: float
    """Candidates must score higher: low enough for a precision-recall curve, and cheap to suppress."""


DETECTORS = {
    "fcos": Detector(
        Fcos, "fcos_resnet50_fpn", "resnet50", (8, 16, 32), 2, "head.classification_head.cls_logits.", False,
        512, 0.05,
    ),
    "retinanet": Detector(
        RetinaNet, "retinanet_resnet50_fpn", "resnet50", (8, 16, 32), 2, "head.classification_head.cls_logits.", False,
        512, 0.05,
    ),
    "ssdlite320": Detector(
        SsdLite, "ssdlite320_mobilenet_v3_large", "mobilenet_v3_large", (16, 32), 4,
        "head.classification_head.module_list.", True,
        320, 0.01,
    ),
    "faster_rcnn": Detector(
        FasterRcnn, "fasterrcnn_resnet50_fpn", "resnet50", (4, 8, 16, 32), 1, "roi_heads.box_predictor.", True,
        512, 0.05,
    ),
}  # fmt: skip
"""The detectors by name."""

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "retinanet_resnet50_fpn_coco-eeacb38b.pth")
"""Files of torchvision that were trained when its batch norms divided by the deviation alone."""


def build_detector(variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """See `models.ModelFamily`; the variant is the name of a detector, or that, a slash and a torchvision network."""
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
    build = _on_backbone if backbone else _complete
    return build(name, backbone, num_classes, input_size_px, weights)


def default_input_size_px(variant: str) -> int:
    """The side of the square input that a detector usually takes, in pixels."""
    name, _, backbone = variant.partition("/")
    return _SMALL_INPUT_PX if backbone or name not in DETECTORS else DETECTORS[name].default_input_size_px


def _on_backbone(name: str, backbone: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    chosen, small = DETECTORS[name], SMALL_DETECTORS[name]
    maps = build_backbone(backbone, weights, small.strides)
    neck, rules = small.build(maps, num_classes, input_size_px)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    return chosen.network(maps, neck, rules, normalise, num_classes, input_size_px, chosen.score_floor)


def _complete(name: str, _: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
    """The network of torchvision itself: built, filled with its weights, taken apart."""
    chosen = DETECTORS[name]
    whole: Any = detection.__dict__[chosen.whole](
        weights=None, weights_backbone=None, num_classes=num_classes + chosen.has_background
    )
    if weights is not None:
        _load(chosen, whole, weights)
    backbone = whole.backbone
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
    neck: Pyramid | CoarserMaps
    if chosen.network is SsdLite:
        body, neck, normalise = nn.Sequential(*backbone.features), CoarserMaps(backbone.extra), Normalise(_HALF, _HALF)
    else:
        body, neck = backbone.body, Pyramid(backbone.fpn, chosen.num_coarser)
    maps = split(body, chosen.backbone, chosen.strides)
    return chosen.network(maps, neck, whole, normalise, num_classes, input_size_px, chosen.score_floor)


def _load(chosen: Detector, whole: nn.Module, weights: str) -> None:
    """Fills torchvision's network with weights of all of it, or of its backbone."""
    of_all = torchvision.models.get_model_weights(chosen.whole).__members__
    of_backbone = torchvision.models.get_model_weights(chosen.backbone).__members__
    origin = weights
    if is_file(weights):
        state = read_state(weights)
    else:
        choices = of_backbone if weights in of_backbone and weights not in of_all else of_all
        state = torchvision_state(chosen.whole, weights, {**of_backbone, **choices})
        origin = choices[weights].url
    if any(key.startswith(_BACKBONE) for key in state):
        fill(whole, chosen.whole, state, weights, (chosen.class_tensors,))
        if origin.endswith(_WITHOUT_EPSILON):
            _give_epsilon(whole)
    else:
        _load_backbone(chosen, whole, state, weights)


def _load_backbone(chosen: Detector, whole: Any, state: Mapping[str, Tensor], origin: str) -> None:
    """Fills the backbone with weights of the classification network."""
    if chosen.network is SsdLite:
        raise UsageError(
            f"{origin} holds weights of a classification network, whose last layers are wider than those of "
            f"torchvision's {chosen.whole}. Use --model detector/ssdlite320/{chosen.backbone}, or weights of the "
            "detector"
        )
    fill(whole.backbone.body, chosen.backbone, state, origin, ())


@torch.no_grad()
def _give_epsilon(whole: nn.Module) -> None:
    """Makes batch norms with an epsilon compute what ones without it did."""
    for layer in whole.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_var -= layer.eps
