"""Which part of an image is shown where in the network's input. Called by `chain` and `mixing`."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from locray.boxes import FloatArray, Letterbox
from locray.training.augment.colour import ColourChange
from locray.training.augment.scene import Objects, Scene, cut, scaled, shares

Rect = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax in whole pixels."""

LEAST_SHARE_OF_FIRST = 0.8
"""A crop or rotation leaves this share of the first object, or it would teach to see what isn't there."""
LEAST_SHARE_OF_OTHERS = 0.3
"""Of another object less may be left; what is left of one below this is not worth naming."""

_SMALLEST_SIDE = 0.4
_SMALLEST_AREA_OF_CLASS = 0.25
_ASPECT_OF_CLASS = 4 / 3
_SMALLEST_TILE = 0.5
_TRIES = 8


@dataclass(frozen=True, slots=True)
class Placement:
    """A window of an image, scaled onto a rectangle of the input."""

    window: Rect
    """Inside the image, in its pixels."""
    target: Rect
    """Inside the input, in its pixels."""

    @classmethod
    def letterboxed(cls, window: Rect, area: Rect) -> "Placement":
        """A window scaled to fit into an area of the input, centred."""
        width, height = area[2] - area[0], area[3] - area[1]
        window_width, window_height = window[2] - window[0], window[3] - window[1]
        if width == height:
            fit = Letterbox.fit(window_width, window_height, width)
            scaled_width, scaled_height = fit.scaled_width_px, fit.scaled_height_px
        else:
            scale = min(width / window_width, height / window_height)
            scaled_width = min(width, max(1, round(window_width * scale)))
            scaled_height = min(height, max(1, round(window_height * scale)))
        left, top = area[0] + (width - scaled_width) // 2, area[1] + (height - scaled_height) // 2
        return cls(window, (left, top, left + scaled_width, top + scaled_height))

    def to_input(self, boxes_xyxy_px: FloatArray) -> FloatArray:
        """Boxes (M, 4) of the image in pixels of the input; not cut."""
        left, top, right, bottom = self.window
        to_left, to_top, to_right, to_bottom = self.target
        scale_x, scale_y = (to_right - to_left) / (right - left), (to_bottom - to_top) / (bottom - top)
        return scaled(boxes_xyxy_px, (scale_x, scale_y), (to_left - left * scale_x, to_top - top * scale_y))

    def objects(self, objects: Objects) -> Objects:
        """The objects of the image that are seen in the input."""
        return objects.with_boxes(self.to_input(objects.boxes_xyxy_px)).cut_to(self.target, LEAST_SHARE_OF_OTHERS)

    def pixels(self, image_hwc_u8: NDArray[np.uint8], colour: ColourChange | None) -> NDArray[np.uint8]:
        """What lies in the target: (height, width, 3)."""
        left, top, right, bottom = self.window
        part = image_hwc_u8[top:bottom, left:right]
        size = (self.target[3] - self.target[1], self.target[2] - self.target[0])
        if part.shape[:2] != size:
            part = _resized(part, size)
        return part if colour is None else colour(part)

    def draw(self, scene: Scene, out_hwc_u8: NDArray[np.uint8], colour: ColourChange | None) -> Objects:
        """Writes the pixels to the input (S, S, 3), and gives the objects that are seen in it."""
        left, top, right, bottom = self.target
        out_hwc_u8[top:bottom, left:right] = self.pixels(scene.image_hwc_u8, colour)
        return self.objects(scene.objects)


def whole(image_hwc_u8: NDArray[np.uint8]) -> Rect:
    """The window that is the whole image."""
    height, width = image_hwc_u8.shape[:2]
    return 0, 0, width, height


def random_window(scene: Scene, random: np.random.Generator) -> Rect:
    """A random part of an image that holds most of its first object; the whole image where none was found.

    Sides are between 0.4 and 1 of the image's. An image of which the class alone is known has no object to keep: its
    part has, as is usual in classification, an even area, here from 0.25, and its sides between 3:4 and 4:3 of the
    image's own.
    """
    height, width = scene.image_hwc_u8.shape[:2]
    for _ in range(_TRIES):
        if scene.objects.class_only:
            area = random.uniform(_SMALLEST_AREA_OF_CLASS, 1)
            aspect = np.exp(random.uniform(-1, 1) * np.log(_ASPECT_OF_CLASS))
            shares_xy = np.minimum(1, np.sqrt([area * aspect, area / aspect]))
        else:
            shares_xy = random.uniform(_SMALLEST_SIDE, 1, 2)
        window = _somewhere(width, height, shares_xy * (width, height), random)
        if _shows_first(window, scene.objects):
            return window
    return whole(scene.image_hwc_u8)


def random_tile(scene: Scene, area: Rect, random: np.random.Generator) -> Placement:
    """A random part of an image that fills an area of the input and holds most of the first object.

    Where no such part was found, the whole image is letterboxed into the area.
    """
    height, width = scene.image_hwc_u8.shape[:2]
    area_sides = np.array([area[2] - area[0], area[3] - area[1]])
    largest = area_sides * min(width / area_sides[0], height / area_sides[1])
    for _ in range(_TRIES):
        window = _somewhere(width, height, largest * random.uniform(_SMALLEST_TILE, 1), random)
        if _shows_first(window, scene.objects):
            return Placement(window, area)
    return Placement.letterboxed(whole(scene.image_hwc_u8), area)


def _somewhere(width: int, height: int, sides: NDArray[np.floating], random: np.random.Generator) -> Rect:
    window_width = min(width, max(1, round(float(sides[0]))))
    window_height = min(height, max(1, round(float(sides[1]))))
    left = int(random.integers(0, width - window_width + 1))
    top = int(random.integers(0, height - window_height + 1))
    return left, top, left + window_width, top + window_height


def _shows_first(window: Rect, objects: Objects) -> bool:
    first = objects.boxed[:1]
    if not len(first):
        return True
    return bool(shares(cut(first, window), first)[0] >= LEAST_SHARE_OF_FIRST)


def _resized(image_hwc_u8: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Antialiased bilinear, as Pillow does it, in a fourth of the time (300 px to 224 px, one core: 0.1 ms)."""
    image = torch.from_numpy(np.ascontiguousarray(image_hwc_u8)).permute(2, 0, 1)
    resized = functional.resize_image(image, list(size_hw), v2.InterpolationMode.BILINEAR, antialias=True)
    return np.asarray(resized.permute(1, 2, 0).numpy())
