"""One worker's epochs: training, evaluation, metrics, progress. Run by the loop, one for each worker.

Knows torch's collectives and nothing of Ray.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from locray.errors import UsageError
from locray.progress import Progress, Report
from locray.training.learner import Learner
from locray.training.metrics import CLASS_ACCURACY, LOCALIZATION_ACCURACY, MEAN_IOU, Counts
from locray.training.plan import TrainPlan
from locray.training.samples import OUTCOME_NAMES, OUTCOMES

_SECONDS_BETWEEN_POSTS = 2.0

Leave = Callable[[dict[str, float], dict[str, Any] | None], None]


class WorkerRun:
    """One worker's part of a run.

    Args:
        plan: the run.
        learner: the network and its optimiser.
        rank: which worker this is.
        post: takes progress, as often as it comes.
        leave: takes the metrics of an epoch and, from the first worker, the state to go on from.
    """

    def __init__(self, plan: TrainPlan, learner: Learner, rank: int, post: Report, leave: Leave) -> None:
        self._plan = plan
        self._learner = learner
        self._rank = rank
        self._post_progress = post
        self._leave = leave
        self._history: list[dict[str, float]] = []
        self._unusable: dict[str, int] = {}
        self._last_post = 0.0

    def resume(self, state: dict[str, Any]) -> int:
        """Takes up the state after an epoch; the next epoch."""
        self._learner.load_state(state["learner"])
        self._history, self._unusable = state["history"], state["unusable"]
        return len(self._history)

    def _state(self) -> dict[str, Any]:
        return {"learner": self._learner.state(), "history": self._history, "unusable": self._unusable}

    def epoch(self, epoch: int, batches: Iterator[dict[str, Tensor]]) -> None:
        """Trains for an epoch, evaluates, and leaves a checkpoint. Takes an epoch's batches and no more."""
        # Dropout is the only thing that draws from here: a resumed epoch draws as an uninterrupted one.
        torch.manual_seed(hash((self._plan.seed, epoch, self._rank)) % 2**63)
        order, start = self._plan.train.order, time.monotonic()
        losses = torch.zeros(2, dtype=torch.float64)
        outcomes: Counter[int] = Counter()
        for step, batch in enumerate(islice(batches, order.num_steps)):
            losses += torch.tensor([self._learner.train_on(batch, epoch * order.num_steps + step), 1])
            outcomes.update(batch[OUTCOMES].tolist())
            seen = (step + 1) * order.num_images // order.num_steps
            self._post(epoch, seen, float(losses[0] / losses[1]), seen / (time.monotonic() - start))
        images_per_s = order.num_images / (time.monotonic() - start)
        counts = Counts.zero()
        for batch in islice(batches, self._plan.val.order.num_steps):
            self._learner.evaluate_on(batch, counts)
        self._add_up(losses, counts.sums, outcomes)
        metrics = {"epoch": epoch + 1, "loss": float(losses[0] / losses[1]), **counts.metrics()}
        self._history.append({**metrics, "images_per_s": images_per_s})
        self._post(epoch, order.num_images, metrics["loss"], images_per_s, finished=True)
        self._leave(metrics, None if self._rank else self._state())

    def _add_up(self, losses: Tensor, sums: Tensor, outcomes: Counter[int]) -> None:
        """Makes the sums those of all workers."""
        counted = torch.tensor([float(outcomes[index]) for index in range(len(OUTCOME_NAMES))], dtype=torch.float64)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            device = next(self._learner.average.model.parameters()).device
            for part in (losses, sums, counted):
                shared = part.to(device)
                torch.distributed.all_reduce(shared)
                part.copy_(shared)
        self._unusable = {
            name: int(count) for name, count in zip(OUTCOME_NAMES[1:], counted[1:].tolist(), strict=True) if count
        }
        if not counted[0]:
            raise UsageError(f"not one training image could be used: {self._unusable}")

    def _post(self, epoch: int, seen: int, loss: float, images_per_s: float, *, finished: bool = False) -> None:
        """Tells how far the run is, each epoch and every few seconds; the first worker speaks for all."""
        now = time.monotonic()
        if self._rank or not (finished or now - self._last_post >= _SECONDS_BETWEEN_POSTS):
            return
        self._last_post = now
        facts: dict[str, int | float | str] = {"epoch": f"{epoch + 1}/{self._plan.epochs}", "loss": round(loss, 4)}
        if self._history:
            shown = (CLASS_ACCURACY, MEAN_IOU, LOCALIZATION_ACCURACY)
            facts |= {name: round(self._history[-1][name], 4) for name in shown}
        facts["images_per_s"] = round(images_per_s, 1)
        num_images = self._plan.train.order.num_images
        self._post_progress(Progress("training", epoch * num_images + seen, self._plan.epochs * num_images, facts))
