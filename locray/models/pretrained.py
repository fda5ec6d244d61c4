"""The pretrained part of a network, for training it otherwise than the rest. Called by the trainer."""

from torch import nn

from locray.models.backbones import Trunk
from locray.models.interface import TRUNK


def pretrained_stages(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a network's trunk, stage by stage from the image to the head; empty without a trunk.

    A stage holds the layers of one stride. All that `model` has beside them is new.
    """
    trunk = _trunk(model)
    stages = [] if trunk is None else [list(stage.parameters()) for stage in trunk.stages]
    return [stage for stage in stages if stage]


def training_mode(model: nn.Module, *, trunk_statistics: bool) -> None:
    """Puts a network into training mode, in place of `model.train()`.

    Args:
        model: the network.
        trunk_statistics: whether the trunk's batch norms take their statistics from the batch, and remember them.
            False keeps those that came with the weights: while the trunk is frozen, and where batches are too
            small to estimate better ones, as those of detectors are. Weights from nowhere need True.
    """
    model.train()
    trunk = _trunk(model)
    if trunk is not None and not trunk_statistics:
        for layer in trunk.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def freeze_trunk(model: nn.Module, *, frozen: bool) -> None:
    """Sets whether the trunk's parameters stay as they are; its statistics are a matter of `training_mode`."""
    trunk = _trunk(model)
    if trunk is not None:
        trunk.requires_grad_(not frozen)


def _trunk(model: nn.Module) -> Trunk | None:
    trunk = getattr(model, TRUNK, None)
    assert trunk is None or isinstance(trunk, Trunk)
    return trunk
