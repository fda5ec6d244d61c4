"""Writable formats: the files of a data set in each format, and the limits of the format."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from locray.datasets.coco import write_coco
from locray.datasets.csv_boxes import write_csv
from locray.datasets.files import IMAGE_EXTENSIONS
from locray.datasets.parquet import write_parquet
from locray.datasets.records import Annotation, ImageAnnotations, Record
from locray.datasets.regions import write_regions
from locray.datasets.voc import write_voc
from locray.datasets.yolo import write_data_yaml, write_yolo
from locray.errors import UsageError

Splits = Mapping[str, Sequence[ImageAnnotations]]
"""The images of each split; `filename` is the path below the output, or a URI."""


class Content(StrEnum):
    """Features of an image that some formats can't hold."""

    BOX = "boxes"
    NO_BOX = "objects without a box"
    CROWD = "crowds"
    NO_OBJECT = "images without objects"
    SEVERAL_CLASSES = "images with objects of several classes"
    NO_FOLDER_NAME = "classes whose name can't be a folder's"


@dataclass(frozen=True, slots=True)
class WritableFormat:
    """A format that can be written.

    Attributes:
        files: The annotation files by their path below the output.
        image_folder: Where copied images go, with `{split}` and `{label}` filled in.
        references_images: Whether images are named where they are, instead of being copied.
        is_relative: Whether boxes are relative to the sides of the upright image.
        cannot_hold: Content that makes a conversion impossible; crowds alone are skipped instead.
    """

    files: Callable[[Splits], dict[str, bytes]]
    image_folder: str
    references_images: bool = False
    is_relative: bool = False
    cannot_hold: frozenset[Content] = frozenset()

    def needs_size(self, record: Record) -> bool:
        """Whether an image must be decoded: for a relative box, or a frame not in pixels or perhaps not upright."""
        if Content.BOX in self.cannot_hold:
            return False
        if self.is_relative or record.is_stored:
            return bool(record.objects)
        frame = (record.width_px, record.height_px)
        return None in frame or frame == (1, 1)


def contents_of(objects: Sequence[Annotation]) -> set[Content]:
    """Returns what a format must support for an image with these objects, except crowds."""
    labels = {annotation.label for annotation in objects}
    checks = {
        Content.BOX: any(annotation.box_xyxy_px is not None for annotation in objects),
        Content.NO_BOX: any(annotation.box_xyxy_px is None for annotation in objects),
        Content.NO_OBJECT: not objects,
        Content.SEVERAL_CLASSES: len(labels) > 1,
        Content.NO_FOLDER_NAME: any("/" in label or label.startswith(".") for label in labels),
    }
    return {content for content, is_there in checks.items() if is_there}


def unique_names(image_uris: Iterable[str]) -> dict[str, str]:
    """A file name for each image, with a usual extension and a stem that is unique even if case is ignored."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    names = {}
    for uri in dict.fromkeys(image_uris):
        stem, extension = posixpath.splitext(posixpath.basename(uri))
        if extension.lower() not in IMAGE_EXTENSIONS:
            stem, extension = f"{stem}{extension}", ".jpg"  # any suffix works: images are decoded by content
        stem = "".join(c if c.isprintable() and c != "\\" else "_" for c in stem).strip(" .") or "image"
        unique = stem
        while unique.lower() in taken:
            numbers[stem] += 1
            unique = f"{stem}-{numbers[stem] + 1}"
        taken.add(unique.lower())
        names[uri] = f"{unique}{extension}"
    return names


def _coco_files(splits: Splits) -> dict[str, bytes]:
    return {f"annotations/instances_{split}.json": write_coco(images) for split, images in splits.items()}


def _csv_files(splits: Splits) -> dict[str, bytes]:
    return {f"{split}.csv": write_csv(images).encode() for split, images in splits.items()}


def _parquet_files(splits: Splits) -> dict[str, bytes]:
    return {f"{split}.parquet": write_parquet(images) for split, images in splits.items()}


def _regions_files(splits: Splits) -> dict[str, bytes]:
    return {f"regions_{split}.json": write_regions(map(_by_file_name, images)) for split, images in splits.items()}


def _voc_files(splits: Splits) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for split, images in splits.items():
        for image in images:
            xml = write_voc(_by_file_name(image))
            if files.setdefault(f"Annotations/{_stem(image)}.xml", xml) != xml:
                raise UsageError(
                    f"{image.where or image.filename}: found different annotations of this image in several splits. "
                    "Expected the same, as voc has one file per image: convert to another format."
                )
        files[f"ImageSets/Main/{split}.txt"] = "".join(f"{_stem(image)}\n" for image in images).encode()
    return files


def _yolo_files(splits: Splits) -> dict[str, bytes]:
    classes = sorted({one.label for images in splits.values() for image in images for one in image.objects})
    files = {
        f"labels/{split}/{_stem(image)}.txt": write_yolo(image, classes).encode()
        for split, images in splits.items()
        for image in images
    }
    return files | {"data.yaml": write_data_yaml(classes, splits).encode()}


def _by_file_name(image: ImageAnnotations) -> ImageAnnotations:
    return replace(image, filename=posixpath.basename(image.filename or ""))


def _stem(image: ImageAnnotations) -> str:
    return posixpath.splitext(posixpath.basename(image.filename or ""))[0]


WRITABLE: Mapping[str, WritableFormat] = {
    "coco": WritableFormat(_coco_files, "images", references_images=True),
    "csv": WritableFormat(_csv_files, "images", references_images=True, cannot_hold=frozenset({Content.CROWD})),
    "folders": WritableFormat(
        lambda _: {},
        "{split}/{label}",
        cannot_hold=frozenset(
            {
                *(Content.BOX, Content.CROWD, Content.NO_OBJECT),
                *(Content.SEVERAL_CLASSES, Content.NO_FOLDER_NAME),
            }
        ),
    ),
    "parquet": WritableFormat(_parquet_files, "images", references_images=True),
    "regions": WritableFormat(
        _regions_files,
        "images",
        is_relative=True,
        cannot_hold=frozenset({Content.NO_BOX, Content.CROWD, Content.NO_OBJECT}),
    ),
    "voc": WritableFormat(_voc_files, "JPEGImages", cannot_hold=frozenset({Content.NO_BOX, Content.CROWD})),
    "yolo": WritableFormat(
        _yolo_files, "images/{split}", is_relative=True, cannot_hold=frozenset({Content.NO_BOX, Content.CROWD})
    ),
}
"""The writable formats by name, as for `--to`."""
