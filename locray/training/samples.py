"""From records to batches of pixels and targets: a pure function of seed, epoch, step and worker.

Called by the training loop's data tasks. Nothing here remembers anything, so a task that is run again after a
failure, on whatever machine, makes the same batch, and a resumed run sees the images that it would have seen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray, Letterbox
from locray.datasets.records import Annotation, Record
from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.images.letterbox import letterbox_image
from locray.models.contract import NO_OBJECT
from locray.schema import STATUS_DEFERRED
from locray.training.augment import Augmentation, SquareTransforms, random_crop

IMAGES, BOXES, LABEL_IDS, HAS_BOX, OUTCOMES = "images", "boxes", "label_ids", "has_box", "outcomes"
"""The arrays of a batch: (n, S, S, 3) uint8, (n, M, 4) float32, (n, M) int64, (n,) int64 index of `OUTCOME_NAMES`."""

OUTCOME_NAMES = ("ok", *(code.value for code in ErrorCode), STATUS_DEFERRED)

# A zoomed crop is scaled up to the input, so the decoder keeps more pixels than the input has.
_DECODED_SIDES = 2

Batch = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Packed:
    """The records of a split as arrays, largest object first: quick to send to a task."""

    image_uris: tuple[str, ...]
    boxes_xyxy_px: FloatArray
    """(N, M, 4), pixels of each image's own frame."""
    label_ids: NDArray[np.int64]
    """(N, M); `NO_OBJECT` where an image has fewer objects."""
    has_box: NDArray[np.bool_]
    """(N, M); false in unused places, and for an object whose class alone is known."""
    frames_px: NDArray[np.int64]
    """(N, 2) width and height that the boxes were written in; 0 where the annotations don't say."""

    def __len__(self) -> int:
        return len(self.image_uris)

    @classmethod
    def of(cls, records: tuple[Record, ...], classes: tuple[str, ...], places: int = 1) -> "Packed":
        """Packs records whose labels are all among `classes`, with room for at least `places` objects each."""
        ids = {label: label_id for label_id, label in enumerate(classes)}
        objects = [_learnable(record) for record in records]
        most = max(places, max(map(len, objects), default=1))
        boxes = np.zeros((len(records), most, 4))
        label_ids = np.full((len(records), most), NO_OBJECT, dtype=np.int64)
        has_box = np.zeros((len(records), most), dtype=bool)
        for row, of_one in enumerate(objects):
            for place, found in enumerate(of_one):
                label_ids[row, place] = ids[found.label]
                if found.box_xyxy_px is not None:
                    boxes[row, place], has_box[row, place] = found.box_xyxy_px, True
        frames = [(record.width_px or 0, record.height_px or 0) for record in records]
        uris = tuple(record.image_uri for record in records)
        return cls(uris, boxes, label_ids, has_box, np.array(frames, dtype=np.int64).reshape(-1, 2))


@dataclass(frozen=True, slots=True)
class Order:
    """Which images make up which batch. Every image comes once an epoch, every worker has the same number of steps."""

    num_images: int
    batch_size: int
    num_workers: int
    shuffle_seed: int | None
    """None: in the order of the records."""

    @property
    def num_steps(self) -> int:
        """Steps of an epoch; each takes one batch from every worker."""
        return -(-self.num_images // self.batch_size)

    def rows(self, epoch: int, step: int, worker: int) -> NDArray[np.int64]:
        """The records of one batch. Batches of an epoch differ in size by at most one image."""
        everything = np.arange(self.num_images)
        if self.shuffle_seed is not None:
            everything = np.random.default_rng([self.shuffle_seed, epoch]).permutation(self.num_images)
        batches = self.num_steps * self.num_workers
        index = step * self.num_workers + worker
        start, end = index * self.num_images // batches, (index + 1) * self.num_images // batches
        return everything[start:end]


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """Fetches, decodes, augments and letterboxes the images of a batch."""

    packed: Packed
    order: Order
    input_size_px: int
    limits: DecodeLimits
    augmentation: Augmentation | None
    seed: int

    def __call__(self, epoch: int, step: int, worker: int) -> Batch:
        """One batch; an image that can't be used is a row of zeros with its reason under `OUTCOMES`."""
        rows = self.order.rows(epoch, step, worker)
        size, places = self.input_size_px, self.packed.label_ids.shape[1]
        images = np.zeros((len(rows), size, size, 3), dtype=np.uint8)
        boxes = np.zeros((len(rows), places, 4), dtype=np.float32)
        label_ids = np.full((len(rows), places), NO_OBJECT, dtype=np.int64)
        outcomes = np.zeros(len(rows), dtype=np.int64)
        transforms = None if self.augmentation is None else SquareTransforms(self.augmentation, size)
        requests = [FetchRequest(self.packed.image_uris[row], None, None) for row in rows]
        for place, fetched in fetch_images(requests, max_bytes=self.limits.max_bytes):
            decoded = self._decode(fetched)
            if isinstance(decoded, DecodedImage):
                random = np.random.default_rng([self.seed, epoch, int(rows[place])])
                filled = self._fill(images[place], decoded, int(rows[place]), transforms, random)
                boxes[place, : len(filled[1])], label_ids[place, : len(filled[1])] = filled
            else:
                outcomes[place] = OUTCOME_NAMES.index(decoded)
        return {IMAGES: images, BOXES: boxes, LABEL_IDS: label_ids, HAS_BOX: label_ids >= 0, OUTCOMES: outcomes}

    def _decode(self, fetched: Fetched | ImageFailure | Deferred) -> DecodedImage | str:
        if isinstance(fetched, Deferred):
            return STATUS_DEFERRED
        if isinstance(fetched, Fetched):
            smallest = None if self.augmentation is None else self.input_size_px * _DECODED_SIDES
            answer = decode_image(fetched.data, self.limits, min_side_px=smallest)
            return answer if isinstance(answer, DecodedImage) else answer.code.value
        return fetched.code.value

    def _fill(
        self,
        out: NDArray[np.uint8],
        decoded: DecodedImage,
        row: int,
        transforms: SquareTransforms | None,
        random: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Writes the network's input to `out`; the objects seen in it: boxes (m, 4) in its pixels, label ids (m,)."""
        used = self.packed.label_ids[row] != NO_OBJECT
        label_ids = self.packed.label_ids[row][used]
        image = decoded.image_hwc_u8
        # Boxes follow the pixels that are there: the frame of the annotations may be a scaled copy's.
        width, height = self.packed.frames_px[row]
        scale = np.array([image.shape[1] / (width or decoded.width_px), image.shape[0] / (height or decoded.height_px)])
        boxes: FloatArray = self.packed.boxes_xyxy_px[row][used] * np.tile(scale, 2)
        if transforms is not None and self.augmentation is not None and self.augmentation.crop:
            image, boxes, kept = random_crop(image, boxes, random)
            boxes, label_ids = boxes[kept], label_ids[kept]
        letterbox = Letterbox.fit(image.shape[1], image.shape[0], self.input_size_px)
        letterbox_image(image, letterbox, out=out)
        boxes = letterbox.to_input(boxes)
        if transforms is not None:
            (pixels, boxes), kept = transforms((out, boxes), int(random.integers(2**62)))
            out[...] = pixels
            boxes, label_ids = boxes[kept], label_ids[kept]
        return boxes.astype(np.float32), label_ids


def _learnable(record: Record) -> list[Annotation]:
    """The objects of an image but crowds, largest first."""
    return sorted((found for found in record.objects if not found.is_crowd), key=lambda found: -_area(found))


def _area(annotation: Annotation) -> float:
    if annotation.box_xyxy_px is None:
        return 0.0
    xmin, ymin, xmax, ymax = annotation.box_xyxy_px
    return (xmax - xmin) * (ymax - ymin)
