"""Necks: from the feature maps of a backbone to the maps that the heads of a detector read."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

_GROUPS = 8
group_norm = partial(nn.GroupNorm, _GROUPS)
"""From a number of channels to their norm. Batches of detectors are too small for batch norm."""


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017).

    Args:
        fpn: torchvision's pyramid.
        num_coarser: number of maps that it adds to those of the backbone.
    """

    def __init__(self, fpn: FeaturePyramidNetwork, num_coarser: int) -> None:
        super().__init__()
        self.fpn = fpn
        self.num_coarser = num_coarser

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) of a backbone to maps of equal channels, finest first."""
        named = OrderedDict((str(level), one) for level, one in enumerate(maps))
        return list(self.fpn(named).values())


class CoarserMaps(nn.Module):
    """The maps of a backbone and coarser ones, each made from the previous one: the neck of SSD (Liu et al. 2016).

    Args:
        blocks: each halves the side of a map.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        self.num_coarser = len(blocks)

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps of a backbone to the same maps followed by the coarser ones, finest first."""
        found = list(maps)
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


def grid_sides(input_size_px: int, strides: Sequence[int], num_coarser: int) -> list[int]:
    """Sides of the maps of a neck in cells: those of `strides`, then coarser ones, each half as large, rounded up."""
    sides = [input_size_px // stride for stride in strides]
    for _ in range(num_coarser):
        sides.append(-(-sides[-1] // 2))
    return sides


def small_pyramid(channels: Sequence[int], out_channels: int) -> Pyramid:
    """Builds a pyramid with group norm that adds no coarser maps."""
    return Pyramid(FeaturePyramidNetwork(list(channels), out_channels, norm_layer=group_norm), 0)


def coarser_maps(in_channels: int, out_channels: Sequence[int]) -> CoarserMaps:
    """Builds a neck that adds one map per entry of `out_channels`, as SSDlite does (Sandler et al. 2018)."""
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
