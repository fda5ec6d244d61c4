"""An image and its objects, as every step of the augmentation takes and gives them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from locray import boxes
from locray.boxes import FloatArray


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one image, M of them."""

    boxes_xyxy_px: FloatArray
    """(M, 4); any finite value where `has_box` is false."""
    label_ids: NDArray[np.int64]
    """(M,)"""
    has_box: NDArray[np.bool_]
    """(M,); false for an object whose class alone is known."""

    def __len__(self) -> int:
        return len(self.label_ids)

    @classmethod
    def none(cls) -> "Objects":
        """No objects."""
        return cls(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))

    @property
    def boxed(self) -> FloatArray:
        """The boxes that are known, (number of them, 4)."""
        return self.boxes_xyxy_px[self.has_box]

    @property
    def class_only(self) -> bool:
        """Whether there are objects and no box is known."""
        return len(self) > 0 and not self.has_box.any()

    def cut_to(self, rect_xyxy_px: ArrayLike, least_share: float) -> "Objects":
        """The objects of which at least `least_share` lies in a rectangle, their boxes cut to it."""
        if not self.has_box.any():
            return self
        inside = cut(self.boxes_xyxy_px, rect_xyxy_px)
        kept = ~self.has_box | (boxes.is_valid(inside) & (shares(inside, self.boxes_xyxy_px) >= least_share))
        return Objects(inside[kept], self.label_ids[kept], self.has_box[kept])

    def with_boxes(self, boxes_xyxy_px: FloatArray) -> "Objects":
        """The same objects elsewhere."""
        return replace(self, boxes_xyxy_px=boxes_xyxy_px)

    def joined(self, other: "Objects") -> "Objects":
        """These objects and then the others."""
        return Objects(
            np.concatenate([self.boxes_xyxy_px, other.boxes_xyxy_px]),
            np.concatenate([self.label_ids, other.label_ids]),
            np.concatenate([self.has_box, other.has_box]),
        )

    def largest_first(self) -> "Objects":
        """By area; those without a box come last, in their order."""
        if len(self) <= 1:
            return self
        order = np.argsort(-np.where(self.has_box, boxes.areas(self.boxes_xyxy_px), -1), kind="stable")
        return Objects(self.boxes_xyxy_px[order], self.label_ids[order], self.has_box[order])


@dataclass(frozen=True, slots=True)
class Scene:
    """An image (H, W, 3) uint8, and its objects in its pixels."""

    image_hwc_u8: NDArray[np.uint8]
    objects: Objects
    num_outside: int = 0
    """Annotated boxes that lie wholly beside the image."""


def shares(inside_xyxy: FloatArray, whole_xyxy: FloatArray) -> FloatArray:
    """How much of each box (M, 4) is left, as (M,)."""
    return np.asarray(boxes.areas(inside_xyxy) / np.maximum(boxes.areas(whole_xyxy), 1e-9))


def cut(boxes_xyxy_px: FloatArray, rect_xyxy_px: ArrayLike) -> FloatArray:
    """Boxes (M, 4) cut to a rectangle (4,)."""
    rect = np.asarray(rect_xyxy_px)
    return np.asarray(boxes_xyxy_px.reshape(-1, 2, 2).clip(rect[:2], rect[2:]).reshape(-1, 4))


def scaled(boxes_xyxy_px: FloatArray, scale_xy: ArrayLike, offset_xy: ArrayLike = 0.0) -> FloatArray:
    """Boxes (M, 4) scaled and then moved, for each axis."""
    corners = boxes_xyxy_px.reshape(-1, 2, 2) * np.asarray(scale_xy) + np.asarray(offset_xy)
    return np.asarray(corners.reshape(-1, 4))
