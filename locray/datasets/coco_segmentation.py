"""Boxes of COCO's segmentations: polygons, and masks as run lengths."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from locray.datasets.fields import abbreviate, json_number
from locray.datasets.records import Box
from locray.errors import UsageError

_MIN_POLYGON_NUMBERS = 6
_MAX_PIXELS = 2**31


def box_of_segmentation(segmentation: object, place: str) -> Box | None:
    """The bounding box; None if there is no segmentation, or an empty mask.

    Args:
        segmentation: A list of polygons, each [x, y, x, y, ...]; or `{"size": [height, width], "counts": ...}` with
            the run lengths of the mask by columns, as a list or as COCO's text.
        place: Names the field in messages.

    Raises:
        UsageError: it is anything else.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return _box_of_polygons(segmentation, place)
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation, place)
    raise UsageError(f"{place}: found {abbreviate(segmentation)}, expected a list of polygons or a mask.")


def _box_of_polygons(polygons: list[object], place: str) -> Box:
    flat = [polygons] if not isinstance(polygons[0], list) else polygons
    numbers: list[float] = []
    for polygon in flat:
        if not isinstance(polygon, list) or len(polygon) < _MIN_POLYGON_NUMBERS or len(polygon) % 2:
            raise UsageError(f"{place}: found {abbreviate(polygon)}, expected the corners of a polygon, x y x y ...")
        numbers += [json_number(value, place) for value in polygon]
    return min(numbers[0::2]), min(numbers[1::2]), max(numbers[0::2]), max(numbers[1::2])


def _box_of_mask(mask: Mapping[str, object], place: str) -> Box | None:
    size, counts = mask.get("size"), mask.get("counts")
    is_size = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)  # noqa: PLR2004
    lengths = _run_lengths(counts)
    if not is_size or lengths is None or not isinstance(size, list):
        raise UsageError(f"{place}: found {abbreviate(mask)}, expected size [height, width] and the counts of a mask.")
    height, width = size
    if height * width > _MAX_PIXELS or lengths.sum() != height * width:
        raise UsageError(f"{place}: found counts of {lengths.sum()} pixels, expected {height} x {width}.")
    ends = lengths.cumsum()
    starts, lasts = (ends - lengths)[1::2], ends[1::2] - 1
    used = lasts >= starts
    starts, lasts = starts[used], lasts[used]
    if not len(starts):
        return None
    # A run that goes on in the next column covers rows from the first to the last.
    is_whole = starts // height < lasts // height
    top = np.where(is_whole, 0, starts % height).min()
    bottom = np.where(is_whole, height - 1, lasts % height).max()
    return float(starts[0] // height), float(top), float(lasts[-1] // height + 1), float(bottom + 1)


def _run_lengths(counts: object) -> NDArray[np.int64] | None:
    """Lengths of the runs, of pixels outside and inside by turns; None if they can't be read."""
    if isinstance(counts, list) and all(type(count) is int and 0 <= count <= _MAX_PIXELS for count in counts):
        return np.array(counts, dtype=np.int64)
    if isinstance(counts, str):
        lengths = _decompressed(counts.encode())
        return None if lengths is None else np.array(lengths, dtype=np.int64)
    return None


def _decompressed(text: Sequence[int]) -> list[int] | None:
    """The run lengths of COCO's text, as `rleFrString` of its API reads them; None if it is none.

    A character from "0" on holds five bits, the sixth means that more follow. From the fourth number on, each is the
    difference to the last but one.
    """
    lengths: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = text[at] - 48 if at < len(text) else -1
            if not 0 <= bits < 64 or shift > 30:  # noqa: PLR2004 - six bits; lengths of up to 31
                return None
            value |= (bits & 0x1F) << shift
            more, shift, at = bool(bits & 0x20), shift + 5, at + 1
            if not more and bits & 0x10:
                value |= -1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)  # noqa: PLR2004 - as above
        if not 0 <= lengths[-1] <= _MAX_PIXELS:
            return None
    return lengths
