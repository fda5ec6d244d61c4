"""TIFF files whose samples Pillow reads without their meaning, or not at all.

Pillow chooses a mode by the size of the samples. It is right for those in `_READ_BY_PILLOW`. All others are read by
tifffile, which gives the samples as they are stored, and get their meaning here.

Shapes: H and W sides of the stored image, S samples per pixel, C colours.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from locray.images.colour import ALPHA_BACKGROUND_RGB, to_rgb, unit_range

_UINT, _INT, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_SAMPLE_FORMATS = {
    _UINT: "unsigned",
    _INT: "signed",
    _FLOAT: "float",
    _UNDEFINED: "undefined",
    5: "complex",
    6: "complex",
}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 1, 2, 3, 5, 6, 8
_PHOTOMETRIC = {
    _WHITE_IS_ZERO: "grey, white is 0",
    _BLACK_IS_ZERO: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    4: "transparency mask",
    _CMYK: "inks",
    _YCBCR: "YCbCr",
    _CIELAB: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _CIELAB: 3}
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_INKS_ARE_CMYK = 1
_SEPARATE = 2
"""Planar configuration."""
_ORIENTATION, _INK_SET = 274, 332
_MAX_BYTES_PER_PIXEL = 64
_MAX_U16 = 65535

_READ_BY_PILLOW = {
    _WHITE_IS_ZERO: (1, 8),
    _BLACK_IS_ZERO: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _CMYK: (8, 16),
    _YCBCR: (8,),
    _CIELAB: (8,),
}
"""Bits of unsigned samples of which Pillow's modes have the right meaning, by photometric interpretation."""


class UnknownRangeError(ValueError):
    """Which sample is white can't be known."""


@dataclass(frozen=True, slots=True)
class TiffImage:
    """The first image of a TIFF file, as its tags describe it."""

    width_px: int
    height_px: int
    """Sides of the stored image."""
    bits: int
    photometric: int
    sample_format: int
    num_samples: int
    is_planar: bool
    """Whether each colour is stored as a picture of its own."""
    alpha: int | None
    """Kind of the alpha channel behind the colours; None without one."""
    orientation: int
    palette: NDArray[np.uint16] | None
    """(3, 2 ** bits)."""
    is_complete: bool
    """Whether all of its pixels lie within the file. Readers fill in zeros for others."""
    reason: str | None
    """Why its meaning is not known."""

    @property
    def is_read_by_pillow(self) -> bool:
        """Whether Pillow's mode has the right meaning."""
        if self.reason is not None or self.sample_format not in (_UINT, _UNDEFINED):
            return False
        if self.bits not in _READ_BY_PILLOW.get(self.photometric, ()):
            return False
        if self.photometric == _PALETTE:
            return self.palette is not None and not _has_8_bit_entries(self.palette)
        has_extra = self.num_samples > _COLOURS[self.photometric]
        return self.bits == 8 if self.is_planar else self.bits == 8 or not has_extra  # noqa: PLR2004

    def __str__(self) -> str:
        kind = _PHOTOMETRIC.get(self.photometric, f"photometric interpretation {self.photometric}")
        sample_format = _SAMPLE_FORMATS.get(self.sample_format, f"format {self.sample_format}")
        return f"TIFF of {kind} with {self.num_samples} {sample_format} samples of {self.bits} bits"


def describe(data: bytes) -> TiffImage | None:
    """Reads the tags of the first image; None if they can't be read."""
    import tifffile  # here, since most buckets hold no TIFF

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs each fault of a broken file
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            photometric, extra = int(page.photometric), tuple(map(int, page.extrasamples))
            bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
            num_colours = _COLOURS.get(photometric, page.samplesperpixel)
            alphas = [kind for kind in extra[:1] if kind in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA)]
            reason = None
            if photometric not in _COLOURS or page.sampleformat not in (_UINT, _INT, _FLOAT, _UNDEFINED):
                reason = "has no known meaning"
            elif photometric == _CMYK and page.tags.valueof(_INK_SET, _INKS_ARE_CMYK) != _INKS_ARE_CMYK:
                reason = "the inks are not those of CMYK"
            elif page.samplesperpixel < num_colours:
                reason = f"expected {num_colours} samples"
            elif page.imagedepth != 1:
                reason = "is a volume"
            elif int(page.compression) not in tifffile.TIFF.DECOMPRESSORS:
                reason = f"there is no decoder for compression {int(page.compression)}"
            colourmap = page.colormap if photometric == _PALETTE else None
            return TiffImage(
                width_px=int(page.imagewidth),
                height_px=int(page.imagelength),
                bits=int(bits),
                photometric=photometric,
                sample_format=int(page.sampleformat),
                num_samples=int(page.samplesperpixel),
                is_planar=int(page.planarconfig) == _SEPARATE and page.samplesperpixel > 1,
                alpha=alphas[0] if alphas else None,
                orientation=int(page.tags.valueof(_ORIENTATION, 1)),
                palette=None if colourmap is None else np.asarray(colourmap),
                is_complete=_is_complete(page, num_colours + len(alphas), len(data)),
                reason=reason,
            )
    except Exception:  # noqa: BLE001 - raises nearly every type there is on broken data
        return None


def _is_complete(page: Any, num_samples: int, num_bytes: int) -> bool:
    """Whether the first samples of each pixel lie within a file of `num_bytes`."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if int(page.planarconfig) == _SEPARATE:
        parts = parts[: len(parts) * num_samples // page.samplesperpixel]
    return bool(parts) and all(count > 0 and offset + count <= num_bytes for offset, count in parts)


def read_rgb(data: bytes, image: TiffImage) -> NDArray[np.uint8]:
    """The stored image in RGB (H, W, 3).

    Args:
        data: The file.
        image: Its description, without a reason against it.

    Raises:
        EOFError: the file is cut off.
        UnknownRangeError: the samples are integers of more than 16 bits, and use them.
        Exception: of any type, if the pixels can't be decoded, or a pixel has too many samples.
    """
    if not image.is_complete:
        raise EOFError("the pixels are truncated")
    if image.num_samples * image.bits > 8 * _MAX_BYTES_PER_PIXEL:
        raise ValueError(f"{image.num_samples} samples of {image.bits} bits per pixel")
    if image.photometric == _YCBCR:
        return _decode_ycbcr(data)
    samples = _read_samples(data, image)
    num_colours = _COLOURS[image.photometric]
    colours = _TO_UNIT_RGB[image.photometric](samples[..., :num_colours], image)
    if image.alpha is not None and samples.shape[2] > num_colours:
        alpha = _to_unit(samples[..., num_colours : num_colours + 1], image)
        background = np.array(ALPHA_BACKGROUND_RGB, np.float32) / 255 * (1 - alpha)
        colours = background + (colours if image.alpha == _ASSOCIATED_ALPHA else colours * alpha)
    np.clip(colours, 0, 1, out=colours)
    colours *= 255
    levels = np.rint(colours, out=colours).astype(np.uint8)
    return np.ascontiguousarray(levels if levels.shape[2] == 3 else np.repeat(levels, 3, axis=2))  # noqa: PLR2004


def _read_samples(data: bytes, image: TiffImage) -> NDArray[Any]:
    """(H, W, S)."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        samples: NDArray[Any] = page.asarray(maxworkers=1)
        if page.axes == "SYX":
            samples = np.moveaxis(samples, 0, -1)
    return samples.reshape(image.height_px, image.width_px, -1)


def _decode_ycbcr(data: bytes) -> NDArray[np.uint8]:
    """The conversion of libtiff, for chroma of any subsampling."""
    import imagecodecs

    rgba: NDArray[np.uint8] = imagecodecs.tiff_decode(data, asrgb=True)
    return np.ascontiguousarray(rgba[..., :3])


def _to_unit(values: NDArray[Any], image: TiffImage) -> NDArray[np.floating[Any]]:
    """Samples from 0 to 1, by their bits. Those of 32 bits and floats: see `colour.unit_range`."""
    values = values.astype(np.uint8) if values.dtype == bool else values
    if image.sample_format == _FLOAT or image.bits > 16:  # noqa: PLR2004 - wider integers rarely use their range
        if image.sample_format != _FLOAT and values.dtype.kind == "u" and values.max(initial=0) > _MAX_U16:
            raise UnknownRangeError(f"it is not known which sample is white; found up to {values.max()}")
        low, high = unit_range(values)
    else:
        low = -(2 ** (image.bits - 1)) if image.sample_format == _INT else 0
        high = low + 2**image.bits - 1
    unit = values.astype(np.result_type(values.dtype, np.float32))  # float64 for what float32 can't tell apart
    if image.sample_format == _FLOAT:
        np.nan_to_num(unit, copy=False, nan=low, posinf=high, neginf=low)
    unit -= low
    unit *= 1 / (high - low) if high > low else 0
    return unit.astype(np.float32, copy=False)


def _inverted(values: NDArray[Any], image: TiffImage) -> NDArray[np.floating[Any]]:
    return 1 - _to_unit(values, image)


def _palette_colours(values: NDArray[Any], image: TiffImage) -> NDArray[np.floating[Any]]:
    assert image.palette is not None
    full = 255 if _has_8_bit_entries(image.palette) else _MAX_U16
    return np.moveaxis(image.palette[:, values[..., 0].astype(np.intp)], 0, -1).astype(np.float32) / full


def _has_8_bit_entries(palette: NDArray[np.uint16]) -> bool:
    """Some writers store 8 bits, where the standard has 16."""
    return int(palette.max()) <= 255  # noqa: PLR2004


def _ink_colours(values: NDArray[Any], image: TiffImage) -> NDArray[np.floating[Any]]:
    inks = _to_unit(values, image)
    return (1 - inks[..., :3]) * (1 - inks[..., 3:])


def _lab_colours(values: NDArray[Any], image: TiffImage) -> NDArray[np.floating[Any]]:
    """L unsigned, a and b signed, by Pillow's conversion in 8 bits."""
    levels = (values >> (image.bits - 8)).astype(np.uint8)
    rgb = to_rgb(Image.frombytes("LAB", (image.width_px, image.height_px), levels.tobytes()))
    return np.asarray(rgb, np.float32) / 255


_TO_UNIT_RGB: dict[int, Callable[[NDArray[Any], TiffImage], NDArray[np.floating[Any]]]] = {
    _WHITE_IS_ZERO: _inverted,
    _BLACK_IS_ZERO: _to_unit,
    _RGB: _to_unit,
    _PALETTE: _palette_colours,
    _CMYK: _ink_colours,
    _CIELAB: _lab_colours,
}
"""From colours (H, W, C) as they are stored to RGB or grey from 0 to 1, by photometric interpretation."""
