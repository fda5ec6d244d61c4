"""Label lines of YOLO that look like polygons: whether they are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from locray.errors import UsageError

BOX_FIELDS = 5
WITH_CONFIDENCE = 6
MAX_OVERHANG = 0.1
"""How far a corner may lie outside of the image, as a share of its side: tools don't clip all of them."""

_CORNERS_FIELDS = 9
_MIN_LINES_OF_POINTS = 10
"""A single polygon may look like a box with points; so many don't."""


def check_polygons(texts: Mapping[str, str]) -> None:
    """Raises UsageError if all lines of a split are boxes with other numbers after them, not polygons.

    Polygons have different numbers of corners, so this looks at splits only where every line has the same number of
    fields: then each may be a box with a confidence and a track number (7 fields), or with key points.

    Args:
        texts: Label files by name.
    """
    lines = list(_lines_of_one_length(texts))
    if not lines:
        return
    rows = [values for _, values in lines]
    if not all(_is_box_in_frame(values) for values in rows):
        return
    rests = [values[4:] for values in rows]
    num_rest = len(rests[0])
    kinds = {
        "a confidence and a number": num_rest == 2 and all(rest[1] == int(rest[1]) for rest in rests),  # noqa: PLR2004
        "key points with their visibility": num_rest % 3 == 0 and all(_are_flags(rest[2::3]) for rest in rests),
        "key points": num_rest % 2 == 0 and len(rows) >= _MIN_LINES_OF_POINTS and all(map(_holds_its_points, rows)),
    }
    found = next((kind for kind, is_there in kinds.items() if is_there), None)
    if found is not None:
        raise UsageError(
            f"{lines[0][0]}: found {5 + num_rest} fields in this and all other lines of the split, which are boxes "
            f"with {found}, no polygons. Expected a class, a centre, width and height (5 fields): remove the others."
        )


def _lines_of_one_length(texts: Mapping[str, str]) -> Iterator[tuple[str, Sequence[float]]]:
    """Place and values of every line; nothing if lines differ in length, or are plainly boxes or four corners."""
    rows = [
        (f"{where}, line {number}", line.split())
        for where, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    if not rows or any(len(one) != len(other) for (_, one), (_, other) in pairwise(rows)):
        return
    count = len(rows[0][1])
    if count <= WITH_CONFIDENCE or count == _CORNERS_FIELDS:
        return
    try:
        numbers = [(place, [float(value) for value in fields[1:]]) for place, fields in rows]
    except ValueError:  # parsing says which
        return
    yield from numbers


def _is_box_in_frame(values: Sequence[float]) -> bool:
    x, y, width, height = values[:4]
    return width > 0 and height > 0 and x - width / 2 >= 0 and x + width / 2 <= 1 and 0 <= y - height / 2 <= 1 - height


def _are_flags(values: Sequence[float]) -> bool:
    return all(value in (0, 1, 2) for value in values)


def _holds_its_points(values: Sequence[float]) -> bool:
    x, y, width, height = values[:4]
    points = zip(values[4::2], values[5::2], strict=True)
    return all((px, py) == (0, 0) or (abs(px - x) <= width / 2 and abs(py - y) <= height / 2) for px, py in points)
