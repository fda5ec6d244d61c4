"""One worker's epochs: training, validation, metrics, checkpoints, progress. Run by the loop, one for each worker.

Knows nothing of Ray. What it learns from a step depends on the step's number alone, not on what came before in this
process: a run that was cut off, and even one that goes on with another number of workers, sees the same batches.
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
from locray.training.checkpoints import CheckpointStore, Latest, Place
from locray.training.counting import NUM_COUNTS, complaint, counts_of, unusable
from locray.training.history import PRECISION_BITS, WORKERS, best_of, is_over, write_history
from locray.training.learner import Learner
from locray.training.metrics import SHOWN, image_results, summarise
from locray.training.plan import TrainPlan
from locray.training.process_group import ProcessGroup, Signal
from locray.training.samples import BatchMaker

_SECONDS_BETWEEN_POSTS = 2.0
_SECONDS_BETWEEN_SAVES = 600.0
_NAMED_IMAGES = 8

Metrics = dict[str, float]


class WorkerRun:
    """One worker's part of a run.

    Args:
        plan: the run, for the number of workers that there are.
        learner: the network and its optimiser.
        team: this worker among the others.
        store: where checkpoints go.
        post: takes progress, as often as it comes.
        fail: takes the reason why the run can't go on.
        is_to_stop: whether somebody asks the run to save and end.
        epoch_done: called by every worker with the metrics of an epoch, once its checkpoint is written.
    """

    def __init__(
        self,
        plan: TrainPlan,
        learner: Learner,
        team: ProcessGroup,
        store: CheckpointStore,
        *,
        post: Report,
        fail: Callable[[str], object],
        is_to_stop: Callable[[], bool],
        epoch_done: Callable[[Metrics], object],
    ) -> None:
        self._plan = plan
        self._learner = learner
        self._team = team
        self._store = store
        self._post_progress = post
        self._fail = fail
        self._is_to_stop = is_to_stop
        self._epoch_done = epoch_done
        self._history: list[Metrics] = []
        self._best: dict[str, Any] | None = None
        self._sums = _no_sums()
        self._seconds = 0.0
        self._learning_rate = 0.0
        self._last_post = self._last_asked = self._last_save = time.monotonic()

    def resume(self, latest: Latest) -> Place:
        """Takes up a checkpoint, if there is one; where to go on."""
        if latest.state is not None:
            self._learner.load_state(latest.state["learner"])
            self._history, self._best = latest.state["history"], latest.state["best"]
            self._learning_rate = latest.state["learning_rate"]
            if self._team.is_first:
                self._sums, self._seconds = latest.state["sums"], latest.state["seconds"]
        return latest.place

    def run(self, place: Place, batches: Iterator[Mapping[str, Tensor]]) -> None:
        """Trains from `place` to the end of the run, or until it is asked to stop; `batches` are those from there."""
        for epoch in range(place.epoch, self._plan.epochs):
            if is_over(self._history, self._plan.epochs, self._plan.patience):
                return
            self._learner.freeze(epoch < self._plan.freeze_epochs)
            signal = self._train(epoch, place.step if epoch == place.epoch else 0, batches)
            if signal < Signal.STOP:
                signal = self._validate(epoch, batches)
            if signal >= Signal.STOP:
                return

    def _train(self, epoch: int, first_step: int, batches: Iterator[Mapping[str, Tensor]]) -> Signal:
        """The steps of an epoch; what was agreed on after the last one that was taken."""
        order, signal = self._plan.train.order, Signal.GO_ON
        for step in range(first_step, order.num_steps):
            started = time.monotonic()
            batch = next(batches)
            # Dropout is the only thing that draws from here.
            torch.manual_seed(hash((self._plan.seed, epoch, step, self._team.rank)) % 2**63)
            loss = self._learner.compute(batch)
            signal = self._agree(
                self._unusable(batch, self._plan.train, epoch, step) or self._diverged(loss, epoch, step)
            )
            if signal is Signal.FAILED:
                return signal
            self._learning_rate = self._learner.apply(epoch * order.num_steps + step)
            self._sums += torch.cat([torch.tensor([loss, 1.0]), counts_of(batch)]).double()
            self._seconds += time.monotonic() - started
            self._post(epoch, (step + 1) * order.num_images // order.num_steps)
            if signal >= Signal.SAVE:
                self._save(Place(epoch, step + 1))
                if signal is Signal.STOP:
                    break
        return signal

    def _validate(self, epoch: int, batches: Iterator[Mapping[str, Tensor]]) -> Signal:
        """Every image of the validation split once, over all workers; then the epoch is done.

        A run that is asked to stop in between is saved as it was before, and validates once it goes on.
        """
        self._learner.share_statistics(self._team)
        results: list[ImageResult] = []
        counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
        for step, batch in enumerate(islice(batches, self._plan.val.order.num_steps)):
            results += image_results(self._learner.predict(batch), batch, self._plan.classes)
            counts += counts_of(batch)
            signal = self._agree(self._unusable(batch, self._plan.val, epoch, step))
            if signal is Signal.FAILED:
                return signal
            if signal >= Signal.SAVE:
                self._save(Place(epoch, self._plan.train.order.num_steps))
                if signal is Signal.STOP:
                    return signal
        self._sums[2:] += counts
        results = self._team.gather(results)
        sums = self._team.total(self._sums)
        metrics: Metrics = {}
        if self._team.is_first:
            metrics = {
                "epoch": float(epoch + 1),
                "loss": float(sums[0] / sums[1]),
                "learning_rate": self._learning_rate,
                **summarise(results, one_object=self._learner.finds_one_object),
                "images_per_s": self._plan.train.order.num_images / self._seconds,
                PRECISION_BITS: float(self._learner.precision_bits),
                WORKERS: float(self._team.size),
            }
        self._history.append(self._team.share(metrics))
        if best_of(self._history) is self._history[-1] and self._team.is_first:
            self._best = {"epoch": epoch + 1, "weights": self._learner.average.snapshot()}
        self._sums, self._seconds = _no_sums(), 0.0
        if self._team.is_first:
            # Before the checkpoint: an epoch that is done again writes the same files again.
            write_history(self._plan.output_uri, self._history)
        self._save(Place(epoch + 1, 0), sums)
        self._post(epoch, self._plan.train.order.num_images, finished=True)
        self._epoch_done(self._history[-1])
        return Signal.GO_ON

    def _save(self, place: Place, sums: Tensor | None = None) -> None:
        """Writes what all workers have come to; `sums` are those of the epoch that has just ended."""
        ended = sums is not None
        total = sums if sums is not None else self._team.total(self._sums)
        if not ended:
            self._sums = total if self._team.is_first else _no_sums()
            self._learner.share_statistics(self._team)
        if self._team.is_first:
            state = {
                "learner": self._learner.state(),
                "history": self._history,
                "best": self._best,
                "sums": _no_sums() if ended else total,
                "seconds": self._seconds,
                "learning_rate": self._learning_rate,
                "unusable": unusable(total[2:]),
            }
            self._store.save(place, state)
        self._last_save = time.monotonic()

    def _agree(self, trouble: str | None) -> Signal:
        """What all workers do next. ErrorKind ends the run, and is told."""
        signal = self._team.agree(self._wish() if trouble is None else Signal.FAILED)
        if trouble is not None:
            self._fail(trouble)
        return signal

    def _wish(self) -> Signal:
        """What this worker asks of all."""
        now = time.monotonic()
        if self._team.is_first and now - self._last_asked >= _SECONDS_BETWEEN_POSTS:
            self._last_asked = now
            if self._is_to_stop():
                return Signal.STOP
            if now - self._last_save >= _SECONDS_BETWEEN_SAVES:
                return Signal.SAVE
        return Signal.GO_ON

    def _unusable(self, batch: Mapping[str, Tensor], maker: BatchMaker, epoch: int, step: int) -> str | None:
        """What --strict has against this batch."""
        if not self._plan.strict:
            return None
        rows = maker.order.rows(epoch, step, self._team.rank)
        return complaint(batch, [maker.packed.image_uris[row] for row in rows])

    def _diverged(self, loss: float, epoch: int, step: int) -> str | None:
        """Why the run can't go on after this step, if so. Gradients may overflow where the loss does not yet."""
        if math.isfinite(loss) and math.isfinite(self._learner.gradient_norm):
            return None
        what = "the norm of the gradients" if math.isfinite(loss) else "the loss"
        value = self._learner.gradient_norm if math.isfinite(loss) else loss
        rows = self._plan.train.order.rows(epoch, step, self._team.rank)
        names = [self._plan.train.packed.image_uris[row] for row in rows]
        more = f" and {len(names) - _NAMED_IMAGES} more" if len(names) > _NAMED_IMAGES else ""
        return (
            f"{what} became {value} in epoch {epoch + 1}, step {step + 1}: the training has diverged. The batch held "
            f"{', '.join(names[:_NAMED_IMAGES])}{more}. Look at these images and their boxes (`locray preview`), or "
            "try a smaller --learning-rate. The checkpoint before it is kept"
        )

    def _post(self, epoch: int, seen: int, *, finished: bool = False) -> None:
        """Tells how far the run is, each epoch and every few seconds; the first worker speaks for all."""
        now = time.monotonic()
        if not self._team.is_first or not (finished or now - self._last_post >= _SECONDS_BETWEEN_POSTS):
            return
        self._last_post = now
        facts: dict[str, int | float | str] = {"epoch": f"{epoch + 1}/{self._plan.epochs}"}
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
        self._post_progress(Progress("training", epoch * num_images + seen, self._plan.epochs * num_images, facts))


def _no_sums() -> Tensor:
    """Loss, steps, and counts of images: nothing so far."""
    return torch.zeros(2 + NUM_COUNTS, dtype=torch.float64)
