"""The pretrained part of a network, for training it otherwise than the rest. Called by the trainer."""

from torch import nn

from locray.models.backbones import Backbone
from locray.models.interface import BACKBONE


def pretrained_stages(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a network's backbone, stage by stage from the image to the head; empty without a backbone.

    A stage holds the layers of one stride. All that `model` has beside them is new.
    """
    backbone = _backbone(model)
    stages = [] if backbone is None else [list(stage.parameters()) for stage in backbone.stages]
    return [stage for stage in stages if stage]


def training_mode(model: nn.Module, *, backbone_statistics: bool) -> None:
    """Puts a network into training mode, in place of `model.train()`.

    Args:
        model: the network.
        backbone_statistics: whether the backbone's batch norms take their statistics from the batch, and remember them.
            False keeps those that came with the weights: while the backbone is frozen, and where batches are too
            small to estimate better ones, as those of detectors are. Weights from nowhere need True.
    """
    model.train()
    backbone = _backbone(model)
    if backbone is not None and not backbone_statistics:
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def freeze_backbone(model: nn.Module, *, frozen: bool) -> None:
    """Sets whether the backbone's parameters stay as they are; its statistics are a matter of `training_mode`."""
    backbone = _backbone(model)
    if backbone is not None:
        backbone.requires_grad_(not frozen)


def _backbone(model: nn.Module) -> Backbone | None:
    backbone = getattr(model, BACKBONE, None)
    assert backbone is None or isinstance(backbone, Backbone)
    return backbone
