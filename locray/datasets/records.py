"""What a data set is made of, and the checks that every format shares. Filled by the readers; read by training.

Two steps lie between an annotation file and a `Dataset`. A format's pure parser yields `Described`: what the file
says, unchecked. `DatasetBuilder` then makes records of those: it cuts boxes to their frame and leaves out what
can't be learned from, counting each reason.
"""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from locray import boxes
from locray.errors import UsageError

Box = tuple[float, float, float, float]


class LeftOut(StrEnum):
    """Why an annotation, or an image with all of its annotations, is not part of the data set."""

    EMPTY_BOX = "empty_box"
    """The two corners lie on one line: the box has no area."""
    INVERTED_BOX = "inverted_box"
    """xmin > xmax or ymin > ymax: which corner is wrong can't be known."""
    OUTSIDE_BOX = "outside_box"
    """The box lies wholly beside its frame."""
    NO_IMAGE = "no_image"
    """Annotations for an image that is not there. Counts images."""
    NO_ANNOTATION = "no_annotation"
    """A split names an image that has no annotation file. Counts images."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object: its class and its box in absolute pixels, continuous coordinates (see `locray.boxes`).

    `box_xyxy_px` is None where the class alone is known. `is_crowd` marks a box around many objects that were not
    annotated one by one: training leaves it out, evaluation counts no detection inside it as wrong.
    """

    label: str
    box_xyxy_px: Box | None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its objects; no objects means that the image shows none.

    `width_px` and `height_px` are the frame that the boxes were written in, None where the annotations don't say.
    """

    image_uri: str
    objects: tuple[Annotation, ...]
    width_px: int | None
    height_px: int | None


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in the order of the annotations.

    `classes` are the labels that occur, sorted. `left_out` counts by reason (`LeftOut`) what the files hold and
    the data set doesn't; `num_clipped_boxes` boxes reached over their frame and were cut to it.
    """

    name: str
    split: str
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    left_out: Mapping[str, int]
    num_clipped_boxes: int = 0


@dataclass(frozen=True, slots=True)
class Described:
    """What an annotation file says of one image, before any check.

    `filename` is as it stands in the file, None where a format doesn't need it.
    """

    filename: str | None
    objects: tuple[Annotation, ...]
    width_px: int | None = None
    height_px: int | None = None


@dataclass
class DatasetBuilder:
    """Gathers the records of one split and counts what is left out."""

    data_uri: str
    split: str
    _records: list[Record] = field(default_factory=list)
    _left_out: Counter[str] = field(default_factory=Counter)
    _num_clipped_boxes: int = 0

    def add(self, image_uri: str, described: Described) -> None:
        """Takes up an image that exists; of its objects those whose box has an area inside the frame."""
        width_px, height_px = described.width_px, described.height_px
        objects = []
        for annotation in described.objects:
            if annotation.box_xyxy_px is None:
                objects.append(annotation)
                continue
            reason, box = cut_to_frame(annotation.box_xyxy_px, width_px, height_px)
            if reason is not None:
                self._left_out[reason] += 1
                continue
            self._num_clipped_boxes += int(box != annotation.box_xyxy_px)
            objects.append(replace(annotation, box_xyxy_px=box))
        self._records.append(Record(image_uri, tuple(objects), width_px, height_px))

    def leave_out(self, reason: LeftOut, count: int = 1) -> None:
        """Counts images that can't be taken up at all."""
        self._left_out[reason] += count

    def build(self) -> Dataset:
        """The data set, named by the last part of its URI.

        Raises:
            UsageError: no image is left; nothing can be trained or measured on that.
        """
        if not self._records:
            found = ", ".join(f"{count} x {reason}" for reason, count in self._left_out.items()) or "no annotations"
            raise UsageError(
                f"Split {self.split!r} of {self.data_uri} has no usable image. Found: {found}. "
                "Expected images that their annotations name: look whether both were copied."
            )
        classes = sorted({annotation.label for record in self._records for annotation in record.objects})
        left_out = {str(reason): count for reason, count in sorted(self._left_out.items()) if count}
        name = self.data_uri.rstrip("/").rpartition("/")[2]
        return Dataset(name, self.split, tuple(self._records), tuple(classes), left_out, self._num_clipped_boxes)


def cut_to_frame(box_xyxy_px: Box, width_px: int | None, height_px: int | None) -> tuple[LeftOut | None, Box]:
    """The part of a finite box that lies in its frame, or the reason why nothing can be made of it.

    A frame of unknown size still begins at 0, 0.

    Returns:
        (None, the box inside the frame), or (the reason, the box as it was).
    """
    xmin, ymin, xmax, ymax = box_xyxy_px
    if xmin > xmax or ymin > ymax:
        return LeftOut.INVERTED_BOX, box_xyxy_px
    if xmin == xmax or ymin == ymax:
        return LeftOut.EMPTY_BOX, box_xyxy_px
    frame_width, frame_height = np.array(width_px or math.inf), np.array(height_px or math.inf)
    inside = boxes.clip(np.array(box_xyxy_px, dtype=np.float64), frame_width, frame_height)
    if not boxes.is_proper(inside):
        return LeftOut.OUTSIDE_BOX, box_xyxy_px
    return None, (float(inside[0]), float(inside[1]), float(inside[2]), float(inside[3]))


def number(text: str | None, what: str) -> float:
    """A finite number from an annotation file.

    Raises:
        UsageError: absent, not a number, or not finite; `what` says file, record and field.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        found = "nothing" if text is None or not text.strip() else repr(text.strip()[:60])
        raise UsageError(f"{what}: found {found}, expected a number.")
    return value


def side_px(text: str | None, what: str) -> int | None:
    """A frame's width or height, None where the file doesn't say; some tools write 0 for "not known".

    Raises:
        UsageError: there is something, and it is not a number.
    """
    if text is None or not text.strip():
        return None
    value = round(number(text, what))
    return value if value > 0 else None


def decoded(data: bytes, where: str) -> str:
    """The text of a file of ours to read, which has to be UTF-8 (with or without a byte order mark).

    Raises:
        UsageError: it isn't; `where` names the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}, byte {error.start}: not UTF-8 text. Save the file as UTF-8.") from None


def missing_split(data_uri: str, split: str, found: Iterable[str], expected: str) -> UsageError:
    """The error for a split that the data doesn't have; names those found, and the nearest."""
    names = sorted(found)
    if not names:
        return UsageError(f"Found no splits in {data_uri}. Expected: {expected}.")
    near = difflib.get_close_matches(split, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"Found no split {split!r} in {data_uri}. It has: {', '.join(names)}.{hint}")
