"""Units whose JPEGs are still encoded: decoded where the network runs. Called by the predictor."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from locray import schema
from locray.boxes import Letterbox
from locray.errors import DeferralCause
from locray.images.decode import ImageFailure
from locray.images.isolated import IsolatedDecoder
from locray.images.letterbox import letterbox_image
from locray.labelling.fetch_decode import DecodeSettings
from locray.models.nvjpeg import decode_letterboxed


class Unanswered(NamedTuple):
    """Why there is no answer for an image that was well so far."""

    code: str
    message: str
    status: str = schema.STATUS_FAILED


def decode_encoded(
    unit: pa.Table, settings: DecodeSettings, device: torch.device, *, in_child: bool
) -> tuple[Tensor, dict[int, Unanswered]]:
    """The pixels of a unit of `schema.ENCODED_SCHEMA`.

    What nvJPEG refuses is decoded by a child process on the CPU, which has the last word, as it has for other formats.

    Args:
        unit: Rows as the decode stage gives them.
        settings: How they are decoded.
        device: Where the network runs.
        in_child: Leave no image to the device: a process has died over this unit.

    Returns:
        Images (N, S, S, 3) uint8 on the device, and by row those that can't be decoded.
    """
    size = settings.input_size_px
    images = torch.zeros((len(unit), size, size, 3), dtype=torch.uint8, device=device)
    is_ok, is_encoded = pc.equal(unit[schema.STATUS], schema.STATUS_OK), unit[schema.IS_ENCODED]
    files = unit[schema.IMAGE]
    for row in _rows(pc.and_not(is_ok, is_encoded)):
        images[row] = torch.frombuffer(bytearray(files[row].as_py()), dtype=torch.uint8).view(size, size, 3)
    encoded = _rows(pc.and_(is_ok, is_encoded))
    jpegs = [files[row].as_py() for row in encoded]
    if in_child:
        refused = list(range(len(encoded)))
    else:
        sizes = [(unit[schema.WIDTH][row].as_py(), unit[schema.HEIGHT][row].as_py()) for row in encoded]
        refused = decode_letterboxed(jpegs, sizes, [images[row] for row in encoded])
    unanswered = {}
    with IsolatedDecoder(settings.limits, settings.timeout_s, settings.decoded_side_px) as decode:
        for index in refused:
            found = _decoded_by(decode, jpegs[index], size)
            if isinstance(found, Unanswered):
                unanswered[encoded[index]] = found
            else:
                images[encoded[index]] = found
    return images, unanswered


def _rows(mask: pa.ChunkedArray) -> list[int]:
    return [int(row) for row in np.flatnonzero(mask.to_numpy())]


def _decoded_by(decode: IsolatedDecoder, jpeg: bytes, size_px: int) -> Tensor | Unanswered:
    try:
        found = decode(jpeg)
    except OSError as error:
        message = f"no process to decode it in: {error}"
        return Unanswered(DeferralCause.WORKER, message, schema.STATUS_DEFERRED)
    if isinstance(found, ImageFailure):
        return Unanswered(found.code, found.message)
    letterbox = Letterbox.fit(found.width_px, found.height_px, size_px)
    return torch.from_numpy(letterbox_image(found.image_hwc_u8, letterbox))
