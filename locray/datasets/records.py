"""What a data set is made of. Filled by the readers; read by training and evaluation.

Two steps lie between an annotation file and a `Dataset`. A format's pure parser yields `Described`: what the file
says, unchecked. `building.DatasetBuilder` then makes records of those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Box = tuple[float, float, float, float]


class SkipReason(StrEnum):
    """Why an annotation, or an image with all of its annotations, is not part of the data set."""

    EMPTY_BOX = "empty_box"
    """The two corners lie on one line: the box has no area."""
    INVERTED_BOX = "inverted_box"
    """xmin > xmax or ymin > ymax: which corner is wrong can't be known."""
    OUTSIDE_BOX = "outside_box"
    """The box lies wholly beside its frame."""
    UNKNOWN_CLASS = "unknown_class"
    """The annotation's class number is not among the classes that the data set declares."""
    UNKNOWN_IMAGE = "unknown_image"
    """The annotation's image number is not among the images that the same file declares."""
    DUPLICATE_ID = "duplicate_id"
    """An image or annotation whose number or name was there before; the first one counts."""
    NO_IMAGE = "no_image"
    """Annotations for an image that is not there. Counts images."""
    NO_ANNOTATION = "no_annotation"
    """An image that a split names, or that lies in it, without an annotation. Counts images."""
    FAILED_IMAGE = "failed_image"
    """The predictions table says that the image could not be labelled. Counts images."""
    LOW_SCORE = "low_score"
    """The predictions table has detections of the image, none with the least score. Counts images."""


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

    `width_px` and `height_px` are the frame that the boxes were written in: the image's own pixels, those of a scaled
    copy, those of the stored picture that EXIF turns, or 1 x 1 where boxes are shares of the sides. None where the
    annotations don't say. `locray.images.exif.boxes_in_upright_frame` leads from there to the image's pixels. Where a
    side is not known, a box may reach over the image or lie beside it, until somebody opens it. `where` names the
    image's entry in messages; empty where there is none.
    """

    image_uri: str
    objects: tuple[Annotation, ...]
    width_px: int | None
    height_px: int | None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in the order of the annotations.

    `classes` are the labels that occur, sorted. `skipped` counts by reason (`SkipReason`) what the files hold and
    the data set doesn't; `left_out_places` says where the first few of each reason stand, the first of all first.
    `num_clipped_boxes` boxes reached over their frame and were cut to it.
    """

    name: str
    split: str
    records: tuple[Record, ...]
    classes: tuple[str, ...]
    skipped: Mapping[str, int]
    num_clipped_boxes: int = 0
    left_out_places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Described:
    """What an annotation file says of one image, before any check.

    `filename` is as it stands in the file, None where a format doesn't need it. For messages alone: `where` names the
    image's entry, and `object_numbers` are the objects' lines or ids; empty where they are counted from 1.
    """

    filename: str | None
    objects: tuple[Annotation, ...]
    width_px: int | None = None
    height_px: int | None = None
    where: str = field(default="", compare=False)
    object_numbers: Sequence[int] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The images of an annotation file, and what it holds that belongs to none: reason and place of each."""

    images: list[Described]
    skipped: list[tuple[SkipReason, str]]
