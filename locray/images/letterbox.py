"""A decoded image into its square network input. Called by the decode stage and by training's data loader.

torch resizes: its kernel for uint8 is Pillow's, vectorised, to within one grey level (seldom two), and takes two thirds
of the time on 300 x 300 pixels and a third on megapixels. Pillow does it where a process has too little to do to repay
the import of torch.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from locray.boxes import Letterbox

Resizer = Literal["torch", "pillow"]

PAD_VALUE = 114
"""The grey of the padding: the usual one of detectors trained on letterboxed images (YOLOX, YOLOv5)."""

_DECODED_SIDES = 2
"""What the filter gets to work with: the decoder's own reduction ends at this many times the size asked for."""


def decoded_side_px(input_size_px: int) -> int:
    """How long the longer side of an image must stay in its decoder for an input of this size.

    It is the longer one that a letterbox fits.
    """
    return _DECODED_SIDES * input_size_px


def letterbox_image(
    image_hwc_u8: NDArray[np.uint8],
    letterbox: Letterbox,
    out: NDArray[np.uint8] | None = None,
    resizer: Resizer = "torch",
) -> NDArray[np.uint8]:
    """Scale to fit with antialiased bilinear filtering, centre, and pad with `PAD_VALUE`.

    Args:
        image_hwc_u8: The upright image (H, W, 3), at full size or reduced in proportion by the decoder.
        letterbox: Where it goes, fitted to the image's full width and height.
        out: The array (S, S, 3) uint8 to write to, such as a row of a batch; a new one if None.
        resizer: Whose filter.

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
    size_px = (letterbox.scaled_width_px, letterbox.scaled_height_px)
    if image_hwc_u8.shape[1::-1] == size_px:
        out[top:bottom, left:right] = image_hwc_u8
    elif resizer == "torch":
        out[top:bottom, left:right] = _resized_by_torch(image_hwc_u8, *size_px)
    else:
        resized = Image.fromarray(image_hwc_u8).resize(size_px, Image.Resampling.BILINEAR)
        out[top:bottom, left:right] = np.asarray(resized)
    return out


def _resized_by_torch(image_hwc_u8: NDArray[np.uint8], width_px: int, height_px: int) -> NDArray[np.uint8]:
    import torch
    from torch.nn import functional

    image_nchw = torch.from_numpy(image_hwc_u8).permute(2, 0, 1)[None]
    resized = functional.interpolate(image_nchw, (height_px, width_px), mode="bilinear", antialias=True)
    return np.asarray(resized[0].permute(1, 2, 0).numpy())
