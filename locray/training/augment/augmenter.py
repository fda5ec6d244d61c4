"""The augmentation of a training image: its steps in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.config import AugmentationOptions
from locray.images.letterbox import PAD_VALUE
from locray.training.augment.colour import ColourChange
from locray.training.augment.crops import Placement, full_window, random_window
from locray.training.augment.mixing import Mix, draw_mosaic, paste_objects
from locray.training.augment.scene import Objects, Scene
from locray.training.augment.transforms import flip, rotate, shift

_FLIP_PROBABILITY = 0.5
_ROTATION_PROBABILITY = 0.5
"""A rotation blurs, and the images that the network is used on are not blurred."""
_SMALL_IMAGE_PX = 64
"""A class-only image up to this size is shifted instead of cropped, as is usual for CIFAR: a crop of so few pixels
shows nothing."""
_MAX_SHIFT = 1 / 8
"""As a fraction of the input's side."""


@dataclass(frozen=True, slots=True)
class Augmenter:
    """Makes network inputs from images and their objects. The same generator gives the same input."""

    options: AugmentationOptions
    input_size_px: int

    def mix(self, random: np.random.Generator, row: int, num_records: int, may_mix: Callable[[int], bool]) -> Mix:
        """Chooses the other records that an image is mixed with. The first use of the image's generator.

        Args:
            random: The generator of the image.
            row: Its record.
            num_records: Number of records to choose from.
            may_mix: Whether a record can be mixed with others: all its objects have boxes.
        """
        options = self.options
        if not (options.mosaic or options.copy_paste) or not may_mix(row):
            return Mix()
        return Mix.sample(random, num_records, may_mix, options.mosaic, options.copy_paste)

    def __call__(
        self,
        scene: Scene,
        tiles: Sequence[Scene],
        donor: Scene | None,
        out_hwc_u8: NDArray[np.uint8],
        random: np.random.Generator,
    ) -> Objects:
        """Writes the input of the network and returns the objects that are visible in it, the largest first.

        Args:
            scene: The image and its objects; the first one stays visible.
            tiles: Three more scenes for a mosaic, or none.
            donor: The scene to paste objects from.
            out_hwc_u8: Output, (S, S, 3).
            random: The generator of the image, after `mix`.
        """
        side, options = self.input_size_px, self.options
        colour = ColourChange.sample(random, options.colour) if options.colour else None
        out_hwc_u8[...] = PAD_VALUE
        area = (0, 0, side, side)
        if tiles:
            objects = draw_mosaic((scene, *tiles), out_hwc_u8, random, colour)
        else:
            cropped = random.random() < options.crop and not _is_small_and_class_only(scene)
            window = random_window(scene, random) if cropped else full_window(scene.image_hwc_u8)
            placement = Placement.letterboxed(window, area)
            area = placement.target
            objects = placement.draw(scene, out_hwc_u8, colour)
        if donor is not None:
            objects = paste_objects(donor, Scene(out_hwc_u8, objects), area, random, colour)
        transformed = self._transform(Scene(out_hwc_u8, objects), _is_small_and_class_only(scene), random)
        if transformed.image_hwc_u8 is not out_hwc_u8:
            out_hwc_u8[...] = transformed.image_hwc_u8
        return transformed.objects.largest_first()

    def _transform(self, scene: Scene, may_shift: bool, random: np.random.Generator) -> Scene:
        """Shifts, rotates and flips the whole input."""
        options = self.options
        if may_shift and random.random() < options.crop:
            max_shift_px = round(self.input_size_px * _MAX_SHIFT)
            scene = shift(scene, *random.integers(-max_shift_px, max_shift_px + 1, 2).tolist())
        if options.rotation and random.random() < _ROTATION_PROBABILITY:
            scene = rotate(scene, random.uniform(-options.rotation, options.rotation))
        horizontally, vertically = random.random(2) < _FLIP_PROBABILITY
        return flip(
            scene,
            horizontally=bool(horizontally and options.flip != "none"),
            vertically=bool(vertically and options.flip == "both"),
        )


def _is_small_and_class_only(scene: Scene) -> bool:
    """Whether to shift an image rather than to crop it."""
    return scene.objects.class_only and max(scene.image_hwc_u8.shape[:2]) <= _SMALL_IMAGE_PX
