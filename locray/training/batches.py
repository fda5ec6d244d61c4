"""From records to batches of pixels and targets: a pure function of seed, epoch, step and worker.

There is no state, so a task that is run again after a failure, on any machine, makes the same batch, and a
resumed run sees the images that it would have seen.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from locray.boxes import Letterbox
from locray.config import AugmentationOptions
from locray.datasets.records import SkipReason
from locray.errors import ErrorCode
from locray.images.decode import DecodeLimits, ImageFailure, decode_image
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images
from locray.images.letterbox import decoded_side_px, letterbox_image
from locray.models.interface import NO_OBJECT
from locray.schema import STATUS_DEFERRED, STATUS_OK
from locray.training.augment import Augmenter, Mix, Objects, Scene
from locray.training.packed import BatchOrder, PackedRecords

IMAGES, BOXES, LABEL_IDS, HAS_BOX = "images", "boxes", "label_ids", "has_box"
OUTCOMES, NUM_OUTSIDE = "outcomes", "num_outside"
"""The arrays of a batch of n images: (n, S, S, 3) uint8, (n, M, 4) float32, (n, M) int64, (n, M) bool; (n,) int64 index
into `OUTCOME_NAMES`, and (n,) int64 number of boxes wholly outside their image. M is `PackedRecords.max_objects`, or
more where images are mixed. The label id of a crowd is that of its class plus the number of classes."""

OUTCOME_NAMES = (STATUS_OK, *(code.value for code in ErrorCode), STATUS_DEFERRED)

_COUNT_NAMES = (*OUTCOME_NAMES, str(SkipReason.OUTSIDE_BOX))
NUM_COUNTS = len(_COUNT_NAMES)
_PERMANENT = frozenset(map(str, ErrorCode))
"""Outcomes that remain when the store is available again."""

_SIDES_OF_CROPPED = 2

Batch = dict[str, NDArray[np.generic]]
FetchOutcome = Fetched | ImageFailure | Deferred


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """Fetches, decodes, augments and letterboxes the images of a batch.

    Attributes:
        packed: The records of the split.
        order: Which of them make up a batch.
        options: Augmentation, its seed, and the limits of decoding.
        input_size_px: Side of the network's input.
        augmented: Whether images are augmented. Otherwise they are letterboxed only, as in labelling.
    """

    packed: PackedRecords
    order: BatchOrder
    options: AugmentationOptions
    input_size_px: int
    augmented: bool

    def __call__(self, epoch: int, step: int, worker: int) -> Batch:
        """One batch; an image that can't be used is a row of zeros with its reason under `OUTCOMES`."""
        return self.batch_of(self.order.rows(epoch, step, worker).tolist(), epoch)

    def batch_of(self, rows: Sequence[int], epoch: int) -> Batch:
        """The batch of these records. An image depends on its record and `epoch`, not on the other rows.

        An image that can't be used keeps its objects where images are not augmented: a validation counts them as
        missed.
        """
        images = np.zeros((len(rows), self.input_size_px, self.input_size_px, 3), dtype=np.uint8)
        outcomes, num_outside = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        objects = [Objects.none()] * len(rows)
        mixes = [self._sample_mix(row, epoch) for row in rows]
        needs = [(row, *mix.rows) for row, (_, mix) in zip(rows, mixes, strict=True)]
        for place, fetched in fetch_files(needs, self.packed.image_uris, self.options.max_bytes):
            random, mix = mixes[place]
            min_side_px = self._min_side_px(mix)
            scenes = [self._scene(*one, min_side_px) for one in zip(needs[place], fetched, strict=True)]
            if isinstance(scenes[0], str):
                outcomes[place] = OUTCOME_NAMES.index(scenes[0])
                if not self.augmented:
                    objects[place] = self.packed.annotated_objects(rows[place])
                continue
            num_outside[place] = scenes[0].num_outside
            if random is None:
                objects[place] = self._letterbox(scenes[0], images[place])
            else:
                objects[place] = self._augment(scenes[0], scenes[1:], mix, images[place], random)
        return {
            IMAGES: images,
            **_pad_objects(objects, self.packed.max_objects),
            OUTCOMES: outcomes,
            NUM_OUTSIDE: num_outside,
        }

    def _sample_mix(self, row: int, epoch: int) -> tuple[np.random.Generator | None, Mix]:
        """The generator of an image, and the other records that it is mixed with."""
        if not self.augmented:
            return None, Mix()
        random = np.random.default_rng([self.options.seed, epoch, row])
        return random, self._augmenter.mix(random, row, len(self.packed), self.packed.may_mix)

    def _min_side_px(self, mix: Mix) -> int:
        """Minimum longer side of decoded images. A crop is scaled up to the input, so it needs more pixels."""
        if not self.augmented:
            return decoded_side_px(self.input_size_px)
        return self.input_size_px * (1 if mix.tiles else _SIDES_OF_CROPPED)

    def _scene(self, row: int, fetched: FetchOutcome, min_side_px: int) -> Scene | str:
        """A decoded image with its objects, or the name of its outcome."""
        if isinstance(fetched, Deferred):
            return STATUS_DEFERRED
        if isinstance(fetched, ImageFailure):
            return fetched.code.value
        decoded = decode_image(fetched.data, DecodeLimits.of(self.options), min_longer_side_px=min_side_px)
        if isinstance(decoded, ImageFailure):
            return decoded.code.value
        return self.packed.scene(row, decoded)

    def _letterbox(self, scene: Scene, out: NDArray[np.uint8]) -> Objects:
        height, width = scene.image_hwc_u8.shape[:2]
        letterbox = Letterbox.fit(width, height, self.input_size_px)
        letterbox_image(scene.image_hwc_u8, letterbox, out=out)
        return scene.objects.with_boxes(letterbox.to_input(scene.objects.boxes_xyxy_px))

    def _augment(
        self,
        scene: Scene,
        others: Sequence[Scene | str],
        mix: Mix,
        out: NDArray[np.uint8],
        random: np.random.Generator,
    ) -> Objects:
        # A mosaic takes all of its images or none.
        tiles = [other for other in others[: len(mix.tiles)] if isinstance(other, Scene)]
        donors = [other for other in others[len(mix.tiles) :] if isinstance(other, Scene)]
        all_usable = len(tiles) == len(mix.tiles)
        return self._augmenter(scene, tiles if all_usable else (), donors[0] if donors else None, out, random)

    @property
    def _augmenter(self) -> Augmenter:
        return Augmenter(self.options, self.input_size_px)


def fetch_files(
    needs: Sequence[tuple[int, ...]], image_uris: Sequence[str], max_bytes: int
) -> Iterator[tuple[int, list[FetchOutcome]]]:
    """Fetches the files of several images at once, and yields each image as soon as its last file is there.

    A file that several images need is fetched once, and kept until the last of them has been yielded.

    Args:
        needs: Per image the indices of its files in `image_uris`.
        image_uris: Where the files are.
        max_bytes: Larger files are not fetched.

    Yields:
        The image's index in `needs`, and the outcome of each of its files.
    """
    users: defaultdict[int, list[int]] = defaultdict(list)
    for image, files in enumerate(needs):
        for file in set(files):
            users[file].append(image)
    order = list(dict.fromkeys(file for files in needs for file in files))
    num_missing = [len(set(files)) for files in needs]
    uses_left = Counter({file: len(images) for file, images in users.items()})
    arrived: dict[int, FetchOutcome] = {}
    requests = [FetchRequest(image_uris[file], None, None) for file in order]
    for index, outcome in fetch_images(requests, max_bytes=max_bytes):
        arrived[order[index]] = outcome
        for image in users[order[index]]:
            num_missing[image] -= 1
            if num_missing[image]:
                continue
            yield image, [arrived[file] for file in needs[image]]
            for file in set(needs[image]):
                uses_left[file] -= 1
                if not uses_left[file]:
                    del arrived[file]


def _pad_objects(objects: Sequence[Objects], max_objects: int) -> Batch:
    """The objects of n images as arrays, with room for at least `max_objects` per image."""
    max_objects = max(max_objects, max(map(len, objects), default=0))
    boxes = np.zeros((len(objects), max_objects, 4), dtype=np.float32)
    label_ids = np.full((len(objects), max_objects), NO_OBJECT, dtype=np.int64)
    has_box = np.zeros((len(objects), max_objects), dtype=bool)
    for row, of_one in enumerate(objects):
        count = len(of_one)
        boxes[row, :count] = np.where(of_one.has_box[:, None], of_one.boxes_xyxy_px, 0)
        label_ids[row, :count] = of_one.label_ids
        has_box[row, :count] = of_one.has_box
    return {BOXES: boxes, LABEL_IDS: label_ids, HAS_BOX: has_box}


def count_outcomes(batch: Mapping[str, Tensor]) -> Tensor:
    """(NUM_COUNTS,) int64: images of a batch by outcome, and boxes outside their image."""
    outcomes = torch.bincount(batch[OUTCOMES], minlength=len(OUTCOME_NAMES))
    return torch.cat([outcomes, batch[NUM_OUTSIDE].sum()[None]])


def unusable_by_reason(counts: Tensor) -> dict[str, int]:
    """Counts (NUM_COUNTS,) of what can't be used, by error code or reason; zeros are left out."""
    named = zip(_COUNT_NAMES[1:], counts.tolist()[1:], strict=True)
    return {name: int(count) for name, count in named if count}


def strict_error(batch: Mapping[str, Any], image_uris: Sequence[str]) -> str | None:
    """Message of `--strict` about the first image of a batch that can't be used completely; None where all can."""
    counted = zip(image_uris, batch[OUTCOMES].tolist(), batch[NUM_OUTSIDE].tolist(), strict=True)
    for uri, outcome, num_outside in counted:
        if OUTCOME_NAMES[outcome] in _PERMANENT or num_outside:
            reason = str(SkipReason.OUTSIDE_BOX) if num_outside else OUTCOME_NAMES[outcome]
            return (
                f"{uri}: {reason}. Expected only usable images and boxes, because of --strict: repair it, take it out "
                "of the split, or run without --strict"
            )
    return None
