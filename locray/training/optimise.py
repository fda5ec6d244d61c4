"""Optimiser, learning-rate schedule and averaged weights. Called by the learner."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from locray.config import TrainConfig

FACTOR = "factor"
"""Key of a parameter group: what its learning rate is multiplied with."""

_LEARNING_RATE = {"adamw": 2e-3, "adam": 1e-3, "sgd": 1e-2}
_WEIGHT_DECAY = {"adamw": 5e-2, "adam": 0.0, "sgd": 1e-4}
"""Only AdamW's is apart from the gradients: as much of it would keep the others from learning at all."""

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_MOMENTUM = (0.95, 0.85)
_SGD_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """How gradients become steps; see the options of the same names."""

    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: float
    schedule: Literal["cosine", "one-cycle", "constant"]
    warm_up: float
    weight_decay: float
    clip_norm: float
    ema: float
    pretrained_rate: float
    layer_decay: float

    @classmethod
    def of(cls, config: TrainConfig) -> "OptimiserSettings":
        """As the options of a command say, and what suits the optimiser where they say nothing."""
        settings = {field.name: getattr(config, field.name) for field in fields(cls)}
        for name, usual in (("learning_rate", _LEARNING_RATE), ("weight_decay", _WEIGHT_DECAY)):
            if settings[name] is None:
                settings[name] = usual[config.optimizer]
        return cls(**settings)


def build_optimiser(
    model: nn.Module, settings: OptimiserSettings, pretrained_stages: Sequence[Sequence[nn.Parameter]] = ()
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), Adam, or SGD with Nesterov's momentum; only matrices and kernels decay.

    Args:
        model: the network.
        settings: which optimiser, and its numbers.
        pretrained_stages: parameters that know something already, from the image on. They learn slower, the first
            stage slowest: what is known from many images should outlive the few images of the data set.
    """
    factors: dict[int, float] = {}
    for depth, stage in enumerate(reversed(pretrained_stages)):
        factor = settings.pretrained_rate * settings.layer_decay**depth
        factors |= {id(parameter): factor for parameter in stage}
    # Those that may be frozen at first lie in groups of their own, whatever their rate: torch's fused SGD fails on a
    # group of which only some have moved before.
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        key = (id(parameter) in factors, factors.get(id(parameter), 1.0), decay)
        groups.setdefault(key, []).append(parameter)
    described = [
        {"params": group, "weight_decay": decay, FACTOR: factor} for (_, factor, decay), group in groups.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(described, lr=settings.learning_rate, momentum=_SGD_MOMENTUM, nesterov=True, fused=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(described, lr=settings.learning_rate, fused=True)


def set_rates(optimiser: torch.optim.Optimizer, settings: OptimiserSettings, step: int, num_steps: int) -> float:
    """Gives every parameter group its learning rate, and under one-cycle its momentum, for a step; the rate."""
    rate = learning_rate_at(step, num_steps, settings)
    for group in optimiser.param_groups:
        group["lr"] = rate * group[FACTOR]
        if settings.schedule == "one-cycle":
            momentum = _one_cycle_momentum_at(step, num_steps, settings.warm_up)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
    return rate


def learning_rate_at(step: int, num_steps: int, settings: OptimiserSettings) -> float:
    """The learning rate of new layers at a step. A function of the step alone: nothing to save or restore.

    `cosine`: linear warm-up, then half a cosine to zero. `one-cycle` (Smith and Topin 2018): half a cosine up from a
    25th of the peak, half a cosine down to zero. `constant`: linear warm-up, then the peak.
    """
    peak, rising = settings.learning_rate, _num_rising(num_steps, settings.warm_up)
    if step < rising:
        if settings.schedule == "one-cycle":
            return peak * (_ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * _risen(step / rising))
        return peak * (step + 1) / rising
    if settings.schedule == "constant":
        return peak
    return peak * (1 - _risen(min(1.0, (step - rising) / max(1, num_steps - rising))))


def _one_cycle_momentum_at(step: int, num_steps: int, warm_up: float) -> float:
    """Falls while the learning rate rises, and rises while that falls."""
    high, low = _ONE_CYCLE_MOMENTUM
    rising = _num_rising(num_steps, warm_up)
    if step < rising:
        return high + (low - high) * _risen(step / rising)
    return low + (high - low) * _risen(min(1.0, (step - rising) / max(1, num_steps - rising)))


def _num_rising(num_steps: int, warm_up: float) -> int:
    return max(1, round(num_steps * warm_up))


def _risen(share: float) -> float:
    """Half a cosine from 0 at 0 to 1 at 1."""
    return 0.5 * (1 - math.cos(math.pi * share))


class AveragedModel:
    """An exponential moving average of a model's weights, which generalises better than the last step's.

    Its memory grows from nothing, so that early epochs are not held back by the random start.

    Args:
        model: the network to follow.
        memory_steps: time constant in steps; 0 or 1: the average is the network itself.
    """

    def __init__(self, model: nn.Module, memory_steps: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = 1 - 1 / max(1.0, memory_steps)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes up the weights after `step` (from 0)."""
        keep = min(self._decay, (step + 1) / (step + 10))
        for average, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(new, 1 - keep)
            else:
                average.copy_(new)

    def snapshot(self) -> dict[str, Tensor]:
        """The weights as they are now, on the CPU; later updates leave them as they are."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
