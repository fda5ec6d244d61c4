"""Boxes and the letterbox: geometry on NumPy arrays.

A box is `(xmin, ymin, xmax, ymax)` in absolute pixels and continuous coordinates: the left edge of the first pixel is
0, the right edge of the last one is `width`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
NumberArray = NDArray[np.number]


def areas(boxes_xyxy: FloatArray) -> FloatArray:
    """Areas of boxes (..., 4) as (...,); 0 for degenerate or inverted boxes."""
    sides = np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def intersections(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """Intersection areas of boxes (N, 4) and (M, 4), as (N, M)."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    sides = np.clip(bottom_right - top_left, 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou_matrix(a_xyxy: FloatArray, b_xyxy: FloatArray) -> FloatArray:
    """Intersection over union of boxes (N, 4) and (M, 4), as (N, M) in [0, 1]."""
    intersection = intersections(a_xyxy, b_xyxy)
    union = areas(a_xyxy)[:, None] + areas(b_xyxy)[None, :] - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0))


def clip(boxes_xyxy: FloatArray, widths: NumberArray, heights: NumberArray) -> FloatArray:
    """Boxes (..., 4) clipped to their images; widths and heights broadcast against the leading dimensions."""
    clipped = boxes_xyxy.copy()
    clipped[..., 0::2] = np.clip(clipped[..., 0::2], 0, np.asarray(widths)[..., None])
    clipped[..., 1::2] = np.clip(clipped[..., 1::2], 0, np.asarray(heights)[..., None])
    return clipped


def is_valid(boxes_xyxy: FloatArray) -> NDArray[np.bool_]:
    """Whether boxes (..., 4) are finite with xmin < xmax and ymin < ymax, as (...,)."""
    finite = np.isfinite(boxes_xyxy).all(axis=-1)
    return np.asarray(finite & (boxes_xyxy[..., 0] < boxes_xyxy[..., 2]) & (boxes_xyxy[..., 1] < boxes_xyxy[..., 3]))


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Position of an image in the square input of a network: scaled to fit, centred, and padded.

    Each axis has its own scale, since the scaled sides are whole pixels: so the inverse is exact.
    """

    input_size_px: int
    scaled_width_px: int
    scaled_height_px: int
    scale_x: float
    scale_y: float

    @classmethod
    def fit(cls, width_px: int, height_px: int, input_size_px: int) -> "Letterbox":
        """The letterbox of an upright image; both sides must be at least 1."""
        assert width_px >= 1
        assert height_px >= 1
        assert input_size_px >= 1
        scale = input_size_px / max(width_px, height_px)
        scaled_width = min(input_size_px, max(1, round(width_px * scale)))
        scaled_height = min(input_size_px, max(1, round(height_px * scale)))
        return cls(input_size_px, scaled_width, scaled_height, scaled_width / width_px, scaled_height / height_px)

    @property
    def pad_left_px(self) -> int:
        """Columns of padding left of the image."""
        return (self.input_size_px - self.scaled_width_px) // 2

    @property
    def pad_top_px(self) -> int:
        """Rows of padding above the image."""
        return (self.input_size_px - self.scaled_height_px) // 2

    def to_input(self, boxes_xyxy_px: FloatArray) -> FloatArray:
        """Boxes (..., 4) of the upright image in pixels of the network input."""
        return np.asarray(boxes_xyxy_px * self._scale() + self._offset())

    def to_image(self, boxes_xyxy_px: FloatArray) -> FloatArray:
        """The inverse of `to_input`; not clipped."""
        return np.asarray((boxes_xyxy_px - self._offset()) / self._scale())

    def _scale(self) -> FloatArray:
        return np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y])

    def _offset(self) -> FloatArray:
        return np.array([self.pad_left_px, self.pad_top_px, self.pad_left_px, self.pad_top_px], dtype=np.float64)


def to_images(
    boxes_xyxy_px: FloatArray, widths_px: NDArray[np.int64], heights_px: NDArray[np.int64], input_size_px: int
) -> FloatArray:
    """`Letterbox.to_image` for the boxes (N, K, 4) of N images, clipped to the images."""
    frames = np.stack([widths_px, heights_px], axis=1)
    scales = input_size_px / frames.max(axis=1, keepdims=True)
    scaled = np.clip(np.rint(frames * scales), 1, input_size_px)
    offsets = np.tile((input_size_px - scaled) // 2, 2)[:, None]
    upright = (boxes_xyxy_px - offsets) / np.tile(scaled / frames, 2)[:, None]
    return clip(upright, widths_px[:, None], heights_px[:, None])
