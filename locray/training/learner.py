"""A network in training: one step, one evaluation, and the state to go on from. Called by each worker of the loop.

Knows torch and nothing of Ray, so that a training step can be tested in a second.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from locray.errors import UsageError
from locray.models.contract import LOSS, NO_OBJECT, LabelModel, Targets
from locray.training.metrics import Counts
from locray.training.optimise import FACTOR, PRETRAINED_FACTOR, AveragedModel, build_optimiser, learning_rate_at
from locray.training.samples import BOXES, IMAGES, LABEL_IDS, OUTCOMES

_LARGEST_GRADIENT_NORM = 5.0


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How a network learns."""

    learning_rate: float
    weight_decay: float
    pretrained: bool
    """Whether the trunk starts from weights that know something already."""
    num_steps: int
    """Of the whole run."""
    dtype: torch.dtype
    """Of the arithmetic; weights stay float32."""


class TrainingStep(nn.Module):
    """The loss as a forward pass: what DistributedDataParallel can wrap."""

    def __init__(self, model: LabelModel) -> None:
        super().__init__()
        assert isinstance(model, nn.Module)
        self.model = model

    def forward(
        self, images_u8: Tensor, boxes_xyxy_px: Tensor, label_ids: Tensor, has_box: Tensor
    ) -> dict[str, Tensor]:
        """See `LabelModel.loss`."""
        return dict(self.model.loss(images_u8, Targets(boxes_xyxy_px, label_ids, has_box)))


class Learner:
    """Trains a network and keeps the average of its weights.

    Args:
        model: the network, on its device.
        step: `TrainingStep` of that network, or its wrapping for several workers.
        settings: how it learns.
        device: where the network lies.
    """

    def __init__(self, model: LabelModel, step: nn.Module, settings: LearnerSettings, device: torch.device) -> None:
        assert isinstance(model, nn.Module)
        self._model: nn.Module = model
        self._step = step
        self._settings = settings
        self._device = device
        self._optimiser = build_optimiser(
            model, settings.learning_rate, settings.weight_decay, PRETRAINED_FACTOR if settings.pretrained else 1.0
        )
        self.average = AveragedModel(model, settings.num_steps)

    def train_on(self, batch: Mapping[str, Tensor], step: int) -> float:
        """One optimiser step on a batch of `samples`; the loss.

        Raises:
            UsageError: the loss is not finite.
        """
        self._model.train()
        images, targets = self._on_device(batch)
        unusable = not len(images)
        if unusable:
            # The other workers wait for this one's gradients: take part, with gradients of zero.
            images, targets = self._blank(batch)
        learning_rate = learning_rate_at(step, self._settings.num_steps, self._settings.learning_rate)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate * group[FACTOR]
        with self._autocast():
            loss = self._step(images, targets.boxes_xyxy_px, targets.label_ids, targets.has_box)[LOSS]
        loss = loss * 0 if unusable else loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(
                f"the loss became {value} at step {step}: the training has diverged. Try a smaller --learning-rate"
            )
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), _LARGEST_GRADIENT_NORM)
        self._optimiser.step()
        self.average.update(self._model, step)
        return value

    @torch.no_grad()
    def evaluate_on(self, batch: Mapping[str, Tensor], counts: Counts) -> None:
        """Counts what the averaged network finds in a batch."""
        images, targets = self._on_device(batch)
        if len(images):
            with self._autocast():
                predicted = self.average.model.predict(images)  # type: ignore[operator]
            counts.add(predicted, targets)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: tensors and plain values, readable without unpickling code."""
        return {
            "model": self._model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.dtype is torch.bfloat16)

    def _on_device(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Targets]:
        """The usable rows: images (n, 3, S, S) in channels_last, and their targets."""
        usable = batch[OUTCOMES] == 0
        label_ids = batch[LABEL_IDS][usable]
        targets = Targets(batch[BOXES][usable], label_ids, label_ids != NO_OBJECT)
        images = batch[IMAGES][usable].permute(0, 3, 1, 2)
        return images.to(self._device), targets.to(self._device)

    def _blank(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Targets]:
        size = batch[IMAGES].shape[1]
        images = torch.zeros(2, size, size, 3, dtype=torch.uint8, device=self._device).permute(0, 3, 1, 2)
        label_ids = torch.full((2, 1), NO_OBJECT, device=self._device)
        return images, Targets(torch.zeros(2, 1, 4, device=self._device), label_ids, label_ids != NO_OBJECT)
