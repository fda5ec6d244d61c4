"""Initialising a network with the weights of an artifact, of the same or of another architecture."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.artifact import LoadedArtifact, load_artifact
from locray.models.interface import BACKBONE, LabelModel

_MAX_NAMED = 3


def transfer_weights(model: LabelModel, architecture: str, classes: Sequence[str], uri: str) -> str:
    """Loads the weights of an artifact into a network, as far as they fit.

    An artifact of the same architecture gives all tensors of the same shape, except the class head where the classes
    or their order differ. An artifact of another architecture gives its backbone, if the network has the same one.
    All other tensors keep their values.

    Args:
        model: the network, changed in place.
        architecture: its name.
        classes: its classes, in the order of their ids.
        uri: folder or s3:// prefix of the artifact.

    Returns:
        A line for the user that says how many tensors were loaded.

    Raises:
        UsageError: there is no artifact at `uri`, it is damaged, or the networks share no backbone.
        StoreError: the store does not answer.
    """
    assert isinstance(model, nn.Module)
    found = load_artifact(uri)
    own = model.state_dict()
    if found.info.architecture == architecture:
        theirs = _of_same_architecture(found, classes)
    else:
        theirs = _of_backbone(model, architecture, found, uri)
    usable = {name: tensor for name, tensor in theirs.items() if tensor.shape == own[name].shape}
    model.load_state_dict(usable, strict=False)
    new = [name for name in own if name not in usable]
    if not new:
        return f"all weights come from {uri}"
    more = f" and {len(new) - _MAX_NAMED} more" if len(new) > _MAX_NAMED else ""
    return (
        f"{len(usable)} of {len(own)} tensors come from {uri} ({found.info.architecture}); new are "
        f"{', '.join(new[:_MAX_NAMED])}{more}"
    )


def _of_same_architecture(found: LoadedArtifact, classes: Sequence[str]) -> Mapping[str, Tensor]:
    state, info = _state(found.model), found.info
    if list(classes) == info.classes:
        return state
    # The class head is found by its shape, which depends on the number of classes.
    wider = _state(build_model(info.architecture, len(info.classes) + 1, info.input_size))
    return {name: tensor for name, tensor in state.items() if tensor.shape == wider[name].shape}


def _of_backbone(model: nn.Module, architecture: str, found: LoadedArtifact, uri: str) -> Mapping[str, Tensor]:
    own, theirs = (_state(getattr(one, BACKBONE, None)) for one in (model, found.model))
    # Matched by order: in torchvision's detectors a ReLU has another place, which changes the numbers in the names.
    if not own or _signature(own) != _signature(theirs):
        raise UsageError(
            f"{uri} is a {found.info.architecture}, and --model is {architecture}: they have no backbone in common "
            f"whose weights could be used. Use --model {found.info.architecture}, or weights of another artifact"
        )
    return {f"{BACKBONE}.{name}": tensor for name, tensor in zip(own, theirs.values(), strict=True)}


def _state(module: object) -> dict[str, Tensor]:
    return dict(module.state_dict()) if isinstance(module, nn.Module) else {}


def _signature(state: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Parameter name within its layer, and shape, of each tensor in order."""
    return [(name.rpartition(".")[2], tuple(tensor.shape)) for name, tensor in state.items()]
