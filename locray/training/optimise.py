"""Optimiser, learning-rate schedule and averaged weights. Called by the learner."""

import copy
import math

import torch
from torch import nn

from locray.models.contract import TRUNK

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""
PRETRAINED_FACTOR = 0.25
"""Learning rate of pretrained layers relative to that of new ones."""
FACTOR = "factor"
"""Key of a parameter group: what its learning rate is multiplied with."""
AVERAGED_SHARE = 0.04
"""Time constant of the averaged weights, as a share of all steps."""


def build_optimiser(
    model: nn.Module, learning_rate: float, weight_decay: float, pretrained_factor: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); biases and the scales of norms are not decayed.

    Args:
        model: the network.
        learning_rate: the peak.
        weight_decay: decoupled weight decay.
        pretrained_factor: by how much slower the part below `contract.TRUNK` learns: what it knows from many images
            should outlive the few images of the data set.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = pretrained_factor if name.startswith(f"{TRUNK}.") else 1.0
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay, FACTOR: factor} for (factor, decay), group in groups.items()],
        lr=learning_rate,
    )


def learning_rate_at(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine to zero. A function of the step alone: nothing to save or restore."""
    warm_up_steps = max(1, round(num_steps * WARM_UP))
    if step < warm_up_steps:
        return peak * (step + 1) / warm_up_steps
    done = (step - warm_up_steps) / max(1, num_steps - warm_up_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class AveragedModel:
    """An exponential moving average of a model's weights, which generalises better than the last step's.

    Its memory grows from nothing, so that early epochs are not held back by the random start.
    """

    def __init__(self, model: nn.Module, num_steps: int) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = 1 - 1 / max(2.0, num_steps * AVERAGED_SHARE)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes up the weights after `step` (from 0)."""
        keep = min(self._decay, (step + 1) / (step + 10))
        for average, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(new, 1 - keep)
            else:
                average.copy_(new)
