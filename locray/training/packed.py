"""The records of a split as arrays, and the order in which they are learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray
from locray.datasets.records import Annotation, Record
from locray.images.decode import DecodedImage
from locray.images.exif import boxes_in_upright_frame, swaps_sides
from locray.training.augment import Objects, Scene


@dataclass(frozen=True, slots=True)
class PackedRecords:
    """N records with T objects in all, as arrays: quick to send to a worker.

    The objects of all images follow each other, the largest of an image first: most images have few objects, and some
    have a hundred.
    """

    image_uris: tuple[str, ...]
    starts: NDArray[np.int64]
    """(N + 1,); the objects of image n are those from `starts[n]` to before `starts[n + 1]`."""
    boxes_xyxy_px: FloatArray
    """(T, 4), in pixels of each image's own frame."""
    label_ids: NDArray[np.int64]
    """(T,); for a crowd, the number of classes is added."""
    has_box: NDArray[np.bool_]
    """(T,); false for an object of which only the class is known."""
    frames_px: NDArray[np.int64]
    """(N, 2) width and height of the frame of the boxes; 0 where the annotations don't name it."""
    is_stored: NDArray[np.bool_]
    """(N,); whether boxes are those of the stored image where the frame does not tell."""
    max_objects: int
    """Objects that a batch has room for per image: at least as many as any image has."""

    def __len__(self) -> int:
        return len(self.image_uris)

    @classmethod
    def of(
        cls, records: Sequence[Record], classes: Sequence[str], max_objects: int = 1, *, crowds: bool = False
    ) -> Self:
        """Packs records.

        Args:
            records: All their labels are among `classes`.
            classes: Names by label id.
            max_objects: Minimum room for objects per image.
            crowds: Whether crowds are included. Nothing is learned from them, but a validation needs them: what is
                found in a crowd is no false positive.
        """
        label_ids = {label: label_id for label_id, label in enumerate(classes)}
        objects_of = [_largest_first(record, crowds=crowds) for record in records]
        objects = [found for of_one in objects_of for found in of_one]
        counts = [len(of_one) for of_one in objects_of]
        frames = [(record.width_px or 0, record.height_px or 0) for record in records]
        return cls(
            image_uris=tuple(record.image_uri for record in records),
            starts=np.cumsum([0, *counts], dtype=np.int64),
            boxes_xyxy_px=np.array([found.box_xyxy_px or (0, 0, 0, 0) for found in objects], dtype=np.float64).reshape(
                -1, 4
            ),
            label_ids=np.array(
                [label_ids[found.label] + found.is_crowd * len(classes) for found in objects], dtype=np.int64
            ),
            has_box=np.array([found.box_xyxy_px is not None for found in objects], dtype=bool),
            frames_px=np.array(frames, dtype=np.int64).reshape(-1, 2),
            is_stored=np.array([record.is_stored for record in records], dtype=bool),
            max_objects=max([max_objects, *counts]),
        )

    def may_mix(self, row: int) -> bool:
        """Whether an image can be mixed with others: all its objects have boxes, so it is known where they are."""
        return bool(self.has_box[self._objects_of(row)].all())

    def annotated_objects(self, row: int) -> Objects:
        """The objects of a record as annotated, for an image that can't be used."""
        used = self._objects_of(row)
        return Objects(self.boxes_xyxy_px[used], self.label_ids[used], self.has_box[used])

    def scene(self, row: int, decoded: DecodedImage) -> Scene:
        """A decoded image with the objects of its record that lie in it, in its pixels."""
        objects = self.annotated_objects(row)
        boxes = objects.boxes_xyxy_px
        height, width = decoded.image_hwc_u8.shape[:2]
        if objects.has_box.any():
            # The frame of the annotations may be that of a scaled copy, or of the image before EXIF rotated it. The
            # decoder may have scaled the image, too.
            frame_width, frame_height = self.frames_px[row].tolist()
            is_stored = bool(self.is_stored[row])
            size = (decoded.width_px, decoded.height_px)
            if is_stored and swaps_sides(decoded.orientation):
                size = size[::-1]
            frame = (frame_width or size[0], frame_height or size[1])
            boxes = boxes_in_upright_frame(boxes, frame, (width, height), decoded.orientation, is_stored=is_stored)
        inside = objects.with_boxes(boxes).clipped_to((0, 0, width, height), 0)
        return Scene(decoded.image_hwc_u8, inside, len(objects) - len(inside))

    def _objects_of(self, row: int) -> slice:
        return slice(int(self.starts[row]), int(self.starts[row + 1]))


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """Which images make up which batch. Each image comes once per epoch; all workers have the same number of steps."""

    num_images: int
    batch_size: int
    num_workers: int
    shuffle_seed: int | None
    """None: in the order of the records."""

    @property
    def num_steps(self) -> int:
        """Steps per epoch; each takes one batch from every worker."""
        return -(-self.num_images // self.batch_size)

    def rows(self, epoch: int, step: int, worker: int) -> NDArray[np.int64]:
        """Records of one batch, (n,). The batches of an epoch differ in size by at most one image."""
        rows = _shuffled(self.num_images, self.shuffle_seed, epoch)
        num_batches = self.num_steps * self.num_workers
        index = step * self.num_workers + worker
        start, end = index * self.num_images // num_batches, (index + 1) * self.num_images // num_batches
        return rows[start:end]


@lru_cache(maxsize=2)
def _shuffled(num_images: int, seed: int | None, epoch: int) -> NDArray[np.int64]:
    rows = np.arange(num_images)
    if seed is not None:
        rows = np.random.default_rng([seed, epoch]).permutation(num_images)
    rows.flags.writeable = False
    return rows


def _largest_first(record: Record, *, crowds: bool) -> list[Annotation]:
    return sorted((found for found in record.objects if crowds or not found.is_crowd), key=lambda found: -_area(found))


def _area(annotation: Annotation) -> float:
    if annotation.box_xyxy_px is None:
        return 0.0
    xmin, ymin, xmax, ymax = annotation.box_xyxy_px
    return (xmax - xmin) * (ymax - ymin)
