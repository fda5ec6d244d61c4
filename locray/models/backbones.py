"""torchvision's classification networks as backbones that return feature maps of several strides.

A network is split by running its layers in order and watching the size of the map, so no network needs code of its own.
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn

from locray.errors import UsageError, did_you_mean
from locray.models.interface import BACKBONE
from locray.models.weights import fill, is_file, read_state, torchvision_state

_PROBE_SIDE_PX = 128
_MAP_DIMENSIONS = 4
# The classifier is dropped, so its weights may be of any number of classes.
_CLASSIFIERS = ("classifier.", "fc.", "head.", "heads.", "aux1.", "aux2.")


class Backbone(nn.Module):
    """The layers of a classification network up to its pooling, in one stage per stride.

    Args:
        stages: layers in the order of the network, split after the last layer of each stride.
        strides: stride of the map at the end of each stage.
        channels: channels of these maps.
        returned: strides of the maps to return, ascending.
    """

    def __init__(
        self, stages: Sequence[nn.Sequential], strides: Sequence[int], channels: Sequence[int], returned: Sequence[int]
    ) -> None:
        super().__init__()
        assert set(returned) <= set(strides)
        self.stages = nn.ModuleList(stages)
        self.strides = tuple(returned)
        self.channels = tuple(channels[strides.index(stride)] for stride in returned)
        self.is_returned = tuple(stride in returned for stride in strides)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, 3, S, S) normalised images to feature maps (B, C, S / stride, S / stride), finest first."""
        features, returned = images, []
        for stage, is_returned in zip(self.stages, self.is_returned, strict=True):
            features = stage(features)
            if is_returned:
                returned.append(features)
        return tuple(returned)


def build_backbone(name: str, weights: str | None, strides: Sequence[int] = (16, 32)) -> Backbone:
    """Builds a backbone by the name of a torchvision classification network.

    Args:
        name: such as `resnet18`, `mobilenet_v2` or `convnext_tiny`.
        weights: URI of a state dict of the whole network (.pth or .safetensors), the name of torchvision's own
            weights, which may be downloaded, or None for random weights.
        strides: strides of the maps to return, ascending.

    Raises:
        UsageError: the name is unknown, the network can't be split, or the weights are unavailable or don't fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(
            f"no backbone named {name!r} in torchvision.models{did_you_mean(name, known)}. "
            "Good ones to start with: mobilenet_v2, resnet18, resnet50"
        )
    with warnings.catch_warnings():
        # GoogLeNet warns that its initialisation will change.
        warnings.simplefilter("ignore", FutureWarning)
        model = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        choices = torchvision.models.get_model_weights(name).__members__
        state = read_state(weights) if is_file(weights) else torchvision_state(name, weights, choices)
        fill(model, name, state, weights, _CLASSIFIERS)
    return pool_before_relu(split_by_stride(model, name, strides))


def _layers(model: nn.Module) -> list[nn.Module]:
    """Layers of a network in order, with nested sequences flattened."""
    layers: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.Sequential) and not isinstance(child, torchvision.ops.misc.ConvNormActivation):
            layers.extend(_layers(child))
        else:
            layers.append(child)
    return layers


def pool_before_relu(backbone: Backbone) -> Backbone:
    """Moves a ReLU before a max-pool to after it, where the map between the two is not returned.

    ReLU and max commute, so outputs and gradients are equal, and the ReLU has a quarter of the values to process.
    """
    pairs = zip(backbone.stages, backbone.stages[1:], backbone.is_returned, strict=False)
    for stage, following, is_returned in pairs:
        assert isinstance(stage, nn.Sequential)
        assert isinstance(following, nn.Sequential)
        if isinstance(stage[-1], nn.ReLU) and isinstance(following[0], nn.MaxPool2d) and not is_returned:
            following.insert(1, stage.pop(-1))
    return backbone


@torch.no_grad()
def split_by_stride(model: nn.Module, name: str, strides: Sequence[int]) -> Backbone:
    """Splits a network whose layers run in sequence; layers after the last of `strides` are dropped.

    Args:
        model: the network; it is left in training mode.
        name: its name, for the message.
        strides: strides of the maps to return, ascending.

    Raises:
        UsageError: the network has no feature maps of these strides.
    """
    # The probe must not move the statistics of batch norms.
    model.eval()
    features = torch.zeros(1, 3, _PROBE_SIDE_PX, _PROBE_SIDE_PX)
    layers: list[nn.Module] = []
    ends: dict[int, int] = {}
    channels: dict[int, int] = {}
    for layer in _layers(model):
        try:
            features = layer(features)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            break
        if not isinstance(features, Tensor) or features.ndim != _MAP_DIMENSIONS:
            break
        height, width = features.shape[2:]
        if not 0 < height <= _PROBE_SIDE_PX:
            break
        layers.append(layer)
        stride = _PROBE_SIDE_PX // height
        if height * stride == _PROBE_SIDE_PX == width * stride:
            ends[stride], channels[stride] = len(layers), features.shape[1]
    model.train()
    found = [stride for stride in sorted(ends) if stride <= strides[-1]]
    cuts = [0, *(ends[stride] for stride in found)]
    if not set(strides) <= set(found) or any(start >= end for start, end in pairwise(cuts)):
        *others, last = map(str, strides)
        raise UsageError(
            f"{name} has no feature maps of stride {', '.join(others)} and {last} one after the other, which this "
            "model needs. Use a convolutional network, such as mobilenet_v2, resnet18, efficientnet_b0 or convnext_tiny"
        )
    stages = [nn.Sequential(*layers[start:end]) for start, end in pairwise(cuts)]
    return Backbone(stages, found, [channels[stride] for stride in found], strides)


def pretrained_stages(model: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of the backbone in one list per stage, from the image to the head; empty without a backbone."""
    backbone = _backbone_of(model)
    stages = [] if backbone is None else [list(stage.parameters()) for stage in backbone.stages]
    return [stage for stage in stages if stage]


def training_mode(model: nn.Module, *, backbone_statistics: bool) -> None:
    """Puts a model into training mode, in place of `model.train()`.

    Args:
        model: with or without a backbone.
        backbone_statistics: whether batch norms of the backbone use and update the statistics of the batch. False
            keeps those of the pretrained weights: for a frozen backbone, and for batches that are too small for good
            statistics, as with detectors. A backbone with random weights needs True.
    """
    model.train()
    backbone = _backbone_of(model)
    if backbone is not None and not backbone_statistics:
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def freeze_backbone(model: nn.Module, *, frozen: bool) -> None:
    """Freezes or unfreezes the parameters of the backbone; for its statistics see `training_mode`."""
    backbone = _backbone_of(model)
    if backbone is not None:
        backbone.requires_grad_(not frozen)


def _backbone_of(model: nn.Module) -> Backbone | None:
    backbone = getattr(model, BACKBONE, None)
    assert backbone is None or isinstance(backbone, Backbone)
    return backbone
