"""Training images made from several: mosaic and copy-paste.

Which images are combined is sampled before any is read (`Mix`), so that all can be fetched at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray
from locray.training.augment.colour import ColourChange
from locray.training.augment.crops import MIN_VISIBLE_OTHERS, Placement, Rect, random_tile
from locray.training.augment.scene import Objects, Scene, area_shares, clip_boxes

_NUM_TILES = 4
_CENTRE = (0.35, 0.65)
_MAX_TRIES = 8

_MAX_PASTED = 3
_PASTED_SCALE = (0.6, 1.4)
_MIN_PASTED_PX = 4
_MAX_PASTED_SIDE = 0.5
_BLEND_PROBABILITY = 0.5
MAX_COVERED = 0.2
"""Pasted objects together hide at most this share of any other."""
_MARGIN = 0.2
"""Width of the blended edge around a pasted object, as a share of its sides."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The other records that a training image is made from."""

    tiles: tuple[int, ...] = ()
    """Three for a mosaic."""
    donor: int | None = None
    """The record to paste objects from."""

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them."""
        return self.tiles if self.donor is None else (*self.tiles, self.donor)

    @classmethod
    def sample(
        cls,
        random: np.random.Generator,
        num_records: int,
        may_mix: Callable[[int], bool],
        mosaic: float,
        copy_paste: float,
    ) -> "Mix":
        """Samples a mosaic and copy-paste, each with its probability, from records that `may_mix`."""
        with_mosaic, with_paste = random.random(2) < (mosaic, copy_paste)
        tiles = _sample_rows(random, num_records, may_mix, _NUM_TILES - 1) if with_mosaic else ()
        donors = _sample_rows(random, num_records, may_mix, 1) if with_paste else ()
        return cls(tiles, donors[0] if donors else None)


def _sample_rows(
    random: np.random.Generator, num_records: int, may_mix: Callable[[int], bool], count: int
) -> tuple[int, ...]:
    candidates = random.integers(0, num_records, count * _MAX_TRIES).tolist()
    rows = [row for row in candidates if may_mix(row)][:count]
    return tuple(rows) if len(rows) == count else ()


def draw_mosaic(
    scenes: Sequence[Scene], out_hwc_u8: NDArray[np.uint8], random: np.random.Generator, colour: ColourChange | None
) -> Objects:
    """Draws four images, each in a corner of the input (S, S, 3), as in YOLOv4 (Bochkovskiy et al. 2020).

    They meet in a random point near the middle. Each shows a part that fills its corner and contains most of its first
    object. The first image's objects come first.
    """
    assert len(scenes) == _NUM_TILES
    side = out_hwc_u8.shape[0]
    x, y = (round(float(at) * side) for at in random.uniform(*_CENTRE, 2))
    corners: list[Rect] = [(0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)]
    objects = Objects.none()
    for scene, corner in zip(scenes, random.permutation(_NUM_TILES), strict=True):
        placement = random_tile(scene, corners[corner], random)
        objects = objects.joined(placement.draw(scene, out_hwc_u8, colour))
    return objects


def paste_objects(
    donor: Scene, scene: Scene, area: Rect, random: np.random.Generator, colour: ColourChange | None
) -> Objects:
    """Copies up to three objects, with everything inside their boxes, into free places of an area of the input.

    In half of the images edges are hard, in the others they blend into the new surroundings, so that edges don't give
    pasted objects away (Dwibedi et al. 2017, "Cut, paste and learn"). No object is covered by more than `MAX_COVERED`.

    Args:
        donor: Where the objects come from.
        scene: The input; its image (S, S, 3) is modified.
        area: Where objects may go.
        random: The generator of the image.
        colour: The colour change of the image.

    Returns:
        The objects of the scene, followed by the pasted ones.
    """
    objects = scene.objects
    hidden = np.zeros(len(objects.boxed))
    margin = _MARGIN if random.random() < _BLEND_PROBABILITY else 0.0
    count = min(int(random.integers(1, _MAX_PASTED + 1)), len(donor.objects.boxed))
    for box in random.permutation(donor.objects.boxed)[:count]:
        window = _window_around(box, donor.image_hwc_u8, margin)
        # Relative to its size where the whole donor is shown.
        scale = scene.image_hwc_u8.shape[0] / max(donor.image_hwc_u8.shape[:2]) * random.uniform(*_PASTED_SCALE)
        target = _free_place(objects.boxed, hidden, window, scale, area, random)
        if target is None:
            continue
        hidden += area_shares(clip_boxes(objects.boxed, target), objects.boxed)
        placement = Placement(window, target)
        visible = placement.to_input(donor.objects.boxes_xyxy_px)
        inner = clip_boxes(placement.to_input(box[None]), target)[0]
        left, top, right, bottom = target
        background = scene.image_hwc_u8[top:bottom, left:right]
        patch = placement.pixels(donor.image_hwc_u8, colour)
        background[...] = _blend(patch, background, inner - np.tile(target[:2], 2)) if margin else patch
        # Neighbours that reach into the box are copied as well.
        objects = objects.joined(donor.objects.with_boxes(visible).clipped_to(inner, MIN_VISIBLE_OTHERS))
        hidden = np.append(hidden, np.zeros(len(objects.boxed) - len(hidden)))
    return objects


def _window_around(box_xyxy_px: FloatArray, image_hwc_u8: NDArray[np.uint8], margin: float) -> Rect:
    """Smallest window of whole pixels around a box and its margin."""
    height, width = image_hwc_u8.shape[:2]
    around = np.tile(box_xyxy_px[2:] - box_xyxy_px[:2], 2) * margin * (-1, -1, 1, 1) + box_xyxy_px
    left, top = np.floor(np.clip(around[:2], 0, (width - 1, height - 1))).astype(int).tolist()
    right, bottom = np.ceil(np.clip(around[2:], (left + 1, top + 1), (width, height))).astype(int).tolist()
    return left, top, right, bottom


def _free_place(
    taken_xyxy_px: FloatArray,
    hidden: FloatArray,
    window: Rect,
    scale: float,
    area: Rect,
    random: np.random.Generator,
) -> Rect | None:
    """Samples a place for a window where it hides no object more than allowed; None where no try succeeds.

    `hidden` (M,) is the share of each object that others hide already.
    """
    sides = np.array([window[2] - window[0], window[3] - window[1]])
    room = np.array([area[2] - area[0], area[3] - area[1]])
    scale = min(scale, float((room * _MAX_PASTED_SIDE / sides).min()))
    width, height = (round(float(side) * scale) for side in sides)
    if min(width, height) < _MIN_PASTED_PX:
        return None
    for _ in range(_MAX_TRIES):
        left = int(random.integers(area[0], area[2] - width + 1))
        top = int(random.integers(area[1], area[3] - height + 1))
        place = left, top, left + width, top + height
        if (hidden + area_shares(clip_boxes(taken_xyxy_px, place), taken_xyxy_px) <= MAX_COVERED).all():
            return place
    return None


def _blend(patch: NDArray[np.uint8], background: NDArray[np.uint8], inner_xyxy_px: FloatArray) -> NDArray[np.uint8]:
    """Blends a patch (h, w, 3) over its background: opaque in its inner box, fading towards its edges."""
    height, width = patch.shape[:2]
    opacity = np.outer(
        _fade(height, inner_xyxy_px[1], inner_xyxy_px[3]), _fade(width, inner_xyxy_px[0], inner_xyxy_px[2])
    )[..., None]
    return np.asarray((patch * opacity + background * (1 - opacity)).round().astype(np.uint8))


def _fade(length: int, start: float, end: float) -> FloatArray:
    """Opacity along one side: rises to 1 at `start`, falls from 1 at `end`. An edge without a margin is hard."""
    at = np.arange(length) + 0.5
    rising = at / start if start > 0 else np.ones(length)
    falling = (length - at) / (length - end) if end < length else np.ones(length)
    return np.minimum(1, np.minimum(rising, falling))
