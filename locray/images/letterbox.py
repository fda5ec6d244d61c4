"""A decoded image into its square network input. Called by the decode stage and by training's data loader."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from locray.boxes import Letterbox

PAD_VALUE = 114
"""The grey of the padding: the usual one of detectors trained on letterboxed images (YOLOX, YOLOv5)."""

_REDUCING_GAP = 2.0
"""Large images are first shrunk by whole factors to at least twice the size asked for: 2.5 times as fast for three
megapixels, and the result is off by a third of a grey level on average."""


def letterbox_image(
    image_hwc_u8: NDArray[np.uint8], letterbox: Letterbox, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Scale to fit with antialiased bilinear filtering, centre, and pad with `PAD_VALUE`.

    Args:
        image_hwc_u8: The upright image (H, W, 3), at full size or reduced in proportion by the decoder.
        letterbox: Where it goes, fitted to the image's full width and height.
        out: The array (S, S, 3) uint8 to write to, such as a row of a batch; a new one if None.

    Returns:
        `out`, (S, S, 3) uint8 with S = `letterbox.input_size_px`.
    """
    side = letterbox.input_size_px
    if out is None:
        out = np.empty((side, side, 3), dtype=np.uint8)
    assert out.shape == (side, side, 3)
    assert out.dtype == np.uint8
    left, top = letterbox.pad_left_px, letterbox.pad_top_px
    right, bottom = left + letterbox.scaled_width_px, top + letterbox.scaled_height_px
    out[:top] = out[bottom:] = PAD_VALUE
    out[top:bottom, :left] = out[top:bottom, right:] = PAD_VALUE
    out[top:bottom, left:right] = _resized(image_hwc_u8, letterbox.scaled_width_px, letterbox.scaled_height_px)
    return out


def _resized(image_hwc_u8: NDArray[np.uint8], width_px: int, height_px: int) -> NDArray[np.uint8]:
    if image_hwc_u8.shape[:2] == (height_px, width_px):
        return image_hwc_u8
    image = Image.fromarray(image_hwc_u8)
    return np.asarray(image.resize((width_px, height_px), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP))
