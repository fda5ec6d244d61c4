"""An image and its objects: input and output of every step of the augmentation."""

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
    """(M,); false for an object of which only the class is known."""

    def __len__(self) -> int:
        return len(self.label_ids)

    @classmethod
    def none(cls) -> "Objects":
        """No objects."""
        return cls(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))

    @property
    def boxed(self) -> FloatArray:
        """The known boxes, (K, 4)."""
        return self.boxes_xyxy_px[self.has_box]

    @property
    def class_only(self) -> bool:
        """Whether there are objects, and none of them has a box."""
        return len(self) > 0 and not self.has_box.any()

    def clipped_to(self, rect_xyxy_px: ArrayLike, min_share: float) -> "Objects":
        """The objects of which at least `min_share` lies in a rectangle, their boxes clipped to it."""
        if not self.has_box.any():
            return self
        inside = clip_boxes(self.boxes_xyxy_px, rect_xyxy_px)
        kept = ~self.has_box | (boxes.is_valid(inside) & (area_shares(inside, self.boxes_xyxy_px) >= min_share))
        return Objects(inside[kept], self.label_ids[kept], self.has_box[kept])

    def with_boxes(self, boxes_xyxy_px: FloatArray) -> "Objects":
        """The same objects with other boxes (M, 4)."""
        return replace(self, boxes_xyxy_px=boxes_xyxy_px)

    def joined(self, other: "Objects") -> "Objects":
        """These objects, followed by the others."""
        return Objects(
            np.concatenate([self.boxes_xyxy_px, other.boxes_xyxy_px]),
            np.concatenate([self.label_ids, other.label_ids]),
            np.concatenate([self.has_box, other.has_box]),
        )

    def largest_first(self) -> "Objects":
        """Sorted by area; objects without a box come last, in their order."""
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
    """Annotated boxes that lie wholly outside the image."""


def area_shares(inside_xyxy: FloatArray, whole_xyxy: FloatArray) -> FloatArray:
    """Area of each clipped box (M, 4) as a share of its whole box (M, 4): (M,)."""
    return np.asarray(boxes.areas(inside_xyxy) / np.maximum(boxes.areas(whole_xyxy), 1e-9))


def clip_boxes(boxes_xyxy_px: FloatArray, rect_xyxy_px: ArrayLike) -> FloatArray:
    """Clips boxes (M, 4) to a rectangle (4,)."""
    rect = np.asarray(rect_xyxy_px)
    return np.asarray(boxes_xyxy_px.reshape(-1, 2, 2).clip(rect[:2], rect[2:]).reshape(-1, 4))


def scale_boxes(boxes_xyxy_px: FloatArray, scale_xy: ArrayLike, offset_xy: ArrayLike = 0.0) -> FloatArray:
    """Scales boxes (M, 4) and then shifts them, per axis."""
    corners = boxes_xyxy_px.reshape(-1, 2, 2) * np.asarray(scale_xy) + np.asarray(offset_xy)
    return np.asarray(corners.reshape(-1, 4))
