"""What a training run is going to do, checked before any work. Made by `run`, executed by `loop`."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from typing import Any

from locray import storage
from locray.config import Device, Precision, TrainConfig
from locray.datasets import Dataset, list_splits, read_dataset, split_for_validation
from locray.errors import UsageError
from locray.images.decode import DecodeLimits
from locray.models.architectures import default_input_size_px
from locray.training.augment import Augmentation
from locray.training.optimise import OptimiserSettings
from locray.training.samples import OUTCOME_NAMES, OUTCOMES, BatchMaker, Order, Packed

VALIDATION_FRACTION = 0.1
_HASH_DIGITS = 12
_SAMPLED_IMAGES = 32
# What changes nothing of the outcome, or says where it goes, is no part of a run's identity.
_NOT_IDENTITY = {
    "json_output",
    "verbose",
    "output",
    "run_name",
    "workers",
    "min_workers",
    "device",
    "max_failures",
    "score_threshold",
    "strict",
}


@dataclass(frozen=True)
class TrainPlan:
    """A run, complete but for its execution. Small enough to be sent to every worker."""

    run_name: str
    architecture: str
    classes: tuple[str, ...]
    input_size_px: int
    epochs: int
    patience: int | None
    num_workers: int
    min_workers: int | None
    device: Device
    max_failures: int
    accumulate: int
    precision: Precision
    optimiser: OptimiserSettings
    pretrained: bool
    freeze_epochs: int
    seed: int
    train: BatchMaker
    val: BatchMaker
    output_uri: str
    identity: str
    """Hash of the options and the data: runs that share it would give the same model."""
    skipped: dict[str, int]
    """Annotations that the data sets hold and that can't be learned from, by reason."""
    strict: bool
    """Whether an image or a box that turns out to be of no use ends the run."""
    verbose: bool

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.train.order.num_steps

    @property
    def checkpoints_uri(self) -> str:
        """Where Ray Train keeps the checkpoints of all runs with this output."""
        return storage.join(self.output_uri, "checkpoints")

    def for_workers(self, num_workers: int) -> "TrainPlan":
        """The same run with another number of workers: the same images make up each step."""
        train, val = (
            replace(part, order=replace(part.order, num_workers=num_workers)) for part in (self.train, self.val)
        )
        return replace(self, num_workers=num_workers, train=train, val=val)


def make_plan(config: TrainConfig) -> TrainPlan:
    """Reads the annotations and settles every choice that the options leave open.

    Raises:
        UsageError: unknown model, format or split, a data set that can't be learned from, or images of which none
            can be read.
    """
    train_set, val_set = read_splits(config)
    size = config.input_size or default_input_size_px(config.model)
    limits = DecodeLimits.of(config)
    classes = train_set.classes
    places = max(len(record.objects) for record in train_set.records + val_set.records)
    train = BatchMaker(
        packed=Packed.of(train_set.records, classes, places),
        order=Order(len(train_set.records), config.batch_size, config.workers, config.seed),
        input_size_px=size,
        limits=limits,
        augmentation=Augmentation.of(config),
        seed=config.seed,
    )
    val = BatchMaker(
        packed=Packed.of(val_set.records, classes, places, crowds=True),
        order=Order(len(val_set.records), config.batch_size, config.workers, None),
        input_size_px=size,
        limits=limits,
        augmentation=None,
        seed=config.seed,
    )
    identity = _identity(config, train_set, val_set)
    skipped = {
        key: train_set.skipped.get(key, 0) + val_set.skipped.get(key, 0)
        for key in train_set.skipped.keys() | val_set.skipped.keys()
    }
    plan = TrainPlan(
        run_name=config.run_name or identity,
        architecture=config.model,
        classes=classes,
        input_size_px=size,
        epochs=config.epochs,
        patience=config.patience,
        num_workers=config.workers,
        min_workers=config.min_workers,
        device=config.device,
        max_failures=config.max_failures,
        accumulate=config.accumulate,
        precision=config.precision,
        optimiser=OptimiserSettings.of(config),
        pretrained=config.weights is not None,
        freeze_epochs=config.freeze_epochs,
        seed=config.seed,
        train=train,
        val=val,
        output_uri=storage.normalise(config.output),
        identity=identity,
        skipped=skipped,
        strict=config.strict,
        verbose=config.verbose,
    )
    _check(plan)
    return plan


def read_splits(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """What a run learns from, and what it is validated on.

    Raises:
        UsageError: unknown format or split, or splits that don't belong together.
        StoreError: the annotations can't be read.
    """
    train_set = read_dataset(
        config.data, config.format, config.train_split, min_score=config.min_score, strict=config.strict
    )
    # A name that was typed is meant: only the usual one may be missing.
    if "val_split" in config.model_fields_set or config.val_split in list_splits(config.data, config.format):
        val_set = read_dataset(
            config.data, config.format, config.val_split, min_score=config.min_score, strict=config.strict
        )
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
    if not storage.is_remote(plan.output_uri) and os.path.isfile(storage.local_path(plan.output_uri)):
        raise UsageError(f"--output {plan.output_uri} is a file: give a folder, which is made when it is not there")
    order = plan.train.order
    if (plan.min_workers or 0) > plan.num_workers:
        raise UsageError(f"found --min-workers {plan.min_workers} with --workers {plan.num_workers}: it can't be more")
    if not plan.num_workers <= min(order.batch_size, order.num_images):
        raise UsageError(
            f"found --workers {plan.num_workers} with a batch of {order.batch_size} and {order.num_images} training "
            "images: each worker needs at least one image of every batch. Use fewer workers"
        )
    if plan.architecture.startswith("detector/") and not plan.train.packed.has_box.any():
        raise UsageError(
            f"none of the {order.num_images} training images has a box, and {plan.architecture} learns from boxes. Use "
            "small_cnn, small_resnet or localizer/..., which learn the class alone"
        )
    names = plan.run_name.replace("-", "").replace("_", "").replace(".", "")
    if not names.isalnum():
        raise UsageError(f"--run-name {plan.run_name!r} may hold letters, digits, '-', '_' and '.' only")
    sample = BatchMaker(
        plan.train.packed, Order(order.num_images, _SAMPLED_IMAGES, 1, plan.seed), plan.input_size_px,
        plan.train.limits, None, plan.seed,
    )  # fmt: skip
    outcomes = sample(0, 0, 0)[OUTCOMES]
    if len(outcomes) and outcomes.all():
        found = sorted({OUTCOME_NAMES[int(outcome)] for outcome in outcomes})
        raise UsageError(
            f"none of {len(outcomes)} sampled training images can be used ({', '.join(found)}). The first is "
            f"{plan.train.packed.image_uris[0]}: look whether it opens in an image viewer"
        )


def _identity(config: TrainConfig, *datasets: Dataset) -> str:
    digest = hashlib.sha256()
    options: dict[str, Any] = config.model_dump(mode="json", exclude=_NOT_IDENTITY)
    digest.update(json.dumps(options, sort_keys=True).encode())
    for dataset in datasets:
        for record in dataset.records:
            digest.update(repr(record).encode())
    return digest.hexdigest()[:_HASH_DIGITS]
