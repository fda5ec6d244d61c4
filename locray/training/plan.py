"""A training run before its execution: everything that can be checked before any work."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from locray import storage
from locray.config import TrainConfig, WorkerOptions
from locray.datasets import Dataset, list_splits, read_split, split_for_validation
from locray.errors import UsageError
from locray.models.architectures import default_input_size_px
from locray.training.batches import OUTCOME_NAMES, OUTCOMES, BatchMaker
from locray.training.data_warnings import log_data_warnings
from locray.training.packed import BatchOrder, PackedRecords

VALIDATION_FRACTION = 0.1
_HASH_DIGITS = 12
_SAMPLED_IMAGES = 32
CHECKPOINTS_FOLDER = "checkpoints"
_NOT_IN_IDENTITY = {*WorkerOptions.model_fields, "output", "overwrite", "run_name", "score_threshold", "strict"}
"""Options that don't change the weights."""


@dataclass(frozen=True)
class TrainPlan:
    """A configuration, and values derived from it and the data. Small enough to be sent to every worker.

    Attributes:
        config: The configuration of the run.
        classes: Names by label id.
        input_size_px: Side of the network's input.
        train: Makes the batches of the training split.
        val: Makes the batches of the validation split.
        identity: Hash of the options and the data: runs that share it would give the same model.
        skipped: Annotations of the data set that can't be used, by reason.
    """

    config: TrainConfig
    classes: tuple[str, ...]
    input_size_px: int
    train: BatchMaker
    val: BatchMaker
    identity: str
    skipped: dict[str, int]

    @property
    def run_name(self) -> str:
        """Name under which the run is resumed."""
        return self.config.run_name or self.identity

    @property
    def output_uri(self) -> str:
        """Where the artifact goes."""
        return storage.normalise(self.config.output)

    @property
    def checkpoints_uri(self) -> str:
        """Where the checkpoints of all runs with this output are."""
        return storage.join(self.output_uri, CHECKPOINTS_FOLDER)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.epochs * self.train.order.num_steps

    @property
    def num_workers(self) -> int:
        """Number of workers that the batches are made for."""
        return self.train.order.num_workers

    def for_workers(self, num_workers: int) -> "TrainPlan":
        """The same run with another number of workers; each step still takes the same images."""
        train, val = (
            replace(maker, order=replace(maker.order, num_workers=num_workers)) for maker in (self.train, self.val)
        )
        return replace(self, train=train, val=val)


def make_plan(config: TrainConfig) -> TrainPlan:
    """Reads the annotations, resolves what the options leave open, and checks the result.

    Raises:
        UsageError: unknown model, format or split; a data set that nothing can be learned from; unreadable images.
    """
    train_set, val_set = read_splits(config)
    input_size_px = config.input_size or default_input_size_px(config.model)
    max_objects = max(len(record.objects) for record in train_set.records + val_set.records)

    def batch_maker(dataset: Dataset, *, training: bool) -> BatchMaker:
        packed = PackedRecords.of(dataset.records, train_set.classes, max_objects, crowds=not training)
        order = BatchOrder(len(packed), config.batch_size, config.workers, config.seed if training else None)
        return BatchMaker(packed, order, config, input_size_px, augmented=training)

    plan = TrainPlan(
        config=config,
        classes=train_set.classes,
        input_size_px=input_size_px,
        train=batch_maker(train_set, training=True),
        val=batch_maker(val_set, training=False),
        identity=_identity(config, train_set, val_set),
        skipped=dict(Counter(train_set.skipped) + Counter(val_set.skipped)),
    )
    _check(plan)
    log_data_warnings(config.model, train_set, config)
    return plan


def read_splits(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Training and validation split.

    Raises:
        UsageError: unknown format or split, or splits that don't belong together.
        StoreError: the annotations can't be read.
    """
    train_set = read_split(config, config.train_split)
    # Only the default validation split may be missing, not one that the user named.
    if "val_split" in config.model_fields_set or config.val_split in list_splits(config.data, config.format):
        val_set = read_split(config, config.val_split)
    else:
        train_set, val_set = split_for_validation(train_set, VALIDATION_FRACTION)
    if not train_set.classes:
        raise UsageError(
            f"none of the {len(train_set.records)} images of split {config.train_split!r} has an annotated object: "
            "there is nothing to learn"
        )
    unknown = sorted(set(val_set.classes) - set(train_set.classes))
    if unknown:
        raise UsageError(
            f"split {config.val_split!r} has classes that split {config.train_split!r} doesn't: "
            f"{', '.join(unknown[:5])}. A class can only be learned from examples in the training split"
        )
    return train_set, val_set


def _check(plan: TrainPlan) -> None:
    config, order = plan.config, plan.train.order
    if not storage.is_remote(plan.output_uri) and os.path.isfile(storage.local_path(plan.output_uri)):
        raise UsageError(f"--output {plan.output_uri} is a file: expected a folder, which is made if it is missing")
    if (config.min_workers or 0) > config.workers:
        raise UsageError(f"--min-workers {config.min_workers} is larger than --workers {config.workers}")
    if config.workers > min(order.batch_size, order.num_images):
        raise UsageError(
            f"found --workers {config.workers} with a batch of {order.batch_size} and {order.num_images} training "
            "images: each worker needs at least one image of every batch. Use fewer workers"
        )
    if config.model.startswith("detector/") and not plan.train.packed.has_box.any():
        raise UsageError(
            f"none of the {order.num_images} training images has a box, and {config.model} learns from boxes. Use "
            "small_cnn, small_resnet or localizer/..., which can learn the class alone"
        )
    if not plan.run_name.translate(str.maketrans("", "", "-_.")).isalnum():
        raise UsageError(f"--run-name {plan.run_name!r}: only letters, digits, '-', '_' and '.' are allowed")
    rows = BatchOrder(order.num_images, _SAMPLED_IMAGES, 1, config.seed).rows(0, 0, 0).tolist()
    outcomes = replace(plan.train, augmented=False).batch_of(rows, 0)[OUTCOMES]
    if len(outcomes) and outcomes.all():
        found = sorted({OUTCOME_NAMES[int(outcome)] for outcome in outcomes})
        raise UsageError(
            f"none of {len(outcomes)} sampled training images can be used ({', '.join(found)}). The first is "
            f"{plan.train.packed.image_uris[0]}: check that it opens in an image viewer"
        )


def _identity(config: TrainConfig, *datasets: Dataset) -> str:
    digest = hashlib.sha256()
    options: dict[str, Any] = config.model_dump(mode="json", exclude=_NOT_IN_IDENTITY)
    digest.update(json.dumps(options, sort_keys=True).encode())
    for dataset in datasets:
        for record in dataset.records:
            digest.update(repr(record).encode())
    return digest.hexdigest()[:_HASH_DIGITS]
