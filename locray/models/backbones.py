"""torchvision's classification networks as backbones: feature maps of several strides.

The split is found by running the network's layers in order, so that a backbone needs no code of its own.
"""

import warnings as python_warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn

from locray.errors import UsageError, did_you_mean
from locray.models.weights import fill, is_file, read_state, torchvision_state

_PROBE_SIDE_PX = 128
_MAP_DIMENSIONS = 4
# The classifier is cut off, so weights of a network that was trained for other classes are welcome.
_CLASSIFIERS = ("classifier.", "fc.", "head.", "heads.", "aux1.", "aux2.")


class Backbone(nn.Module):
    """The layers of a classification network up to its pooling, cut after the last one of each stride.

    Args:
        stages: layers in the order of the network; each stage but the first begins with a smaller map.
        strides: stride of the map that each stage ends with.
        channels: channels of these maps.
        wanted: the strides to give maps of, ascending.
    """

    def __init__(
        self, stages: Sequence[nn.Sequential], strides: Sequence[int], channels: Sequence[int], wanted: Sequence[int]
    ) -> None:
        super().__init__()
        assert set(wanted) <= set(strides)
        self.stages = nn.ModuleList(stages)
        self.strides = tuple(wanted)
        self.channels = tuple(channels[strides.index(stride)] for stride in wanted)
        self.gives = tuple(stride in wanted for stride in strides)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) normalised images to (B, `channels`, S/stride, S/stride), finest first."""
        maps, found = images, []
        for stage, gives in zip(self.stages, self.gives, strict=True):
            maps = stage(maps)
            if gives:
                found.append(maps)
        return tuple(found)


def build_backbone(name: str, weights: str | None, strides: Sequence[int] = (16, 32)) -> Backbone:
    """A backbone by the name of a torchvision classification model.

    Args:
        name: such as `resnet18`, `mobilenet_v2` or `convnext_tiny`.
        weights: none for random weights, the URI of a state dict of the whole model (.pth or .safetensors), or the
            name of torchvision's own weights, which may be downloaded.
        strides: the strides to give maps of, ascending.

    Raises:
        UsageError: the name is unknown, the network can't be split, or the weights can't be had or don't fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(
            f"no backbone named {name!r} in torchvision.models{did_you_mean(name, known)}. "
            "Good ones to begin with: mobilenet_v2, resnet18, resnet50"
        )
    with python_warnings.catch_warnings():
        # GoogLeNet announces that its initialisation will change one day.
        python_warnings.simplefilter("ignore", FutureWarning)
        model = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        choices = torchvision.models.get_model_weights(name).__members__
        state = read_state(weights) if is_file(weights) else torchvision_state(name, weights, choices)
        fill(model, name, state, weights, _CLASSIFIERS)
    return pool_first(split(model, name, strides))


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a network in their order, sequences taken apart down to their first real layer."""
    layers: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.Sequential) and not _is_unit(child):
            layers.extend(_layers(child))
        else:
            layers.append(child)
    return layers


def _is_unit(layer: nn.Sequential) -> bool:
    """Whether a sequence is one step of a network (convolution, norm, activation), which a cut must not divide."""
    return isinstance(layer, torchvision.ops.misc.ConvNormActivation)


def pool_first(backbone: Backbone) -> Backbone:
    """The same backbone, with a ReLU before a max-pool moved after it, where no map between the two is given.

    The largest of several numbers cut at zero is the largest number, cut at zero: outputs and gradients are equal,
    and a ReLU on the stem's map, which is as large as all of the next stage's, costs a twentieth of a training step.
    """
    for stage, after, gives in zip(backbone.stages, backbone.stages[1:], backbone.gives, strict=False):
        assert isinstance(stage, nn.Sequential)
        assert isinstance(after, nn.Sequential)
        if isinstance(stage[-1], nn.ReLU) and isinstance(after[0], nn.MaxPool2d) and not gives:
            after.insert(1, stage.pop(-1))
    return backbone


@torch.no_grad()
def split(model: nn.Module, name: str, strides: Sequence[int]) -> Backbone:
    """A backbone of a network whose layers run one after the other; what follows the last of `strides` is cut off.

    Raises:
        UsageError: some of `strides` are not among those of its feature maps.
    """
    # Statistics of batch norm must not move by the probe.
    model.eval()
    maps = torch.zeros(1, 3, _PROBE_SIDE_PX, _PROBE_SIDE_PX)
    layers: list[nn.Module] = []
    ends: dict[int, int] = {}
    channels: dict[int, int] = {}
    for layer in _layers(model):
        try:
            maps = layer(maps)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            break
        if not isinstance(maps, Tensor) or maps.ndim != _MAP_DIMENSIONS or not 0 < maps.shape[2] <= _PROBE_SIDE_PX:
            break
        layers.append(layer)
        stride = _PROBE_SIDE_PX // maps.shape[2]
        if maps.shape[2] * stride == _PROBE_SIDE_PX == maps.shape[3] * stride:
            ends[stride], channels[stride] = len(layers), maps.shape[1]
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
