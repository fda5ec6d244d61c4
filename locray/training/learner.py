"""A network in training: one step, one evaluation, and the state to go on from. Called by each worker of the loop.

Knows torch and nothing of Ray, so that a training step can be tested in a second.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from locray.models.backbones import freeze_backbone, training_mode
from locray.models.interface import LOSS, NO_OBJECT, LabelModel, PredictedBoxes, Targets
from locray.training.optimise import AveragedModel, OptimiserSettings, build_optimiser, set_rates
from locray.training.process_group import ProcessGroup
from locray.training.samples import BOXES, HAS_BOX, IMAGES, LABEL_IDS, OUTCOMES

Wrap = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How a network learns."""

    optimiser: OptimiserSettings
    num_steps: int
    """Of the whole run."""
    accumulate: int
    """Parts that a batch is computed in."""
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
        settings: how it learns.
        device: where the network lies.
        pretrained_stages: parameters that know something already, from the image on.
        wrap: makes several workers learn together, such as DistributedDataParallel.
    """

    def __init__(
        self,
        model: LabelModel,
        settings: LearnerSettings,
        device: torch.device,
        pretrained_stages: Sequence[Sequence[nn.Parameter]] = (),
        wrap: Wrap = lambda module: module,
    ) -> None:
        assert isinstance(model, nn.Module)
        self._model: nn.Module = model
        self._settings = settings
        self._device = device
        self._is_pretrained = bool(pretrained_stages)
        self._wrap = wrap
        self._step = wrap(TrainingStep(model))
        self._frozen = False
        self._optimiser = build_optimiser(model, settings.optimiser, pretrained_stages)
        self.gradient_norm = 0.0
        """Of the step that was computed last, over all workers, before it was clipped."""
        self.average = AveragedModel(model, settings.num_steps * settings.optimiser.ema)

    @property
    def finds_one_object(self) -> bool:
        """Whether the network gives one object an image."""
        model: Any = self._model
        return bool(model.max_detections == 1)

    @property
    def precision_bits(self) -> int:
        """Bits of a number of the arithmetic: 16 or 32."""
        return torch.finfo(self._settings.dtype).bits

    def freeze(self, frozen: bool) -> None:
        """Keeps pretrained layers as they are from now on, their running statistics too, or lets them learn again."""
        if frozen == self._frozen or not self._is_pretrained:
            return
        self._frozen = frozen
        freeze_backbone(self._model, frozen=frozen)
        # The wrapping has noted which parameters take part.
        self._step = self._wrap(TrainingStep(self._model))  # type: ignore[arg-type]

    def compute(self, batch: Mapping[str, Tensor]) -> float:
        """The loss of a batch of `samples`, and its gradients, clipped. Not finite where the training has diverged."""
        loss = self._compute(batch)
        clip_norm = self._settings.optimiser.clip_norm
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm))
        return loss

    def _compute(self, batch: Mapping[str, Tensor]) -> float:
        # A detector's few images a batch would only spoil the statistics that came with the weights.
        small_batches = self._is_pretrained and not self.finds_one_object
        training_mode(self._model, backbone_statistics=not (self._frozen or small_batches))
        self._optimiser.zero_grad(set_to_none=True)
        images, targets = self._on_device(batch)
        if not len(images):
            # The other workers wait for this one's gradients: take part, with gradients of zero.
            images, targets = self._blank(batch)
            for norm in _batch_norms(self._model):
                norm.eval()
            return self._backward(images, targets, 0.0, last=True)
        parts = min(self._settings.accumulate, len(images))
        bounds = [index * len(images) // parts for index in range(parts + 1)]
        total = 0.0
        for start, end in pairwise(bounds):
            part = Targets(targets.boxes_xyxy_px[start:end], targets.label_ids[start:end], targets.has_box[start:end])
            share = (end - start) / len(images)
            total += self._backward(images[start:end], part, share, last=end == len(images))
        return total

    def apply(self, step: int) -> float:
        """Makes the step that `compute` has prepared; the learning rate."""
        learning_rate = set_rates(self._optimiser, self._settings.optimiser, step, self._settings.num_steps)
        self._optimiser.step()
        self.average.update(self._model, step)
        return learning_rate

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> PredictedBoxes | None:
        """What the averaged network finds in the usable images of a batch; on the CPU."""
        images, _ = self._on_device(batch)
        if not len(images):
            return None
        with self._autocast():
            found = self.average.model.predict(images)  # type: ignore[operator]
        cpu = torch.device("cpu")
        boxes, scores, label_ids = (part.to(cpu) for part in found)
        return PredictedBoxes(boxes.float(), scores.float(), label_ids)

    def share_statistics(self, team: ProcessGroup) -> None:
        """Gives all workers the mean of their batch norms' statistics; of weights they have the same already."""
        for model in (self._model, self.average.model):
            norms = _batch_norms(model)
            own = [part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]
            if team.size == 1 or not own:
                continue
            mean = team.total(torch.cat([part.flatten() for part in own]).double()) / team.size
            for part, values in zip(own, torch.split(mean, [part.numel() for part in own]), strict=True):
                part.copy_(values)

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

    def _backward(self, images: Tensor, targets: Targets, share: float, *, last: bool) -> float:
        """Adds the gradients of a part of the batch that weighs `share`; its part of the loss."""
        with self._only_here(last), self._autocast():
            loss = self._step(images, targets.boxes_xyxy_px, targets.label_ids, targets.has_box)[LOSS] * share
        with self._only_here(last):
            # Backward also of a loss that isn't finite: other workers wait for these gradients.
            loss.backward()
        return float(loss.detach())

    def _only_here(self, last: bool) -> AbstractContextManager[None]:
        """Without the exchange of gradients, but for the last part of a batch."""
        if last or not isinstance(self._step, DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[None] = self._step.no_sync()
        return context

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.dtype is torch.bfloat16)

    def _on_device(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Targets]:
        """The usable rows: images (n, 3, S, S) in channels_last, and their targets."""
        usable = batch[OUTCOMES] == 0
        targets = Targets(batch[BOXES][usable], batch[LABEL_IDS][usable], batch[HAS_BOX][usable])
        images = batch[IMAGES][usable].permute(0, 3, 1, 2)
        return images.to(self._device), targets.to(self._device)

    def _blank(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Targets]:
        size = batch[IMAGES].shape[1]
        images = torch.zeros(2, size, size, 3, dtype=torch.uint8, device=self._device).permute(0, 3, 1, 2)
        label_ids = torch.full((2, 1), NO_OBJECT, device=self._device)
        return images, Targets(torch.zeros(2, 1, 4, device=self._device), label_ids, label_ids != NO_OBJECT)


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
