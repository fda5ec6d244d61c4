"""Random crops, rotations, flips and colours that keep boxes true. Called by `samples` for training images.

Geometry goes through torchvision.transforms.v2 with `BoundingBoxes`, so that pixels and boxes move together.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms import v2

from locray import boxes
from locray.boxes import FloatArray
from locray.images.letterbox import PAD_VALUE

Flip = Literal["none", "horizontal", "both"]

_CROP_PROBABILITY = 0.7
_SMALLEST_CROP = 0.4
_CROP_TRIES = 8
_KEPT_OF_THE_OBJECT = 0.8
"""A crop or rotation must leave this share of the first object, or it would teach to see what isn't there."""
_KEPT_OF_OTHERS = 0.3
_JITTER = 0.3
_FLIP_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to training images.

    Attributes:
        rotation_degrees: largest rotation to either side.
        flip: which flips may happen.
        crop: whether to zoom into random parts that hold the first object.
        colour: whether to change brightness, contrast and saturation.
    """

    rotation_degrees: float = 10.0
    flip: Flip = "horizontal"
    crop: bool = True
    colour: bool = True


Sample = tuple[NDArray[np.uint8], FloatArray]
"""An image (H, W, 3) and the boxes (M, 4) of its objects, pixels of that image."""


def random_crop(
    image_hwc_u8: NDArray[np.uint8], boxes_xyxy_px: FloatArray, random: np.random.Generator
) -> tuple[NDArray[np.uint8], FloatArray, NDArray[np.bool_]]:
    """A random part of an image that holds most of its first object; a view, not a copy.

    Returns:
        The part, the boxes (M, 4) in its pixels, clipped, and which of them (M,) are still worth naming.
    """
    height, width = image_hwc_u8.shape[:2]
    kept = np.ones(len(boxes_xyxy_px), dtype=bool)
    if random.random() > _CROP_PROBABILITY:
        return image_hwc_u8, boxes_xyxy_px, kept
    for _ in range(_CROP_TRIES):
        crop_width, crop_height = (max(1, round(side * random.uniform(_SMALLEST_CROP, 1))) for side in (width, height))
        left, top = random.integers(0, width - crop_width + 1), random.integers(0, height - crop_height + 1)
        moved = boxes_xyxy_px - np.array([left, top, left, top])
        clipped = boxes.clip(moved, np.array(crop_width), np.array(crop_height))
        shares = _shares(clipped, moved)
        if not len(shares) or shares[0] >= _KEPT_OF_THE_OBJECT:
            part = image_hwc_u8[top : top + crop_height, left : left + crop_width]
            return part, clipped, shares >= _KEPT_OF_OTHERS
    return image_hwc_u8, boxes_xyxy_px, kept


class SquareTransforms:
    """Rotation, flips and colours of letterboxed images."""

    def __init__(self, augmentation: Augmentation, input_size_px: int) -> None:
        self._size = input_size_px
        degrees = augmentation.rotation_degrees
        # The same grey as the letterbox's, so that a corner that was turned in looks like padding.
        self._rotation = v2.RandomRotation(degrees, v2.InterpolationMode.BILINEAR, fill=PAD_VALUE) if degrees else None
        others: list[torch.nn.Module] = []
        if augmentation.flip != "none":
            others.append(v2.RandomHorizontalFlip(_FLIP_PROBABILITY))
        if augmentation.flip == "both":
            others.append(v2.RandomVerticalFlip(_FLIP_PROBABILITY))
        if augmentation.colour:
            others.append(v2.ColorJitter(_JITTER, _JITTER, _JITTER))
        self._others = v2.Compose(others) if others else v2.Identity()

    def __call__(self, sample: Sample, seed: int) -> tuple[Sample, NDArray[np.bool_]]:
        """Transforms an image (S, S, 3) and its boxes (M, 4); the same seed gives the same result.

        Returns:
            The new sample, boxes clipped to the image, and which of the boxes (M,) are still worth naming.
        """
        image = tv_tensors.Image(torch.from_numpy(sample[0]).permute(2, 0, 1))
        canvas = (self._size, self._size)
        before: Any = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample[1].reshape(-1, 4)), format="XYXY", canvas_size=canvas, clamping_mode=None
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            image, moved, kept = self._rotate(image, before)
            image, moved = self._others(image, moved)
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        side = np.array(self._size)
        return (pixels, boxes.clip(moved.numpy(), side, side)), kept

    def _rotate(self, image: Any, before: Any) -> tuple[Any, Any, NDArray[np.bool_]]:
        everything = np.ones(len(before), dtype=bool)
        if self._rotation is None:
            return image, before, everything
        turned, moved = self._rotation(image, before)
        side = np.array(self._size)
        clipped = boxes.clip(moved.numpy(), side, side)
        shares = _shares(clipped, moved.numpy())
        if len(shares) and shares[0] < _KEPT_OF_THE_OBJECT:
            return image, before, everything
        return turned, moved, shares >= _KEPT_OF_OTHERS


def _shares(inside: FloatArray, whole: FloatArray) -> FloatArray:
    """How much of each box (M, 4) is left, as (M,)."""
    return np.asarray(boxes.areas(inside) / np.maximum(boxes.areas(whole), 1e-9))
