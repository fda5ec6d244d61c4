"""Pretrained weights of torchvision's networks: reading them, and loading them into a network.

State dicts are read without unpickling: weights from a stranger are data, not code.
"""

import io
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from torch import Tensor, nn

from locray import storage
from locray.errors import UsageError
from locray.models.files import has_artifact

_SUFFIXES = (".pth", ".pt", ".safetensors")
# Checkpoints of torchvision before 0.2 and those with frozen batch norms lack this counter, which only cumulative
# averages use.
_OPTIONAL = "num_batches_tracked"


def is_file(weights: str) -> bool:
    """Whether `weights` is the URI of a state dict, judged by its suffix."""
    return weights.endswith(_SUFFIXES)


def is_artifact(weights: str) -> bool:
    """Whether `weights` is the URI of a locray artifact, and not a state dict or the name of torchvision weights.

    Raises:
        StoreError: the store does not answer.
    """
    return not is_file(weights) and ("/" in weights or has_artifact(storage.normalise(weights)))


def read_state(uri: str) -> dict[str, Tensor]:
    """Reads a state dict from a .pth or .safetensors file.

    Raises:
        UsageError: the file holds no state dict.
        StoreError: the file can't be read.
    """
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types for foreign files
        raise UsageError(
            f"{uri} holds no weights that can be read safely ({type(error).__name__}). "
            "Expected a state dict, saved by torch.save or as .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(
            f"{uri} holds no state dict (tensors by name). Save it with torch.save(model.state_dict(), file)"
        )
    return state


def torchvision_state(name: str, weights: str, choices: Mapping[str, Any]) -> dict[str, Tensor]:
    """Loads weights that torchvision offers for a network, downloading them where they are not cached.

    Args:
        name: name of the network, for messages.
        weights: name of the weights, such as `IMAGENET1K_V1`.
        choices: torchvision's `WeightsEnum` members of this network, by name.

    Raises:
        UsageError: no weights of that name, or the download failed.
    """
    if weights not in choices:
        raise UsageError(
            f"torchvision has no weights {weights!r} for {name}; it has {', '.join(choices) or 'none'}. "
            "Weights may also be a file, whose URI ends in .pth or .safetensors, or the folder of an artifact"
        )
    try:
        state: dict[str, Tensor] = choices[weights].get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the download has another hash
        raise UsageError(
            f"the weights {weights} of {name} could not be downloaded from {choices[weights].url} ({error}). "
            "Download the file on a machine that reaches the site, and pass it as --weights FILE.pth"
        ) from error
    return state


def fill(model: nn.Module, name: str, state: Mapping[str, Tensor], origin: str, replaceable: tuple[str, ...]) -> None:
    """Loads a state dict into a torchvision network.

    Args:
        model: the network, changed in place.
        name: its name, for messages.
        state: the state dict; tensors that the network doesn't have are ignored.
        origin: URI or name of the weights, for messages.
        replaceable: prefixes of the names of tensors that may be missing or have another shape, because their shape
            depends on the classes. They keep their values.

    Raises:
        UsageError: other tensors are missing or have another shape.
    """
    expected = model.state_dict()
    misshapen = {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
    # Modules rename tensors of older files while loading, so what is missing is known only afterwards.
    usable = {key: value for key, value in state.items() if key not in misshapen}
    missing = {key for key in model.load_state_dict(usable, strict=False).missing_keys if key not in misshapen}
    missing = {key for key in missing if not key.endswith(_OPTIONAL) and not key.startswith(replaceable)}
    misshapen = {key for key in misshapen if not key.startswith(replaceable)}
    if missing or misshapen:
        raise UsageError(
            f"the weights of {origin} are not those of torchvision's {name}: {len(missing)} tensors are missing and "
            f"{len(misshapen)} have another shape, such as {', '.join(sorted(missing | misshapen)[:3])}. "
            f"Give a state dict of {name}, or the folder of an artifact that `locray train` wrote"
        )
