"""Necks: from the maps of a backbone to the maps that the heads of a detector read. Called by `detector`."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

_GROUPS = 8
# No statistics over the batch: those of a detector are small.
group_norm = partial(nn.GroupNorm, _GROUPS)


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017).

    Args:
        fpn: torchvision's network.
        num_coarser: how many maps it adds beyond those of the backbone.
    """

    def __init__(self, fpn: FeaturePyramidNetwork, num_coarser: int) -> None:
        super().__init__()
        self.fpn = fpn
        self.num_coarser = num_coarser

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps of a backbone to maps of equal channels, finest first."""
        named = OrderedDict((str(level), one) for level, one in enumerate(maps))
        return list(self.fpn(named).values())


class CoarserMaps(nn.Module):
    """The maps of a backbone, and further ones, each made from the one before: the neck of SSD (Liu et al. 2016).

    Args:
        blocks: each halves the side of a map.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        self.num_coarser = len(blocks)

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps of a backbone to these and the coarser ones, finest first."""
        found = list(maps)
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


def small_pyramid(channels: Sequence[int], out_channels: int) -> Pyramid:
    """A pyramid over the maps of a backbone alone, with group norm."""
    return Pyramid(FeaturePyramidNetwork(list(channels), out_channels, norm_layer=group_norm), 0)


def coarser_maps(in_channels: int, out_channels: Sequence[int]) -> CoarserMaps:
    """One map of each of `out_channels`, by depthwise convolutions as in SSDlite (Sandler et al. 2018)."""
    blocks = nn.ModuleList()
    for channels in out_channels:
        middle = channels // 2
        unit = partial(Conv2dNormActivation, norm_layer=group_norm, activation_layer=nn.ReLU6)
        blocks.append(
            nn.Sequential(
                unit(in_channels, middle, kernel_size=1),
                unit(middle, middle, kernel_size=3, stride=2, groups=middle),
                unit(middle, channels, kernel_size=1),
            )
        )
        in_channels = channels
    return CoarserMaps(blocks)
