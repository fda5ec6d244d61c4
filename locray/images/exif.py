"""EXIF orientation: read from raw bytes, and applied to images and boxes.

Pillow's own reader warns and raises on the broken EXIF blocks that cameras and editors write. This one reads a single
tag and returns 1 (upright) if it can't: broken EXIF never makes an image fail. An orientation in XMP only is ignored,
as browsers and annotation tools ignore it.
"""

import struct
from collections.abc import Iterator
from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray

UPRIGHT = 1

_EXIF_PREFIX = b"Exif\0\0"
_TAG_ORIENTATION = 0x0112
_VALUE_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""TIFF's integer types by number: BYTE, SHORT, LONG, and the same signed. An orientation may have any of them."""

_MARKER_START_OF_SCAN = 0xDA
_MARKER_APP1 = 0xE1
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_MIN_SEGMENT_BYTES = 2


def orientation_of_exif(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block, with or without its `Exif` prefix; 1 if there is none."""
    values = first_ifd(exif.removeprefix(_EXIF_PREFIX)).get(_TAG_ORIENTATION, ())
    return values[0] if values and values[0] in _UPRIGHT_VIEWS else UPRIGHT


def orientation_of_jpeg(data: bytes) -> int:
    """The orientation (1 to 8) in the first EXIF segment of a JPEG file; 1 if there is none."""
    for marker, start, end in jpeg_segments(data):
        if marker == _MARKER_APP1 and data.startswith(_EXIF_PREFIX, start):
            return orientation_of_exif(data[start:end])
    return UPRIGHT


def to_upright(image_hwc_u8: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turns a stored image (H, W, 3) upright: (H, W, 3), or (W, H, 3) for orientations 5 to 8.

    Returns the array itself if it is upright, otherwise a contiguous copy.
    """
    if orientation == UPRIGHT:
        return image_hwc_u8
    # With whole pixels as elements NumPy moves three bytes at once, which is twice as fast.
    pixels_hw = np.ascontiguousarray(image_hwc_u8).view("V3")[..., 0]
    upright = np.ascontiguousarray(_UPRIGHT_VIEWS[orientation](pixels_hw))
    return upright.view(np.uint8).reshape(*upright.shape, 3)


_UPRIGHT_VIEWS = {
    1: lambda hw: hw,
    2: lambda hw: hw[:, ::-1],
    3: lambda hw: hw[::-1, ::-1],
    4: lambda hw: hw[::-1],
    5: lambda hw: hw.T,
    6: lambda hw: hw.T[:, ::-1],
    7: lambda hw: hw.T[::-1, ::-1],
    8: lambda hw: hw.T[::-1],
}


def boxes_to_upright(boxes_xyxy: FloatArray, orientation: int, width: float, height: float) -> FloatArray:
    """Boxes (..., 4) of a stored image of `width` x `height`, in the frame of its `to_upright`."""
    left, top, right, bottom = np.moveaxis(boxes_xyxy, -1, 0)
    if swaps_sides(orientation):
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if orientation in _MIRRORED_IN_X:
        left, right = width - right, width - left
    if orientation in _MIRRORED_IN_Y:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=-1)


def boxes_in_upright_frame(
    boxes_xyxy: FloatArray,
    frame_wh: tuple[float, float],
    upright_wh: tuple[float, float],
    orientation: int,
    *,
    is_stored: bool = False,
) -> FloatArray:
    """Annotated boxes in pixels of the upright image.

    Tools that ignore EXIF annotate the stored image, on its side. Their boxes are recognised by a frame in portrait
    format of an upright image in landscape format, or vice versa, if the orientation swaps the sides. Where the frame
    does not tell (it is unknown, relative or square, or the image is upside down or mirrored), `is_stored` decides.

    Args:
        boxes_xyxy: (..., 4) in the units of `frame_wh`.
        frame_wh: Frame of the boxes: the size of the image, that of a scaled copy, or (1, 1) for relative boxes. (0, 0)
            if it is unknown; then the boxes are taken as pixels of the image.
        upright_wh: Size of the upright image, or of a scaled copy, that the boxes are returned for.
        orientation: 1 to 8, as in `DecodedImage`.
        is_stored: Whether boxes are those of the stored image where the frame does not tell.
    """
    frame_width, frame_height = frame_wh
    width, height = upright_wh
    stored = stored_by_frame(frame_wh, upright_wh, orientation)
    if stored is None:
        stored = is_stored and orientation != UPRIGHT
    if not frame_width or not frame_height:
        if not stored:
            return boxes_xyxy
        frame_width, frame_height = (height, width) if swaps_sides(orientation) else (width, height)
    if stored and not swaps_sides(orientation):
        boxes_xyxy = boxes_to_upright(boxes_xyxy, orientation, frame_width, frame_height)
    elif stored:
        boxes_xyxy = boxes_to_upright(boxes_xyxy, orientation, frame_width, frame_height)
        frame_width, frame_height = frame_height, frame_width
    scale_x, scale_y = width / frame_width, height / frame_height
    return np.asarray(boxes_xyxy * np.array([scale_x, scale_y, scale_x, scale_y]))


def stored_by_frame(frame_wh: tuple[float, float], upright_wh: tuple[float, float], orientation: int) -> bool | None:
    """Whether the frame of boxes is that of the stored image and not of the upright one; None if it does not tell."""
    evidence = (frame_wh[0] - frame_wh[1]) * (upright_wh[0] - upright_wh[1])
    return evidence < 0 if evidence and swaps_sides(orientation) else None


_MIRRORED_IN_X = frozenset({2, 3, 6, 7})
_MIRRORED_IN_Y = frozenset({3, 4, 7, 8})
"""Orientations whose view, after the transposition of 5 to 8, is reversed along the axis."""


def swaps_sides(orientation: int) -> bool:
    """Whether the orientation exchanges width and height."""
    return orientation >= 5  # noqa: PLR2004 - numbering of the EXIF standard


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, and start and end of the payload, of every segment up to and including the first start of scan.

    The end of the last segment may lie beyond the data, if the file is cut off.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF) or marker in _MARKERS_WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2  # noqa: PLR2004 - 0xFF bytes before a marker are padding
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, at + 2 + max(length, _MIN_SEGMENT_BYTES)
        if marker == _MARKER_START_OF_SCAN:
            return
        at += 2 + max(length, _MIN_SEGMENT_BYTES)


def bits_of_jpeg(data: bytes) -> int | None:
    """Bits per sample, by the frame header of a JPEG file; None without one."""
    starts = (start for marker, start, _ in jpeg_segments(data) if marker in _FRAME_MARKERS)
    return next((data[start] for start in starts if start < len(data)), None)


def first_ifd(tiff: bytes) -> dict[int, tuple[int, ...]]:
    """Readable integer tags in the first directory of a TIFF block; {} if there is none, or for BigTIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return {}
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(order + "H", tiff, at)
    except struct.error:
        return {}
    entries = starmap(
        lambda tag, kind, count, value_at: (tag, _ifd_values(tiff, order, kind, count, value_at)),
        _ifd_entries(tiff, order, at + 2, num_entries),
    )
    return {tag: values for tag, values in entries if values}


def _ifd_entries(tiff: bytes, order: str, at: int, num_entries: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and position of the value field of the directory's entries inside the block."""
    entry = struct.Struct(order + "HHI4x")
    for position in range(at, min(at + 12 * num_entries, len(tiff) - 11), 12):
        yield *entry.unpack_from(tiff, position), position + 8


def _ifd_values(tiff: bytes, order: str, kind: int, count: int, value_at: int) -> tuple[int, ...]:
    letter = _VALUE_FORMATS.get(kind)
    if letter is None:
        return ()
    layout = struct.Struct(f"{order}{count}{letter}")
    try:
        if layout.size > 4:  # noqa: PLR2004 - four bytes fit into the entry, longer values are stored elsewhere
            (value_at,) = struct.unpack_from(order + "I", tiff, value_at)
        return layout.unpack_from(tiff, value_at)
    except struct.error:
        return ()
