"""Pretrained weights: where they come from, and how they get into a network. Called where networks are built.

A state dict is read without unpickling, so weights from a stranger are data, not code.
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
# Checkpoints of torchvision before 0.2, and those with frozen batch norms, lack this counter; only cumulative
# averages use it.
_NEVER_MISSED = "num_batches_tracked"


def is_file(weights: str) -> bool:
    """Whether `weights` is the URI of a file with a state dict."""
    return weights.endswith(_SUFFIXES)


def is_artifact(weights: str) -> bool:
    """Whether `weights` is the URI of an artifact of ours, to be told from a file and from torchvision's names.

    Raises:
        StoreError: the store does not answer.
    """
    return not is_file(weights) and ("/" in weights or has_artifact(storage.normalise(weights)))


def read_state(uri: str) -> dict[str, Tensor]:
    """The state dict in a .pth or .safetensors file.

    Raises:
        UsageError: the file holds something else.
        StoreError: the file can't be read.
    """
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


def torchvision_state(name: str, weights: str, choices: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that torchvision offers for a network; downloaded where the machine doesn't have them.

    Args:
        name: the network, for messages.
        weights: the name of the weights.
        choices: torchvision's weights by name.

    Raises:
        UsageError: there are none of that name, or they can't be downloaded.
    """
    if weights not in choices:
        raise UsageError(
            f"torchvision has no weights {weights!r} for {name}; it has {', '.join(choices) or 'none'}. "
            "Weights may also be a file, whose URI ends in .pth or .safetensors, or the folder of an artifact"
        )
    try:
        state: dict[str, Tensor] = choices[weights].get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: what came has another hash
        raise UsageError(
            f"the weights {weights} of {name} could not be downloaded from {choices[weights].url} ({error}). "
            "Fetch that file where the site can be reached, and pass it as --weights FILE.pth"
        ) from error
    return state


def fill(model: nn.Module, name: str, state: Mapping[str, Tensor], origin: str, replaceable: tuple[str, ...]) -> None:
    """Loads a state dict of torchvision's own network of this kind.

    Args:
        model: that network.
        name: what it is called, for messages.
        state: its tensors; those that it doesn't know are left out.
        origin: where they come from, for messages.
        replaceable: beginnings of the names of tensors that may be absent or have another shape: those whose
            shape depends on the classes. They stay as they are.

    Raises:
        UsageError: other tensors are missing or have another shape.
    """
    wanted = model.state_dict()
    misshapen = {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape}
    # Older files name some tensors otherwise; the modules rename them while loading, so missing ones show only then.
    usable = {key: value for key, value in state.items() if key not in misshapen}
    missing = {key for key in model.load_state_dict(usable, strict=False).missing_keys if key not in misshapen}
    missing = {key for key in missing if not key.endswith(_NEVER_MISSED) and not key.startswith(replaceable)}
    misshapen = {key for key in misshapen if not key.startswith(replaceable)}
    if missing or misshapen:
        raise UsageError(
            f"the weights of {origin} are not those of torchvision's {name}: {len(missing)} tensors are missing and "
            f"{len(misshapen)} have another shape, such as {', '.join(sorted(missing | misshapen)[:3])}. "
            f"Give a state dict of {name}, or the folder of an artifact that locray has trained"
        )
