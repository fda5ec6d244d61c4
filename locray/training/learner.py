"""A network in training: one step, predictions, and the state to resume from. Without Ray."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from locray.config import LearningOptions
from locray.inference.devices import dtype_for
from locray.models.backbones import freeze_backbone, pretrained_stages, training_mode
from locray.models.interface import LOSS, NO_OBJECT, LabelModel, PredictedBoxes, Targets
from locray.training.batches import BOXES, HAS_BOX, IMAGES, LABEL_IDS, OUTCOMES
from locray.training.optimizer import AveragedModel, build_optimizer, set_rates
from locray.training.process_group import ProcessGroup

Wrap = Callable[[nn.Module], nn.Module]


_CUBLAS_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_EIGHT_OF_4_MIB = ":4096:8"
_MIN_SCALE = 1.0
"""Below this scale of the loss, it isn't float16 that made the gradients overflow."""


def use_deterministic_algorithms() -> None:
    """Makes a GPU compute the same weights again from the same batches. Changes nothing on a CPU.

    By default cuDNN times its algorithms and takes the fastest, some backward passes add in the order in which threads
    finish, and cuBLAS splits sums by the workspace that is free. An operation without a deterministic kernel still
    runs, with a warning. With several workers, the order in which gradients are added remains undetermined.

    To be called before cuBLAS is first used: it reads its environment variable then. A value set by the user stays.
    """
    os.environ.setdefault(_CUBLAS_WORKSPACES, _EIGHT_OF_4_MIB)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default torch would then also fill all new memory, to expose reads before writes: one pass more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class TrainingStep(nn.Module):
    """The loss as a forward pass, so that DistributedDataParallel can wrap it."""

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
        model: The network, on its device.
        options: How it learns.
        num_steps: Steps of the whole run.
        device: Where the network lies.
        pretrained: Whether the network starts with pretrained weights.
        wrap: Makes several workers learn together, such as DistributedDataParallel.
    """

    def __init__(
        self,
        model: LabelModel,
        options: LearningOptions,
        num_steps: int,
        device: torch.device,
        *,
        pretrained: bool = False,
        wrap: Wrap = lambda module: module,
    ) -> None:
        assert isinstance(model, nn.Module)
        self._model: nn.Module = model
        self._options = options
        self._num_steps = num_steps
        self._dtype = dtype_for(options.precision, device)
        self._device = device
        stages = pretrained_stages(model) if pretrained else []
        self._has_pretrained_layers = bool(stages)
        self._wrap = wrap
        self._step = wrap(TrainingStep(model))
        self._frozen = False
        self._optimizer = build_optimizer(model, options, stages)
        # Small gradients vanish in float16: the loss is scaled up, and steps whose gradients overflow are skipped.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        self.gradient_norm = 0.0
        """Norm of the latest gradients over all workers, before clipping."""
        self.average = AveragedModel(model, num_steps * options.ema)

    @property
    def finds_one_object(self) -> bool:
        """Whether the network predicts one object per image."""
        model: Any = self._model
        return bool(model.max_detections == 1)

    @property
    def precision_bits(self) -> int:
        """Bits per number of the arithmetic, 16 or 32. Weights are float32 in both cases."""
        return torch.finfo(self._dtype).bits

    @property
    def gradients_overflowed(self) -> bool:
        """Whether float16 was too small for the latest gradients. The step is skipped, and the next scale smaller."""
        too_large = not math.isfinite(self.gradient_norm)
        return self._scaler.is_enabled() and too_large and self._scaler.get_scale() > _MIN_SCALE

    def freeze(self, frozen: bool) -> None:
        """Freezes pretrained layers, including their running statistics, or unfreezes them."""
        if frozen == self._frozen or not self._has_pretrained_layers:
            return
        self._frozen = frozen
        freeze_backbone(self._model, frozen=frozen)
        # The wrapper has recorded which parameters take part.
        self._step = self._wrap(TrainingStep(self._model))  # type: ignore[arg-type]

    def compute(self, batch: Mapping[str, Tensor]) -> float:
        """Computes gradients, clipped. Returns the loss, which is not finite where the training has diverged."""
        loss = self._compute(batch)
        self._scaler.unscale_(self._optimizer)
        clip_norm = self._options.clip_norm
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm)
        # Read together: each read waits for the GPU.
        loss_value, self.gradient_norm = torch.stack([loss, norm.double()]).tolist()
        return float(loss_value)

    def _compute(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Computes gradients. Returns the loss as a float64 scalar on the device."""
        # A detector's few images per batch would only spoil the statistics that came with the weights.
        small_batches = self._has_pretrained_layers and not self.finds_one_object
        training_mode(self._model, backbone_statistics=not (self._frozen or small_batches))
        self._optimizer.zero_grad(set_to_none=True)
        images, targets = self._on_device(batch)
        if not len(images):
            # The other workers wait for this one's gradients: take part with gradients of zero.
            images, targets = self._blank(batch)
            for norm in _batch_norms(self._model):
                norm.eval()
            return self._backward(images, targets, 0.0, last=True)
        parts = min(self._options.accumulate, len(images))
        bounds = [index * len(images) // parts for index in range(parts + 1)]
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for start, end in pairwise(bounds):
            part = Targets(targets.boxes_xyxy_px[start:end], targets.label_ids[start:end], targets.has_box[start:end])
            share = (end - start) / len(images)
            total += self._backward(images[start:end], part, share, last=end == len(images))
        return total

    def apply(self, step: int) -> float:
        """Takes the step that `compute` has prepared. Returns the learning rate."""
        learning_rate = set_rates(self._optimizer, self._options, step, self._num_steps)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.average.update(self._model, step)
        return learning_rate

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> PredictedBoxes | None:
        """Predictions of the averaged network for the usable images of a batch, on the CPU; None if there are none."""
        images, _ = self._on_device(batch)
        if not len(images):
            return None
        with self._autocast():
            found = self.average.model.predict(images)  # type: ignore[operator]
        cpu = torch.device("cpu")
        boxes, scores, label_ids = (part.to(cpu) for part in found)
        return PredictedBoxes(boxes.float(), scores.float(), label_ids)

    def share_statistics(self, group: ProcessGroup) -> None:
        """Sets the running statistics of batch norms to their mean over all workers. Weights are the same anyway."""
        for model in (self._model, self.average.model):
            norms = _batch_norms(model)
            own = [part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None]
            if group.size == 1 or not own:
                continue
            mean = group.all_reduce_sum(torch.cat([part.flatten() for part in own]).double()) / group.size
            for part, values in zip(own, torch.split(mean, [part.numel() for part in own]), strict=True):
                part.copy_(values)

    def state(self) -> dict[str, Any]:
        """State to resume from: tensors and plain values, readable without unpickling code."""
        return {
            "model": self._model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores a `state`."""
        self._model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _backward(self, images: Tensor, targets: Targets, share: float, *, last: bool) -> Tensor:
        """Adds the gradients of a part of the batch with weight `share`. Returns the weighted loss."""
        with self._gradient_exchange(last), self._autocast():
            loss = self._step(images, targets.boxes_xyxy_px, targets.label_ids, targets.has_box)[LOSS] * share
        with self._gradient_exchange(last):
            # Also for a loss that isn't finite: other workers wait for these gradients.
            self._scaler.scale(loss).backward()
        weighted: Tensor = loss.detach().double()
        return weighted

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[None]:
        """Context in which workers exchange gradients after the last part of a batch only."""
        if last or not isinstance(self._step, DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[None] = self._step.no_sync()
        return context

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not torch.float32)

    def _on_device(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Targets]:
        """Usable rows on the device: images (n, 3, S, S) uint8 in channels_last, and their targets."""
        usable = batch[OUTCOMES] == 0
        targets = Targets(batch[BOXES][usable], batch[LABEL_IDS][usable], batch[HAS_BOX][usable])
        images = batch[IMAGES][usable]
        if self._device.type == "cuda":
            # From pinned memory, which the allocator reuses only after the copy, the host needn't wait for it.
            images = images.pin_memory()
        return images.to(self._device, non_blocking=True).permute(0, 3, 1, 2), targets.to(self._device)

    def _blank(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Targets]:
        size = batch[IMAGES].shape[1]
        images = torch.zeros(2, size, size, 3, dtype=torch.uint8, device=self._device).permute(0, 3, 1, 2)
        label_ids = torch.full((2, 1), NO_OBJECT, device=self._device)
        return images, Targets(torch.zeros(2, 1, 4, device=self._device), label_ids, label_ids != NO_OBJECT)


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
