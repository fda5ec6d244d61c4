"""What is done to a training image, in which order. Called by `samples`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from locray.config.training import AugmentationOptions
from locray.images.letterbox import PAD_VALUE
from locray.training.augment.canvas import flipped, rotated, shifted
from locray.training.augment.colour import ColourChange
from locray.training.augment.mixing import Mix, draw_mosaic, paste_objects
from locray.training.augment.placing import Placement, random_window, whole
from locray.training.augment.scene import Objects, Scene

Flip = Literal["none", "horizontal", "both"]

_FLIPPED = 0.5
_ROTATED = 0.5
"""Of the images: a rotation blurs, and images that the network is used on are not blurred."""
_SMALL_IMAGE_PX = 64
"""A class-only image up to this size is moved by up to `_LARGEST_SHIFT` of the input, as is usual for CIFAR: a part of
so few pixels shows nothing."""
_LARGEST_SHIFT = 1 / 8


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training images are changed; see the options of the same names.

    Attributes:
        crop: Share of the images that are zoomed into, or moved if they are small and only their class is known.
        rotation_degrees: Largest rotation to either side, of half of the images.
        flip: Which flips may happen, each to half of the images.
        colour: Largest change of brightness, contrast and saturation.
        mosaic: Share of the images that are put together from four.
        copy_paste: Share of the images that get objects of another one.
    """

    crop: float = 0.7
    rotation_degrees: float = 10.0
    flip: Flip = "horizontal"
    colour: float = 0.3
    mosaic: float = 0.0
    copy_paste: float = 0.0

    @classmethod
    def of(cls, options: AugmentationOptions) -> "Augmentation":
        """As the options of a command say."""
        return cls(
            crop=options.crop,
            rotation_degrees=options.rotation,
            flip=options.flip,
            colour=options.colour,
            mosaic=options.mosaic,
            copy_paste=options.copy_paste,
        )


@dataclass(frozen=True, slots=True)
class Augmenter:
    """Makes network inputs of images and their objects. The same generator gives the same input."""

    augmentation: Augmentation
    input_size_px: int

    def mix(self, random: np.random.Generator, row: int, num_records: int, may_mix: Callable[[int], bool]) -> Mix:
        """Which other records are needed for one. The first thing to be drawn for an image.

        Args:
            random: The generator of the image.
            row: Its record.
            num_records: Among which others are chosen.
            may_mix: Whether a record can be mixed with others: all its objects have boxes.
        """
        chosen = self.augmentation
        if not (chosen.mosaic or chosen.copy_paste) or not may_mix(row):
            return Mix()
        return Mix.drawn(random, num_records, may_mix, chosen.mosaic, chosen.copy_paste)

    def __call__(
        self,
        scene: Scene,
        tiles: Sequence[Scene],
        donor: Scene | None,
        out_hwc_u8: NDArray[np.uint8],
        random: np.random.Generator,
    ) -> Objects:
        """Writes the input (S, S, 3), and gives the objects that are seen in it, the largest first.

        Args:
            scene: The image and its objects, the one that must be seen first.
            tiles: Three more for a mosaic, or none.
            donor: The one to paste objects from.
            out_hwc_u8: The array to write to.
            random: The generator of the image, after `mix`.
        """
        side, chosen = self.input_size_px, self.augmentation
        colour = ColourChange.drawn(random, chosen.colour) if chosen.colour else None
        out_hwc_u8[...] = PAD_VALUE
        area = (0, 0, side, side)
        if tiles:
            objects = draw_mosaic((scene, *tiles), out_hwc_u8, random, colour)
        else:
            zoomed = random.random() < chosen.crop and not _is_small_and_class_only(scene)
            window = random_window(scene, random) if zoomed else whole(scene.image_hwc_u8)
            placement = Placement.letterboxed(window, area)
            area = placement.target
            objects = placement.draw(scene, out_hwc_u8, colour)
        if donor is not None:
            objects = paste_objects(donor, Scene(out_hwc_u8, objects), area, random, colour)
        made = self._moved(Scene(out_hwc_u8, objects), _is_small_and_class_only(scene), random)
        if made.image_hwc_u8 is not out_hwc_u8:
            out_hwc_u8[...] = made.image_hwc_u8
        return made.objects.largest_first()

    def _moved(self, canvas: Scene, may_shift: bool, random: np.random.Generator) -> Scene:
        chosen = self.augmentation
        if may_shift and random.random() < chosen.crop:
            most = round(self.input_size_px * _LARGEST_SHIFT)
            canvas = shifted(canvas, *random.integers(-most, most + 1, 2).tolist())
        if chosen.rotation_degrees and random.random() < _ROTATED:
            canvas = rotated(canvas, random.uniform(-chosen.rotation_degrees, chosen.rotation_degrees))
        horizontally, vertically = random.random(2) < _FLIPPED
        return flipped(
            canvas,
            horizontally=bool(horizontally and chosen.flip != "none"),
            vertically=bool(vertically and chosen.flip == "both"),
        )


def _is_small_and_class_only(scene: Scene) -> bool:
    """Whether to move an image rather than to cut a part out."""
    return scene.objects.class_only and max(scene.image_hwc_u8.shape[:2]) <= _SMALL_IMAGE_PX
