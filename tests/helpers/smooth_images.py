"""Random images with some structure: plain noise all looks the same to a network."""

import torch
from torch import Tensor


def smooth_images(count: int, side_px: int) -> Tensor:
    """Returns images (count, 3, side, side) uint8, the same at every call."""
    coarse = torch.randint(256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(3)).float()
    return torch.nn.functional.interpolate(coarse, (side_px, side_px), mode="bicubic").clamp(0, 255).to(torch.uint8)
