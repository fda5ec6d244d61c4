"""torchvision's classification networks as trunks: feature maps of stride 16 and 32. Called by `localizer`.

The split is found by running the network's layers in order, so that a trunk needs no code of its own.
"""

import io
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from locray import storage
from locray.errors import UsageError
from locray.models.names import closest

_PROBE_SIDE_PX = 128
_MAP_DIMENSIONS = 4
_WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".safetensors")


class Trunk(nn.Module):
    """The layers of a classification network up to its pooling, cut after the last one of stride 16.

    Args:
        fine: layers from the image to stride 16.
        coarse: layers from stride 16 to stride 32.
        fine_channels: channels of the feature map of stride 16.
        coarse_channels: channels of the feature map of stride 32.
    """

    def __init__(self, fine: nn.Sequential, coarse: nn.Sequential, fine_channels: int, coarse_channels: int) -> None:
        super().__init__()
        self.fine = fine
        self.coarse = coarse
        self.fine_channels = fine_channels
        self.coarse_channels = coarse_channels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised images to (B, F, S/16, S/16) and (B, C, S/32, S/32)."""
        fine = self.fine(images)
        return fine, self.coarse(fine)


def build_trunk(name: str, weights: str | None) -> Trunk:
    """A trunk by the name of a torchvision classification model.

    Args:
        name: such as `resnet18`, `mobilenet_v2` or `convnext_tiny`.
        weights: none for random weights, the URI of a state dict of the whole model (.pth or .safetensors), or the
            name of torchvision's own weights, which may be downloaded.

    Raises:
        UsageError: the name is unknown, the network can't be split, or the weights can't be had or don't fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(
            f"no trunk named {name!r} in torchvision.models{closest(name, known)}. "
            "Good ones to begin with: mobilenet_v2, resnet18, resnet50"
        )
    model = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        _load_weights(model, name, weights)
    return _split(model, name)


def _load_weights(model: nn.Module, name: str, weights: str) -> None:
    is_file = "/" in weights or weights.endswith(_WEIGHT_FILE_SUFFIXES)
    state = _read_state(weights) if is_file else _torchvision_state(name, weights)
    wanted = model.state_dict()
    # Checkpoints of torchvision before 0.2 lack this counter, which only cumulative averages use.
    missing = {key for key in wanted.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    misshapen = {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape}
    # The classifier is cut off, so weights of a network that was trained for other classes are welcome.
    misshapen = {key for key in misshapen if not key.startswith(("classifier.", "fc.", "head.", "heads."))}
    if missing or misshapen:
        found = sorted(missing | misshapen)[:3]
        raise UsageError(
            f"the weights of {weights} are not those of torchvision's {name}: {len(missing)} tensors are missing and "
            f"{len(misshapen)} have another shape, such as {', '.join(found)}. Give a state dict of {name}"
        )
    usable = {key: value for key, value in state.items() if key in wanted and value.shape == wanted[key].shape}
    model.load_state_dict(usable, strict=False)


def _read_state(uri: str) -> dict[str, Tensor]:
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds for a file that isn't theirs
        raise UsageError(
            f"{uri} holds no weights that can be read safely ({type(error).__name__}). "
            "Expected a state dict, saved by torch.save or as .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{uri} holds no state dict (tensors by name). Save it again with model.state_dict()")
    return state


def _torchvision_state(name: str, weights: str) -> dict[str, Tensor]:
    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise UsageError(
            f"torchvision has no weights {weights!r} for {name}; it has {', '.join(choices.__members__) or 'none'}. "
            "Weights may also be a file: a URI that ends in .pth or .safetensors"
        )
    try:
        state: dict[str, Tensor] = choices[weights].get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise UsageError(
            f"the weights {weights} of {name} could not be downloaded from {choices[weights].url} ({error}). "
            "Fetch that file where the site can be reached, and pass it as --weights FILE.pth"
        ) from error
    return state


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


@torch.no_grad()
def _split(model: nn.Module, name: str) -> Trunk:
    # Statistics of batch norm must not move by the probe.
    model.eval()
    maps = torch.zeros(1, 3, _PROBE_SIDE_PX, _PROBE_SIDE_PX)
    layers: list[nn.Module] = []
    channels = {16: 0, 32: 0}
    ends = {16: 0, 32: 0}
    for layer in _layers(model):
        try:
            maps = layer(maps)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            break
        if not isinstance(maps, Tensor) or maps.ndim != _MAP_DIMENSIONS or maps.shape[2] < _PROBE_SIDE_PX // 32:
            break
        layers.append(layer)
        stride = _PROBE_SIDE_PX // maps.shape[2]
        if stride in ends and maps.shape[2] * stride == _PROBE_SIDE_PX == maps.shape[3] * stride:
            ends[stride], channels[stride] = len(layers), maps.shape[1]
    model.train()
    if not 0 < ends[16] < ends[32]:
        raise UsageError(
            f"{name} has no feature maps of stride 16 and 32 one after the other, which a localizer needs. "
            "Use a convolutional network, such as mobilenet_v2, resnet18, efficientnet_b0 or convnext_tiny"
        )
    fine, coarse = nn.Sequential(*layers[: ends[16]]), nn.Sequential(*layers[ends[16] : ends[32]])
    return Trunk(fine, coarse, channels[16], channels[32])
