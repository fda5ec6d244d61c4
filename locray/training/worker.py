"""The epochs of one worker: training, validation, metrics, checkpoints, progress. Without Ray.

A step's batch depends on its number alone, not on the history of this process: a run that was interrupted, or that
continues with another number of workers, sees the same batches.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from locray.metrics.results import ImageResult
from locray.progress import Progress, Report
from locray.training.batches import NUM_COUNTS, BatchMaker, count_outcomes, strict_error, unusable_by_reason
from locray.training.checkpoints import CheckpointStore, Latest, Place
from locray.training.history import PRECISION_BITS, WORKERS, best_of, is_over, write_history
from locray.training.learner import Learner
from locray.training.metrics import SHOWN, image_results, summarise
from locray.training.plan import TrainPlan
from locray.training.process_group import ProcessGroup, Signal

_PROGRESS_INTERVAL_S = 2.0
_SAVE_INTERVAL_S = 600.0
_MAX_NAMED_IMAGES = 8

Metrics = dict[str, float]


class WorkerRun:
    """One worker's part of a run.

    Args:
        plan: The run, for the actual number of workers.
        learner: The network and its optimizer.
        group: This worker among the others.
        store: Where checkpoints go.
        report: Progress callback.
        fail: Takes the reason why the run can't continue.
        stop_requested: Whether the run was asked to save and end.
        end_epoch: Called by every worker with the metrics of an epoch, once its checkpoint is written.
    """

    def __init__(
        self,
        plan: TrainPlan,
        learner: Learner,
        group: ProcessGroup,
        store: CheckpointStore,
        *,
        report: Report,
        fail: Callable[[str], object],
        stop_requested: Callable[[], bool],
        end_epoch: Callable[[Metrics], object],
    ) -> None:
        self._plan = plan
        self._learner = learner
        self._group = group
        self._store = store
        self._report = report
        self._fail = fail
        self._stop_requested = stop_requested
        self._end_epoch = end_epoch
        self._history: list[Metrics] = []
        self._best: dict[str, Any] | None = None
        self._sums = _no_sums()
        self._seconds = 0.0
        self._learning_rate = 0.0
        self._last_report = self._last_poll = self._last_save = time.monotonic()

    def resume(self, latest: Latest) -> Place:
        """Restores a checkpoint, if there is one. Returns the place to resume from."""
        if latest.state is not None:
            self._learner.load_state(latest.state["learner"])
            self._history, self._best = latest.state["history"], latest.state["best"]
            self._learning_rate = latest.state["learning_rate"]
            if self._group.is_first:
                self._sums, self._seconds = latest.state["sums"], latest.state["seconds"]
        return latest.place

    def run(self, place: Place, batches: Iterator[Mapping[str, Tensor]]) -> None:
        """Trains from a place to the end of the run, or until it is asked to stop. `batches` start at that place."""
        for epoch in range(place.epoch, self._plan.config.epochs):
            if is_over(self._history, self._plan.config.epochs, self._plan.config.patience):
                return
            self._learner.freeze(epoch < self._plan.config.freeze_epochs)
            signal = self._train(epoch, place.step if epoch == place.epoch else 0, batches)
            if signal < Signal.STOP:
                signal = self._validate(epoch, batches)
            if signal >= Signal.STOP:
                return

    def _train(self, epoch: int, first_step: int, batches: Iterator[Mapping[str, Tensor]]) -> Signal:
        """Takes the steps of an epoch. Returns the signal after the last one."""
        order, signal = self._plan.train.order, Signal.CONTINUE
        for step in range(first_step, order.num_steps):
            started = time.monotonic()
            batch = next(batches)
            # Used by dropout only.
            torch.manual_seed(hash((self._plan.config.seed, epoch, step, self._group.rank)) % 2**63)
            loss = self._learner.compute(batch)
            signal = self._next_signal(
                self._strict_error(batch, self._plan.train, epoch, step) or self._divergence_error(loss, epoch, step)
            )
            if signal is Signal.FAIL:
                return signal
            self._learning_rate = self._learner.apply(epoch * order.num_steps + step)
            self._sums += torch.cat([torch.tensor([loss, 1.0]), count_outcomes(batch)]).double()
            self._seconds += time.monotonic() - started
            self._report_progress(epoch, (step + 1) * order.num_images // order.num_steps)
            if signal >= Signal.SAVE:
                self._save(Place(epoch, step + 1))
                if signal is Signal.STOP:
                    break
        return signal

    def _validate(self, epoch: int, batches: Iterator[Mapping[str, Tensor]]) -> Signal:
        """Validates on each image of the split once, over all workers, and ends the epoch.

        A run that is asked to stop in between is saved as it was before, and validates again when it is resumed.
        """
        self._learner.share_statistics(self._group)
        results: list[ImageResult] = []
        counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
        for step, batch in enumerate(islice(batches, self._plan.val.order.num_steps)):
            results += image_results(self._learner.predict(batch), batch, self._plan.classes)
            counts += count_outcomes(batch)
            signal = self._next_signal(self._strict_error(batch, self._plan.val, epoch, step))
            if signal is Signal.FAIL:
                return signal
            if signal >= Signal.SAVE:
                self._save(Place(epoch, self._plan.train.order.num_steps))
                if signal is Signal.STOP:
                    return signal
        self._sums[2:] += counts
        self._finish_epoch(epoch, results)
        return Signal.CONTINUE

    def _finish_epoch(self, epoch: int, own_results: list[ImageResult]) -> None:
        """Computes the metrics of an epoch from the results of all workers, and saves."""
        results = self._group.gather(own_results)
        sums = self._group.all_reduce_sum(self._sums)
        metrics: Metrics = {}
        if self._group.is_first:
            metrics = {
                "epoch": float(epoch + 1),
                "loss": float(sums[0] / sums[1]),
                "learning_rate": self._learning_rate,
                **summarise(results, one_object=self._learner.finds_one_object),
                "images_per_s": self._plan.train.order.num_images / self._seconds,
                PRECISION_BITS: float(self._learner.precision_bits),
                WORKERS: float(self._group.size),
            }
        self._history.append(self._group.broadcast(metrics))
        if best_of(self._history) is self._history[-1] and self._group.is_first:
            self._best = {"epoch": epoch + 1, "weights": self._learner.average.snapshot()}
        self._sums, self._seconds = _no_sums(), 0.0
        if self._group.is_first:
            # Before the checkpoint: an epoch that is repeated writes the same files again.
            write_history(self._plan.output_uri, self._history)
        self._save(Place(epoch + 1, 0), sums)
        self._report_progress(epoch, self._plan.train.order.num_images, finished=True)
        self._end_epoch(self._history[-1])

    def _save(self, place: Place, sums: Tensor | None = None) -> None:
        """Writes a checkpoint. `sums` are those of an epoch that has just ended; None within an epoch."""
        ended = sums is not None
        total = sums if sums is not None else self._group.all_reduce_sum(self._sums)
        if not ended:
            self._sums = total if self._group.is_first else _no_sums()
            self._learner.share_statistics(self._group)
        if self._group.is_first:
            state = {
                "learner": self._learner.state(),
                "history": self._history,
                "best": self._best,
                "sums": _no_sums() if ended else total,
                "seconds": self._seconds,
                "learning_rate": self._learning_rate,
                "unusable": unusable_by_reason(total[2:]),
            }
            self._store.save(place, state)
        self._last_save = time.monotonic()

    def _next_signal(self, error: str | None) -> Signal:
        """Next action of all workers; an error on any of them ends the run."""
        signal = self._group.all_reduce_max(self._own_signal() if error is None else Signal.FAIL)
        if error is not None:
            self._fail(error)
        return signal

    def _own_signal(self) -> Signal:
        """Request of this worker."""
        now = time.monotonic()
        if self._group.is_first and now - self._last_poll >= _PROGRESS_INTERVAL_S:
            self._last_poll = now
            if self._stop_requested():
                return Signal.STOP
            if now - self._last_save >= _SAVE_INTERVAL_S:
                return Signal.SAVE
        return Signal.CONTINUE

    def _strict_error(self, batch: Mapping[str, Tensor], maker: BatchMaker, epoch: int, step: int) -> str | None:
        """Message about what can't be used in this batch, with `--strict`."""
        if not self._plan.config.strict:
            return None
        rows = maker.order.rows(epoch, step, self._group.rank)
        return strict_error(batch, [maker.packed.image_uris[row] for row in rows])

    def _divergence_error(self, loss: float, epoch: int, step: int) -> str | None:
        """Message about a loss or gradients that aren't finite. Gradients may overflow before the loss does."""
        norm_is_usable = math.isfinite(self._learner.gradient_norm) or self._learner.gradients_overflowed
        if math.isfinite(loss) and norm_is_usable:
            return None
        what = "the norm of the gradients" if math.isfinite(loss) else "the loss"
        value = self._learner.gradient_norm if math.isfinite(loss) else loss
        rows = self._plan.train.order.rows(epoch, step, self._group.rank)
        names = [self._plan.train.packed.image_uris[row] for row in rows]
        more = f" and {len(names) - _MAX_NAMED_IMAGES} more" if len(names) > _MAX_NAMED_IMAGES else ""
        return (
            f"{what} became {value} in epoch {epoch + 1}, step {step + 1}: the training has diverged. The batch held "
            f"{', '.join(names[:_MAX_NAMED_IMAGES])}{more}. Check these images and their boxes (`locray preview`), or "
            "try a smaller --learning-rate. The last checkpoint is kept"
        )

    def _report_progress(self, epoch: int, seen: int, *, finished: bool = False) -> None:
        """Reports progress at the end of an epoch and every few seconds, on the first worker only."""
        now = time.monotonic()
        if not self._group.is_first or not (finished or now - self._last_report >= _PROGRESS_INTERVAL_S):
            return
        self._last_report = now
        facts: dict[str, int | float | str] = {"epoch": f"{epoch + 1}/{self._plan.config.epochs}"}
        if finished:
            facts["loss"] = round(self._history[-1]["loss"], 4)
        else:
            facts["loss"] = round(float(self._sums[0] / self._sums[1]), 4)
        if self._history:
            facts |= {name: round(self._history[-1][name], 4) for name in SHOWN if name in self._history[-1]}
            facts["best"] = int(best_of(self._history)["epoch"])
        speed = self._history[-1]["images_per_s"] if finished else seen / max(self._seconds, 1e-9)
        facts["images/s"] = round(speed, 1)
        num_images = self._plan.train.order.num_images
        self._report(Progress("training", epoch * num_images + seen, self._plan.config.epochs * num_images, facts))


def _no_sums() -> Tensor:
    """Zeros for loss, steps, and counts of images."""
    return torch.zeros(2 + NUM_COUNTS, dtype=torch.float64)
