"""From what annotation files say to a `Dataset`: the checks that every format shares. Called by the readers."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from locray.datasets.records import Box, Dataset, Described, Record, SkipReason
from locray.errors import UsageError

_MOST_PLACES = 3
# Centre and size with six digits often reach over the edge by their rounding: that is no box to be counted as cut.
_ROUNDING = 1e-5


@dataclass
class DatasetBuilder:
    """Gathers the records of one split and counts what is left out.

    `object_noun` is what messages call an object of an image: what `Described.object_numbers` number.
    """

    data_uri: str
    split: str
    object_noun: str = "object"
    _records: list[Record] = field(default_factory=list)
    _uris: set[str] = field(default_factory=set)
    _left_out: Counter[str] = field(default_factory=Counter)
    _places: dict[str, list[str]] = field(default_factory=dict)
    _num_clipped_boxes: int = 0

    def add(self, image_uri: str, described: Described) -> None:
        """Takes up an image that exists, once; of its objects those whose box has an area inside the frame."""
        if image_uri in self._uris:
            self.leave_out(SkipReason.DUPLICATE_ID, f"{described.where or self.data_uri}: {image_uri} again")
            return
        self._uris.add(image_uri)
        width_px, height_px = described.width_px, described.height_px
        objects = []
        for index, annotation in enumerate(described.objects):
            if annotation.box_xyxy_px is None:
                objects.append(annotation)
                continue
            reason, box = cut_to_frame(annotation.box_xyxy_px, width_px, height_px)
            if reason is not None:
                self._leave_out_box(reason, image_uri, described, index)
            elif box == annotation.box_xyxy_px:
                objects.append(annotation)
            else:
                self._num_clipped_boxes += _is_cut(annotation.box_xyxy_px, box, width_px, height_px)
                objects.append(replace(annotation, box_xyxy_px=box))
        self._records.append(Record(image_uri, tuple(objects), width_px, height_px, described.where))

    def leave_out(self, reason: SkipReason, place: str) -> None:
        """Counts what can't be taken up at all; `place` names file and entry."""
        self._left_out[reason] += 1
        places = self._places.setdefault(str(reason), [])
        if len(places) < _MOST_PLACES:
            places.append(place)

    def leave_out_all(self, skipped: Iterable[tuple[SkipReason, str]]) -> None:
        """Counts what a parser could not take up."""
        for reason, place in skipped:
            self.leave_out(reason, place)

    def _leave_out_box(self, reason: SkipReason, image_uri: str, described: Described, index: int) -> None:
        self._left_out[reason] += 1
        places = self._places.setdefault(str(reason), [])
        if len(places) < _MOST_PLACES:
            number = described.object_numbers[index] if described.object_numbers else index + 1
            places.append(_box_place(f"{described.where or image_uri}, {self.object_noun} {number}", described, index))

    def build(self) -> Dataset:
        """The data set, named by the last part of its URI.

        Raises:
            UsageError: no image is left; nothing can be trained or measured on that.
        """
        if not self._records:
            found = ", ".join(f"{count} x {reason}" for reason, count in self._left_out.items()) or "no annotations"
            first = next((f" The first: {places[0]}." for places in self._places.values()), "")
            raise UsageError(
                f"Split {self.split!r} of {self.data_uri} has no usable image. Found: {found}.{first} "
                "Expected images that their annotations name: look whether both were copied."
            )
        classes = sorted({annotation.label for record in self._records for annotation in record.objects})
        return Dataset(
            name=self.data_uri.rstrip("/!").rpartition("/")[2],
            split=self.split,
            records=tuple(self._records),
            classes=tuple(classes),
            skipped={str(reason): count for reason, count in sorted(self._left_out.items())},
            num_clipped_boxes=self._num_clipped_boxes,
            left_out_places={reason: tuple(places) for reason, places in self._places.items()},
        )


def _box_place(place: str, described: Described, index: int) -> str:
    annotation = described.objects[index]
    corners = " ".join(f"{value:g}" for value in annotation.box_xyxy_px or ())
    known = described.width_px is not None and described.height_px is not None
    frame = f" in a frame of {described.width_px} x {described.height_px}" if known else ""
    return f"{place}, box of {annotation.label!r}: {corners}{frame}"


def _is_cut(before: Box, after: Box, width_px: int | None, height_px: int | None) -> bool:
    slack_x, slack_y = _ROUNDING * (width_px or 0), _ROUNDING * (height_px or 0)
    return (
        max(abs(before[0] - after[0]), abs(before[2] - after[2])) > slack_x
        or max(abs(before[1] - after[1]), abs(before[3] - after[3])) > slack_y
    )


def cut_to_frame(box_xyxy_px: Box, width_px: int | None, height_px: int | None) -> tuple[SkipReason | None, Box]:
    """The part of a finite box that lies in its frame, or the reason why nothing can be made of it.

    A frame of unknown size still begins at 0, 0. (Plain numbers: an array a box would cost ten times as much.)

    Returns:
        (None, the box inside the frame), or (the reason, the box as it was).
    """
    xmin, ymin, xmax, ymax = box_xyxy_px
    if xmin > xmax or ymin > ymax:
        return SkipReason.INVERTED_BOX, box_xyxy_px
    if xmin == xmax or ymin == ymax:
        return SkipReason.EMPTY_BOX, box_xyxy_px
    width, height = width_px or math.inf, height_px or math.inf
    inside = (max(xmin, 0.0), max(ymin, 0.0), min(xmax, width), min(ymax, height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return SkipReason.OUTSIDE_BOX, box_xyxy_px
    return None, inside
