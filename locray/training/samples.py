"""From records to batches of pixels and targets: a pure function of seed, epoch, step and worker.

Called by the training loop's data tasks. Nothing here remembers anything, so a task that is run again after a
failure, on whatever machine, makes the same batch, and a resumed run sees the images that it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from locray.boxes import FloatArray, Letterbox
from locray.datasets.records import Annotation, Record
from locray.errors import ErrorCode
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.exif import boxes_in_upright_frame
from locray.images.fetch import Deferred
from locray.images.letterbox import decoded_side_px, letterbox_image
from locray.models.interface import NO_OBJECT
from locray.schema import STATUS_DEFERRED
from locray.training.augment import Augmentation, Augmenter, Mix, Objects, Scene
from locray.training.gathering import Outcome, gather

IMAGES, BOXES, LABEL_IDS, HAS_BOX = "images", "boxes", "label_ids", "has_box"
OUTCOMES, BOXES_OUTSIDE = "outcomes", "boxes_outside"
"""The arrays of a batch of n images: (n, S, S, 3) uint8, (n, M, 4) float32, (n, M) int64, (n, M) bool; (n,) int64 index
of `OUTCOME_NAMES`, and (n,) int64 number of boxes that lie wholly beside their image. M is that of `Packed`, or more
where images were put together from several. The label id of a crowd is that of its class and the number of classes."""

OUTCOME_NAMES = ("ok", *(code.value for code in ErrorCode), STATUS_DEFERRED)

_SIDES_OF_ZOOMED = 2

Batch = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Packed:
    """The records of a split as arrays, largest object of an image first: quick to send to a task.

    The objects of all images follow each other, as most images have few and some have a hundred.
    """

    image_uris: tuple[str, ...]
    starts: NDArray[np.int64]
    """(N + 1,); the objects of image n are those from `starts[n]` to before `starts[n + 1]`."""
    boxes_xyxy_px: FloatArray
    """(T, 4), pixels of each image's own frame."""
    label_ids: NDArray[np.int64]
    """(T,)"""
    has_box: NDArray[np.bool_]
    """(T,); false for an object whose class alone is known."""
    frames_px: NDArray[np.int64]
    """(N, 2) width and height that the boxes were written in; 0 where the annotations don't say."""
    places: int
    """Room for objects in the batches: as many as the image with the most has, or more."""

    def __len__(self) -> int:
        return len(self.image_uris)

    def may_mix(self, row: int) -> bool:
        """Whether an image can be mixed with others: where an object lies that is not boxed can't be told."""
        return bool(self.has_box[self._objects_of(row)].all())

    def unseen_objects(self, row: int) -> Objects:
        """The objects of a record whose image can't be had, as they are annotated."""
        used = self._objects_of(row)
        return Objects(self.boxes_xyxy_px[used], self.label_ids[used], self.has_box[used])

    def scene(self, row: int, decoded: DecodedImage) -> Scene:
        """A decoded image with the objects of its record that lie in it, in its pixels: maybe fewer than the file's."""
        used = self._objects_of(row)
        boxes, has_box = self.boxes_xyxy_px[used], self.has_box[used]
        height, width = decoded.image_hwc_u8.shape[:2]
        if has_box.any():
            # Boxes follow the pixels that are there: the frame of the annotations may be a scaled copy's, or lie on
            # its side.
            frame_width, frame_height = self.frames_px[row].tolist()
            frame = (frame_width or decoded.width_px, frame_height or decoded.height_px)
            boxes = boxes_in_upright_frame(boxes, frame, (width, height), decoded.orientation)
        objects = Objects(boxes, self.label_ids[used], has_box).cut_to((0, 0, width, height), 0)
        return Scene(decoded.image_hwc_u8, objects, len(boxes) - len(objects))

    @classmethod
    def of(
        cls, records: tuple[Record, ...], classes: tuple[str, ...], places: int = 1, *, crowds: bool = False
    ) -> "Packed":
        """Packs records whose labels are all among `classes`, with room for at least `places` objects each.

        Crowds teach nothing; what is validated on needs them, for what is found in one is no false alarm.
        """
        ids = {label: label_id for label_id, label in enumerate(classes)}
        objects = [_largest_first(record, crowds=crowds) for record in records]
        counts = [len(of_one) for of_one in objects]
        boxes = [found.box_xyxy_px for of_one in objects for found in of_one]
        frames = [(record.width_px or 0, record.height_px or 0) for record in records]
        return cls(
            image_uris=tuple(record.image_uri for record in records),
            starts=np.cumsum([0, *counts], dtype=np.int64),
            boxes_xyxy_px=np.array([box or (0, 0, 0, 0) for box in boxes], dtype=np.float64).reshape(-1, 4),
            label_ids=np.array(
                [ids[found.label] + found.is_crowd * len(classes) for of_one in objects for found in of_one],
                dtype=np.int64,
            ),
            has_box=np.array([box is not None for box in boxes], dtype=bool),
            frames_px=np.array(frames, dtype=np.int64).reshape(-1, 2),
            places=max([places, *counts]),
        )

    def _objects_of(self, row: int) -> slice:
        return slice(int(self.starts[row]), int(self.starts[row + 1]))


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
        everything = _shuffled(self.num_images, self.shuffle_seed, epoch)
        batches = self.num_steps * self.num_workers
        index = step * self.num_workers + worker
        start, end = index * self.num_images // batches, (index + 1) * self.num_images // batches
        return everything[start:end]


@lru_cache(maxsize=2)
def _shuffled(num_images: int, seed: int | None, epoch: int) -> NDArray[np.int64]:
    order = np.arange(num_images)
    if seed is not None:
        order = np.random.default_rng([seed, epoch]).permutation(num_images)
    order.flags.writeable = False
    return order


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
        return self.batch_of(self.order.rows(epoch, step, worker).tolist(), epoch)

    def batch_of(self, rows: Sequence[int], epoch: int) -> Batch:
        """The batch of these records. What becomes of each depends on `epoch`, and not on the others.

        An image that can't be used keeps its objects where nothing is augmented: a validation counts them as missed.
        """
        images = np.zeros((len(rows), self.input_size_px, self.input_size_px, 3), dtype=np.uint8)
        outcomes, outside = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        objects = [Objects.none()] * len(rows)
        parts = [self._parts(row, epoch) for row in rows]
        needs = [(row, *mix.rows) for row, (_, mix) in zip(rows, parts, strict=True)]
        for place, fetched in gather(needs, self.packed.image_uris, self.limits.max_bytes):
            random, mix = parts[place]
            smallest_px = self._smallest_px(mix)
            found = [self._scene(*one, smallest_px) for one in zip(needs[place], fetched, strict=True)]
            if isinstance(found[0], str):
                outcomes[place] = OUTCOME_NAMES.index(found[0])
                if self.augmentation is None:
                    objects[place] = self.packed.unseen_objects(rows[place])
                continue
            outside[place] = found[0].num_outside
            if random is None:
                objects[place] = self._letterboxed(found[0], images[place])
            else:
                objects[place] = self._augmented(found[0], found[1:], mix, images[place], random)
        objects_of_all = _padded(objects, self.packed.places)
        return {IMAGES: images, **objects_of_all, OUTCOMES: outcomes, BOXES_OUTSIDE: outside}

    def _parts(self, row: int, epoch: int) -> tuple[np.random.Generator | None, Mix]:
        """What an image is made with: its own generator, and the other records that go into it."""
        if self.augmentation is None:
            return None, Mix()
        random = np.random.default_rng([self.seed, epoch, row])
        return random, self._augmenter.mix(random, row, len(self.packed), self.packed.may_mix)

    def _smallest_px(self, mix: Mix) -> int:
        """What the decoder must keep of the longer side. A zoomed crop is scaled up to the input, so it needs more."""
        if self.augmentation is None:
            return decoded_side_px(self.input_size_px)
        return self.input_size_px * (1 if mix.tiles else _SIDES_OF_ZOOMED)

    def _scene(self, row: int, fetched: Outcome, smallest_px: int) -> Scene | str:
        """A decoded image with its objects, or the name of the outcome that it is."""
        if isinstance(fetched, Deferred):
            return STATUS_DEFERRED
        if isinstance(fetched, ImageFailure):
            return fetched.code.value
        decoded = decode_image(fetched.data, self.limits, min_longer_side_px=smallest_px)
        if isinstance(decoded, ImageFailure):
            return decoded.code.value
        return self.packed.scene(row, decoded)

    def _letterboxed(self, scene: Scene, out: NDArray[np.uint8]) -> Objects:
        """The network's input as it is when the network is used."""
        height, width = scene.image_hwc_u8.shape[:2]
        letterbox = Letterbox.fit(width, height, self.input_size_px)
        letterbox_image(scene.image_hwc_u8, letterbox, out=out)
        return scene.objects.with_boxes(letterbox.to_input(scene.objects.boxes_xyxy_px))

    def _augmented(
        self,
        scene: Scene,
        others: Sequence[Scene | str],
        mix: Mix,
        out: NDArray[np.uint8],
        random: np.random.Generator,
    ) -> Objects:
        """An input made anew in every epoch. A mosaic takes all of its images or none."""
        tiles = [other for other in others[: len(mix.tiles)] if isinstance(other, Scene)]
        donors = [other for other in others[len(mix.tiles) :] if isinstance(other, Scene)]
        whole = len(tiles) == len(mix.tiles)
        return self._augmenter(scene, tiles if whole else (), donors[0] if donors else None, out, random)

    @property
    def _augmenter(self) -> Augmenter:
        assert self.augmentation is not None
        return Augmenter(self.augmentation, self.input_size_px)


def _padded(objects: Sequence[Objects], places: int) -> Batch:
    """The objects of all images as arrays, with room for at least `places` an image."""
    places = max(places, max(map(len, objects), default=0))
    boxes = np.zeros((len(objects), places, 4), dtype=np.float32)
    label_ids = np.full((len(objects), places), NO_OBJECT, dtype=np.int64)
    has_box = np.zeros((len(objects), places), dtype=bool)
    for row, of_one in enumerate(objects):
        count = len(of_one)
        boxes[row, :count] = np.where(of_one.has_box[:, None], of_one.boxes_xyxy_px, 0)
        label_ids[row, :count] = of_one.label_ids
        has_box[row, :count] = of_one.has_box
    return {BOXES: boxes, LABEL_IDS: label_ids, HAS_BOX: has_box}


def _largest_first(record: Record, *, crowds: bool) -> list[Annotation]:
    return sorted((found for found in record.objects if crowds or not found.is_crowd), key=lambda found: -_area(found))


def _area(annotation: Annotation) -> float:
    if annotation.box_xyxy_px is None:
        return 0.0
    xmin, ymin, xmax, ymax = annotation.box_xyxy_px
    return (xmax - xmin) * (ymax - ymin)
