"""The batches of a worker, grouped into units of work for Ray Data.

A task of Ray Data costs several processes some time besides making the batch, so small batches share a task.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from locray.models.interface import NO_OBJECT
from locray.training.batches import BOXES, HAS_BOX, LABEL_IDS, OUTCOMES, Batch, BatchMaker
from locray.training.checkpoints import Place
from locray.training.plan import TrainPlan

START, END = "start", "end"
"""Columns of a unit: its first step, and the step after its last."""

_MAX_UNIT_BYTES = 16 << 20
_MAX_STEPS_PER_UNIT = 16


@dataclass(frozen=True, slots=True)
class Feed:
    """The batches of one worker. Steps are numbered over the whole run: in each epoch, training before validation."""

    plan: TrainPlan
    worker: int

    def units(self, place: Place) -> Iterator[range]:
        """Ranges of steps from a place to the end of the run; the batches of a range are made together."""
        first = self._steps_per_epoch * place.epoch + place.step
        end = self._steps_per_epoch * self.plan.config.epochs
        steps_per_unit = self._steps_per_unit
        for start in range(first, end, steps_per_unit):
            yield range(start, min(end, start + steps_per_unit))

    def make(self, steps: range) -> Batch:
        """The rows of these steps, concatenated; a step without images has one row, which `split` drops."""
        batches = [_never_empty(self._make_one(step)) for step in steps]
        max_objects = max(batch[LABEL_IDS].shape[1] for batch in batches)
        padded = [_pad_objects(batch, max_objects) for batch in batches]
        return {name: np.concatenate([batch[name] for batch in padded]) for name in padded[0]}

    def split(self, made: Batch, steps: range) -> Iterator[Batch]:
        """The batches that `make` has concatenated, in order."""
        start = 0
        for step in steps:
            maker, epoch, step_of_epoch = self._place(step)
            size = len(maker.order.rows(epoch, step_of_epoch, self.worker))
            yield {name: part[start : start + size] for name, part in made.items()}
            start += max(1, size)

    @property
    def unit_bytes(self) -> int:
        """Size of the images of a unit."""
        return self._steps_per_unit * self._bytes_per_step

    @property
    def _steps_per_epoch(self) -> int:
        return self.plan.train.order.num_steps + self.plan.val.order.num_steps

    @property
    def _steps_per_unit(self) -> int:
        return max(1, min(_MAX_STEPS_PER_UNIT, _MAX_UNIT_BYTES // self._bytes_per_step))

    @property
    def _bytes_per_step(self) -> int:
        order, side = self.plan.train.order, self.plan.input_size_px
        return max(1, order.batch_size // order.num_workers) * side * side * 3

    def _make_one(self, number: int) -> Batch:
        maker, epoch, step = self._place(number)
        return maker(epoch, step, self.worker)

    def _place(self, number: int) -> tuple[BatchMaker, int, int]:
        """The maker of a step's batch, its epoch, and its number within the split."""
        epoch, step = divmod(number, self._steps_per_epoch)
        num_training_steps = self.plan.train.order.num_steps
        if step < num_training_steps:
            return self.plan.train, epoch, step
        return self.plan.val, epoch, step - num_training_steps


def _never_empty(batch: Batch) -> Batch:
    """The batch, or one row of zeros instead of none: Ray Data skips blocks without rows."""
    if len(batch[OUTCOMES]):
        return batch
    return {name: np.zeros((1, *part.shape[1:]), part.dtype) for name, part in batch.items()}


def _pad_objects(batch: Batch, max_objects: int) -> Batch:
    """A batch with room for this many objects per image."""
    missing = max_objects - batch[LABEL_IDS].shape[1]
    if not missing:
        return batch
    unused = {BOXES: 0, LABEL_IDS: NO_OBJECT, HAS_BOX: False}
    return batch | {
        name: np.pad(batch[name], [(0, 0), (0, missing)] + [(0, 0)] * (batch[name].ndim - 2), constant_values=value)
        for name, value in unused.items()
    }


class BatchActor:
    """Makes batches in a process that stays alive.

    Ray ends the process of a task as soon as it has to wait, and the next one takes seconds to import torch.
    """

    def __init__(self, feed: Feed, *, idle_priority: bool) -> None:
        torch.set_num_threads(1)
        if idle_priority:
            use_idle_priority()
        self._feed = feed

    def __call__(self, block: Mapping[str, Any]) -> Batch:
        """Makes the batches of one unit."""
        return self._feed.make(range(int(block[START][0]), int(block[END][0])))


def use_idle_priority() -> None:
    """Lets this process run only when a processor is idle: batches are made in the gaps of the training.

    Threads of a network wait for each other after every layer, so that a core taken from one of them is taken from
    all. A lower priority (nice) isn't enough: the process would still interrupt the training.
    """
    if not hasattr(os, "SCHED_IDLE"):
        return
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
