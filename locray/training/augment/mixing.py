"""Training images made of several: mosaic and copy-paste. Called by `chain`.

Which images come together is drawn before any is read (`Mix`), so that all can be fetched at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray
from locray.training.augment.colour import ColourChange
from locray.training.augment.placing import LEAST_SHARE_OF_OTHERS, Placement, Rect, random_tile
from locray.training.augment.scene import Objects, Scene, cut, shares

_TILES = 4
_CENTRE = (0.35, 0.65)
_TRIES = 8

_MOST_PASTED = 3
_PASTED_SCALE = (0.6, 1.4)
_SMALLEST_PASTED_PX = 4
_LARGEST_PASTED = 0.5
_BLENDED = 0.5
MAX_COVERED = 0.2
"""Pasted objects together hide at most this share of any other."""
_MARGIN = 0.2
"""Of the surroundings of a pasted object with blended edges, as a share of its sides."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The other records that go into a training image."""

    tiles: tuple[int, ...] = ()
    """Three for a mosaic."""
    donor: int | None = None
    """Where objects to paste come from."""

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them."""
        return self.tiles if self.donor is None else (*self.tiles, self.donor)

    @classmethod
    def drawn(
        cls,
        random: np.random.Generator,
        num_records: int,
        may_mix: Callable[[int], bool],
        mosaic: float,
        copy_paste: float,
    ) -> "Mix":
        """Mosaic and copy-paste with these probabilities, with records that `may_mix`; none where they are rare."""
        wants_mosaic, wants_paste = random.random(2) < (mosaic, copy_paste)
        tiles = _chosen(random, num_records, may_mix, _TILES - 1) if wants_mosaic else ()
        donors = _chosen(random, num_records, may_mix, 1) if wants_paste else ()
        return cls(tiles, donors[0] if donors else None)


def _chosen(
    random: np.random.Generator, num_records: int, may_mix: Callable[[int], bool], count: int
) -> tuple[int, ...]:
    candidates = random.integers(0, num_records, count * _TRIES).tolist()
    rows = [row for row in candidates if may_mix(row)][:count]
    return tuple(rows) if len(rows) == count else ()


def draw_mosaic(
    scenes: Sequence[Scene], out_hwc_u8: NDArray[np.uint8], random: np.random.Generator, colour: ColourChange | None
) -> Objects:
    """Four images, each in a corner of the input (S, S, 3), as in YOLOv4 (Bochkovskiy et al. 2020).

    They meet in a random point about the middle; each shows a part that fills its corner and holds most of its first
    object. The first image's objects come first.
    """
    assert len(scenes) == _TILES
    side = out_hwc_u8.shape[0]
    x, y = (round(float(at) * side) for at in random.uniform(*_CENTRE, 2))
    corners: list[Rect] = [(0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)]
    objects = Objects.none()
    for scene, corner in zip(scenes, random.permutation(_TILES), strict=True):
        placement = random_tile(scene, corners[corner], random)
        objects = objects.joined(placement.draw(scene, out_hwc_u8, colour))
    return objects


def paste_objects(
    donor: Scene, scene: Scene, area: Rect, random: np.random.Generator, colour: ColourChange | None
) -> Objects:
    """Copies up to three objects, with all that their boxes show, into free places of an area of the input.

    In half of the images edges are hard, in the others they blend into the new surroundings, so that no edge gives a
    pasted object away (Dwibedi et al. 2017, "Cut, paste and learn"). No object is covered by more than `MAX_COVERED`.

    Args:
        donor: Where the objects come from.
        scene: The input; its image (S, S, 3) is drawn on.
        area: Where objects may go.
        random: The generator of the image.
        colour: As for the rest of the image.

    Returns:
        The objects of the scene, then the pasted ones.
    """
    objects = scene.objects
    hidden = np.zeros(len(objects.boxed))
    margin = _MARGIN if random.random() < _BLENDED else 0.0
    count = min(int(random.integers(1, _MOST_PASTED + 1)), len(donor.objects.boxed))
    for box in random.permutation(donor.objects.boxed)[:count]:
        window = _window_around(box, donor.image_hwc_u8, margin)
        # Relative to the size that it has where the donor is seen whole.
        scale = scene.image_hwc_u8.shape[0] / max(donor.image_hwc_u8.shape[:2]) * random.uniform(*_PASTED_SCALE)
        target = _free_place(objects.boxed, hidden, window, scale, area, random)
        if target is None:
            continue
        hidden += shares(cut(objects.boxed, target), objects.boxed)
        placement = Placement(window, target)
        seen = placement.to_input(donor.objects.boxes_xyxy_px)
        inner = cut(placement.to_input(box[None]), target)[0]
        left, top, right, bottom = target
        under = scene.image_hwc_u8[top:bottom, left:right]
        patch = placement.pixels(donor.image_hwc_u8, colour)
        under[...] = _blended(patch, under, inner - np.tile(target[:2], 2)) if margin else patch
        # Neighbours that reach into the box came along.
        objects = objects.joined(donor.objects.with_boxes(seen).cut_to(inner, LEAST_SHARE_OF_OTHERS))
        hidden = np.append(hidden, np.zeros(len(objects.boxed) - len(hidden)))
    return objects


def _window_around(box_xyxy_px: FloatArray, image_hwc_u8: NDArray[np.uint8], margin: float) -> Rect:
    """The whole pixels that a box and its surroundings touch."""
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
    """Where a window can go without hiding more of an object than is allowed; None where it seems to fit nowhere.

    `hidden` (M,) is how much of each object others hide already.
    """
    sides = np.array([window[2] - window[0], window[3] - window[1]])
    room = np.array([area[2] - area[0], area[3] - area[1]])
    scale = min(scale, float((room * _LARGEST_PASTED / sides).min()))
    width, height = (round(float(side) * scale) for side in sides)
    if min(width, height) < _SMALLEST_PASTED_PX:
        return None
    for _ in range(_TRIES):
        left = int(random.integers(area[0], area[2] - width + 1))
        top = int(random.integers(area[1], area[3] - height + 1))
        place = left, top, left + width, top + height
        if (hidden + shares(cut(taken_xyxy_px, place), taken_xyxy_px) <= MAX_COVERED).all():
            return place
    return None


def _blended(patch: NDArray[np.uint8], under: NDArray[np.uint8], inner_xyxy_px: FloatArray) -> NDArray[np.uint8]:
    """A patch (h, w, 3) over what was there, opaque in its inner box and fading towards its edges."""
    height, width = patch.shape[:2]
    opacity = np.outer(
        _fading(height, inner_xyxy_px[1], inner_xyxy_px[3]), _fading(width, inner_xyxy_px[0], inner_xyxy_px[2])
    )[..., None]
    return np.asarray((patch * opacity + under * (1 - opacity)).round().astype(np.uint8))


def _fading(length: int, start: float, end: float) -> FloatArray:
    """Opacity along one side: rises to 1 at `start`, falls from 1 at `end`; an edge without surroundings is hard."""
    at = np.arange(length) + 0.5
    rising = at / start if start > 0 else np.ones(length)
    falling = (length - at) / (length - end) if end < length else np.ones(length)
    return np.minimum(1, np.minimum(rising, falling))
