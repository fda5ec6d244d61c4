"""What a network takes over from an artifact, its own architecture's or another one's. Called by the trainer."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.artifact import LoadedArtifact, load_artifact
from locray.models.interface import BACKBONE, LabelModel

_NAMED = 3


def take_over(model: LabelModel, architecture: str, classes: Sequence[str], uri: str) -> str:
    """Fills a network with the weights of an artifact, and says in a line how far they reach.

    Of the same architecture all tensors of the same shape are taken, but for the class head where the classes are
    others or stand in another order. Of another one with the same backbone, the backbone is taken. The rest stays
    as it is.

    Args:
        model: the network, filled in place.
        architecture: its name.
        classes: its classes, in the order of their ids.
        uri: the artifact's folder or s3:// prefix.

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
    more = f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
    return (
        f"{len(usable)} of {len(own)} tensors come from {uri} ({found.info.architecture}); new are "
        f"{', '.join(new[:_NAMED])}{more}"
    )


def _of_same_architecture(found: LoadedArtifact, classes: Sequence[str]) -> Mapping[str, Tensor]:
    state, info = _state(found.model), found.info
    if list(classes) == info.classes:
        return state
    # The class head is what has another shape under another number of classes.
    wider = _state(build_model(info.architecture, len(info.classes) + 1, info.input_size))
    return {name: tensor for name, tensor in state.items() if tensor.shape == wider[name].shape}


def _of_backbone(model: nn.Module, architecture: str, found: LoadedArtifact, uri: str) -> Mapping[str, Tensor]:
    own, theirs = (_state(getattr(one, BACKBONE, None)) for one in (model, found.model))
    # By order: in torchvision's own detectors a ReLU stands elsewhere, and moves the numbers in the names.
    if not own or _kinds(own) != _kinds(theirs):
        raise UsageError(
            f"{uri} is a {found.info.architecture}, and --model is {architecture}: they have no backbone in common "
            f"whose weights could be taken. Use --model {found.info.architecture}, or weights of another artifact"
        )
    return {f"{BACKBONE}.{name}": tensor for name, tensor in zip(own, theirs.values(), strict=True)}


def _state(module: object) -> dict[str, Tensor]:
    return dict(module.state_dict()) if isinstance(module, nn.Module) else {}


def _kinds(state: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """What each tensor is to its layer, and its shape, in the order of the layers."""
    return [(name.rpartition(".")[2], tuple(tensor.shape)) for name, tensor in state.items()]
