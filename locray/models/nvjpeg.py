"""JPEGs into a network's input on its own device, by nvJPEG on GPUs. Called by `labelling.encoded`.

nvJPEG knows no reduced decoding, so the whole picture is decoded, and what a decoder on the CPU would have reduced is
averaged before the filter that fits it.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from locray.boxes import Letterbox
from locray.errors import UsageError
from locray.images.decode import scale_factor
from locray.images.letterbox import PAD_VALUE, decoded_side_px
from locray.models.cuda import NO_FAULT_OF_AN_IMAGE

_PIXELS_AT_ONCE = 2**26
"""Of the pictures of one call: 200 MB of decoded ones."""


def check_works(device: torch.device) -> None:
    """Decodes a small picture.

    Raises:
        UsageError: the decoder of this device refuses it. It would refuse all, and leave them to a CPU.
    """
    side_px = 16
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px)).save(buffer, "JPEG")
    out = torch.zeros((side_px, side_px, 3), dtype=torch.uint8, device=device)
    if decode_letterboxed([buffer.getvalue()], [(side_px, side_px)], [out]):
        raise UsageError(
            "--jpeg-decoder gpu: nvJPEG decodes nothing on the node of this worker; "
            "`python -m pytest tests/test_cuda.py` there says why. Leave the option out to decode on its CPUs"
        )


def decode_letterboxed(jpegs: Sequence[bytes], sizes_px: Sequence[tuple[int, int]], out: Sequence[Tensor]) -> list[int]:
    """Decodes upright JPEGs and fits them into squares.

    Args:
        jpegs: The files.
        sizes_px: Width and height that each declares.
        out: Where each goes: (S, S, 3) uint8, on the device that decodes.

    Returns:
        The positions of those that the decoder refuses; their squares are left as they were.
    """
    refused = []
    for chosen in _chunks(sizes_px):
        pictures = _decoded([jpegs[index] for index in chosen], out[chosen[0]].device)
        for index, picture in zip(chosen, pictures, strict=True):
            width_px, height_px = sizes_px[index]
            if picture is None or picture.shape != (3, height_px, width_px) or not _fit(picture, out[index]):
                refused.append(index)
    return refused


def _chunks(sizes_px: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Positions in order, as many at once as their pictures leave room for; one at least."""
    chunk: list[int] = []
    pixels = 0
    for index, (width_px, height_px) in enumerate(sizes_px):
        pixels += width_px * height_px
        if chunk and pixels > _PIXELS_AT_ONCE:
            yield chunk
            chunk, pixels = [], width_px * height_px
        chunk.append(index)
    if chunk:
        yield chunk


def _decoded(jpegs: list[bytes], device: torch.device) -> list[Tensor | None]:
    """Each picture (3, H, W) uint8. One that can't be decoded fails the call for all: it is looked for by halves."""
    files = [torch.from_numpy(np.frombuffer(bytearray(jpeg), np.uint8)) for jpeg in jpegs]
    _wait_for(device)
    try:
        return list(decode_jpeg(files, ImageReadMode.RGB, device))
    except NO_FAULT_OF_AN_IMAGE:
        raise
    except RuntimeError:
        _wait_for(device)
        if len(jpegs) == 1:
            return [None]
    half = len(jpegs) // 2
    return [*_decoded(jpegs[:half], device), *_decoded(jpegs[half:], device)]


def _wait_for(device: torch.device) -> None:
    """A GPU's decoder writes in a stream of its own, without regard to who still uses the memory that it is given.

    https://github.com/pytorch/vision/issues/9606
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fit(picture: Tensor, out: Tensor) -> bool:
    """As `images.letterbox` does, in floats: GPUs have no such filter for bytes. False where it is too much for one."""
    side_px = out.shape[0]
    height_px, width_px = picture.shape[1:]
    letterbox = Letterbox.fit(width_px, height_px, side_px)
    image = picture[None].float()
    factor = scale_factor(width_px, height_px, decoded_side_px(side_px))
    if factor > 1:
        image = functional.avg_pool2d(image, factor, ceil_mode=True)
    fitted_size = (letterbox.scaled_height_px, letterbox.scaled_width_px)
    try:
        image = functional.interpolate(image, fitted_size, mode="bilinear", antialias=True)
    except NO_FAULT_OF_AN_IMAGE:
        raise
    except RuntimeError:  # a side that is reduced to less than a pixel takes more weights than fit into a block
        return False
    left, top = letterbox.pad_left_px, letterbox.pad_top_px
    out.fill_(PAD_VALUE)
    fitted = out[top : top + letterbox.scaled_height_px, left : left + letterbox.scaled_width_px]
    fitted.copy_(image[0].round_().clamp_(0, 255).permute(1, 2, 0))
    return True
