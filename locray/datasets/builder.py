"""The checks that every format shares: what files say about images becomes a data set, and the rest is counted."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from locray.datasets.records import Annotation, Box, Dataset, ImageAnnotations, Record, SkipReason
from locray.errors import UsageError

_MAX_EXAMPLES = 3
_ROUNDING = 1e-5
"""Share of a side. A centre and a size of six digits often reach this far over the edge: no box that was clipped."""
_RELATIVE_FRAME = (1, 1)


@dataclass
class DatasetBuilder:
    """Collects the records of one split and counts what is skipped.

    `object_noun` names an object of an image in messages, before its number (`ImageAnnotations.object_numbers`).
    """

    data_uri: str
    split: str
    object_noun: str = "object"
    _records: dict[str, Record] = field(default_factory=dict)
    _skipped: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, list[str]] = field(default_factory=dict)
    _num_clipped_boxes: int = 0

    def add(self, image_uri: str | None, image: ImageAnnotations) -> None:
        """Adds the objects of an image whose box has an area inside the frame. None: the image is missing.

        An image may be added several times, as by files with an entry per box: it keeps the objects of all. Skipped
        are objects with the class and box of an earlier one, and an entry in another frame than the first.
        """
        if image_uri is None:
            name = f"image {image.filename!r}" if image.filename else "such image"
            self.skip(SkipReason.NO_IMAGE, f"{image.where}: there is no {name}")
            return
        earlier = self._records.get(image_uri)
        if earlier is not None:
            frame, first = (image.width_px, image.height_px), (earlier.width_px, earlier.height_px)
            if None not in frame and None not in first and frame != first:
                again = f"{image_uri} again, in a frame of {frame[0]} x {frame[1]} instead of {first[0]} x {first[1]}"
                self.skip(SkipReason.DUPLICATE_ID, f"{image.where or self.data_uri}: {again}")
                return
            if None in frame:
                image = replace(image, width_px=earlier.width_px, height_px=earlier.height_px)
        objects = self._usable_objects(image_uri, image, earlier.objects if earlier else ())
        where = earlier.where if earlier else image.where
        self._records[image_uri] = Record(image_uri, objects, image.width_px, image.height_px, where)

    def _usable_objects(
        self, image_uri: str, image: ImageAnnotations, earlier: tuple[Annotation, ...]
    ) -> tuple[Annotation, ...]:
        """The earlier objects of the image and the usable ones of this entry, with their boxes clipped."""
        objects = list(earlier)
        boxes = {annotation.box_xyxy_px for annotation in earlier}
        for index, annotation in enumerate(image.objects):
            reason, usable = self._usable(annotation, image.width_px, image.height_px)
            box = usable.box_xyxy_px
            # Whole annotations are compared only where a box comes again: hashing each would cost ten times as much.
            if reason is None and box in boxes and usable in (earlier if box is None else objects):
                reason = SkipReason.DUPLICATE_ID
            if reason is None:
                objects.append(usable)
                boxes.add(box)
            else:
                self._skip_object(reason, image_uri, image, index)
        return tuple(objects)

    def _usable(
        self, annotation: Annotation, width_px: int | None, height_px: int | None
    ) -> tuple[SkipReason | None, Annotation]:
        """The object with its box clipped and its label in NFC, or the reason why it can't be used."""
        if not annotation.label.isascii():
            annotation = replace(annotation, label=unicodedata.normalize("NFC", annotation.label))
        box = annotation.box_xyxy_px
        if box is None:
            return None, annotation
        reason, clipped = clip_to_frame(box, width_px, height_px)
        if reason is not None:
            return reason, annotation
        if clipped[2] <= 1 and clipped[3] <= 1 and (width_px, height_px) != _RELATIVE_FRAME and _is_share(box):
            return SkipReason.RELATIVE_BOX, annotation
        if clipped == box:
            return None, annotation
        self._num_clipped_boxes += _is_more_than_rounding(box, clipped, width_px, height_px)
        return None, replace(annotation, box_xyxy_px=clipped)

    def skip(self, reason: SkipReason, place: str) -> None:
        """Counts a skipped entry; `place` names its file and entry."""
        self._skipped[reason] += 1
        examples = self._examples.setdefault(str(reason), [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(place)

    def skip_all(self, skipped: Iterable[tuple[SkipReason, str]]) -> None:
        """Counts the entries that a parser skipped."""
        for reason, place in skipped:
            self.skip(reason, place)

    def _skip_object(self, reason: SkipReason, image_uri: str, image: ImageAnnotations, index: int) -> None:
        number = image.object_numbers[index] if image.object_numbers else index + 1
        annotation = image.objects[index]
        place = f"{image.where or image_uri}, {self.object_noun} {number}"
        if annotation.box_xyxy_px is None:
            self.skip(reason, f"{place}: {annotation.label!r} again")
            return
        corners = " ".join(f"{value:g}" for value in annotation.box_xyxy_px)
        frame = f" in a frame of {image.width_px} x {image.height_px}" if image.width_px and image.height_px else ""
        self.skip(reason, f"{place}, box of {annotation.label!r}: {corners}{frame}")

    def build(self) -> Dataset:
        """The data set, named after the last part of its URI.

        Raises:
            UsageError: no image is left, or most boxes are shares of the sides where pixels are expected.
        """
        if not self._records:
            found = ", ".join(f"{count} x {reason}" for reason, count in self._skipped.items()) or "no annotations"
            first = next((f" The first: {places[0]}." for places in self._examples.values()), "")
            raise UsageError(
                f"Split {self.split!r} of {self.data_uri} has no usable image. Found: {found}.{first} "
                "Expected annotations and their images: check that both were copied."
            )
        records = tuple(self._records.values())
        self._check_units(records)
        return Dataset(
            name=self.data_uri.rstrip("/!").rpartition("/")[2],
            split=self.split,
            records=records,
            classes=tuple(sorted({annotation.label for record in records for annotation in record.objects})),
            skipped={str(reason): count for reason, count in sorted(self._skipped.items())},
            num_clipped_boxes=self._num_clipped_boxes,
            skip_examples={reason: tuple(places) for reason, places in self._examples.items()},
        )

    def _check_units(self, records: Sequence[Record]) -> None:
        num_relative = self._skipped[SkipReason.RELATIVE_BOX]
        if not num_relative:
            return
        num_in_pixels = sum(one.box_xyxy_px is not None for record in records for one in record.objects)
        if num_relative >= num_in_pixels:
            raise UsageError(
                f"{self._examples[SkipReason.RELATIVE_BOX][0]}: found corners between 0 and 1 in {num_relative} of "
                f"{num_relative + num_in_pixels} boxes of split {self.split!r}: shares of the sides. Expected pixels: "
                "multiply them by width and height, or use a format of relative boxes (yolo, regions)."
            )


def _is_share(box_xyxy_px: Box) -> bool:
    """Whether a corner is no whole number: (0, 0, 1, 1) may be the first pixel."""
    return any(value != int(value) for value in box_xyxy_px)


def _is_more_than_rounding(before: Box, after: Box, width_px: int | None, height_px: int | None) -> bool:
    slack = (_ROUNDING * (width_px or 0), _ROUNDING * (height_px or 0)) * 2
    return any(abs(one - other) > most for one, other, most in zip(before, after, slack, strict=True))


def clip_to_frame(box_xyxy_px: Box, width_px: int | None, height_px: int | None) -> tuple[SkipReason | None, Box]:
    """The part of a finite box inside its frame, or the reason why there is none.

    A frame of unknown size still begins at 0, 0. (Plain numbers: one array per box would cost ten times as much.)

    Returns:
        (None, the clipped box), or (the reason, the box as it was).
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
