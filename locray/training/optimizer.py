"""Optimizer, learning-rate schedule and averaged weights."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locray.config import LearningOptions

FACTOR = "factor"
"""Key of a parameter group: factor of its learning rate."""

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_MOMENTUM = (0.95, 0.85)
_SGD_MOMENTUM = 0.9


def build_optimizer(
    model: nn.Module, options: LearningOptions, pretrained_stages: Sequence[Sequence[nn.Parameter]] = ()
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), Adam, or SGD with Nesterov momentum. Biases and norms have no weight decay.

    Args:
        model: The network.
        options: Which optimizer, and its settings.
        pretrained_stages: Pretrained parameters, from the input on. They learn slower, the first stage slowest: what
            was learned from many images should survive the few images of the data set.
    """
    factors: dict[int, float] = {}
    for depth, stage in enumerate(reversed(pretrained_stages)):
        factor = options.pretrained_rate * options.layer_decay**depth
        factors |= {id(parameter): factor for parameter in stage}
    # Parameters that may be frozen at first get groups of their own, whatever their rate: torch's fused SGD fails on a
    # group in which only some have a momentum.
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        decay = options.effective_weight_decay if parameter.ndim > 1 else 0.0
        key = (id(parameter) in factors, factors.get(id(parameter), 1.0), decay)
        groups.setdefault(key, []).append(parameter)
    parameter_groups = [
        {"params": group, "weight_decay": decay, FACTOR: factor} for (_, factor, decay), group in groups.items()
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameter_groups, lr=options.peak_learning_rate, momentum=_SGD_MOMENTUM, nesterov=True, fused=True
        )
    optimizer_class = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return optimizer_class(parameter_groups, lr=options.peak_learning_rate, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, options: LearningOptions, step: int, num_steps: int) -> float:
    """Sets learning rates, and under one-cycle the momentum, for a step. Returns the learning rate of new layers."""
    rate = learning_rate_at(step, num_steps, options)
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR]
        if options.schedule == "one-cycle":
            momentum = _one_cycle_momentum_at(step, num_steps, options.warm_up)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
    return rate


def learning_rate_at(step: int, num_steps: int, options: LearningOptions) -> float:
    """Learning rate of new layers at a step. A function of the step alone: there is no state to save.

    `cosine`: linear warm-up, then half a cosine to zero. `one-cycle` (Smith and Topin 2018): half a cosine up from a
    25th of the peak, half a cosine down to zero. `constant`: linear warm-up, then the peak.
    """
    peak, num_warm_up = options.peak_learning_rate, _num_warm_up_steps(num_steps, options.warm_up)
    if step < num_warm_up:
        if options.schedule == "one-cycle":
            return peak * (_ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * _half_cosine(step / num_warm_up))
        return peak * (step + 1) / num_warm_up
    if options.schedule == "constant":
        return peak
    return peak * (1 - _half_cosine(min(1.0, (step - num_warm_up) / max(1, num_steps - num_warm_up))))


def _one_cycle_momentum_at(step: int, num_steps: int, warm_up: float) -> float:
    """Falls while the learning rate rises, and rises while that falls."""
    high, low = _ONE_CYCLE_MOMENTUM
    num_warm_up = _num_warm_up_steps(num_steps, warm_up)
    if step < num_warm_up:
        return high + (low - high) * _half_cosine(step / num_warm_up)
    return low + (high - low) * _half_cosine(min(1.0, (step - num_warm_up) / max(1, num_steps - num_warm_up)))


def _num_warm_up_steps(num_steps: int, warm_up: float) -> int:
    return max(1, round(num_steps * warm_up))


def _half_cosine(share: float) -> float:
    """Half a cosine from 0 at 0 to 1 at 1."""
    return 0.5 * (1 - math.cos(math.pi * share))


class AveragedModel:
    """Exponential moving average of a model's weights, which generalises better than the weights of the last step.

    Its memory starts at zero and grows, so that early epochs don't suffer from the random initial weights.

    Args:
        model: The network to average.
        memory_steps: Time constant in steps; with 0 or 1 the average is the network itself.
    """

    def __init__(self, model: nn.Module, memory_steps: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = 1 - 1 / max(1.0, memory_steps)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Adds the weights after `step` (from 0) to the average."""
        keep = min(self._decay, (step + 1) / (step + 10))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        # In one call: a GPU would take longer to start hundreds of small kernels than to run them.
        averages, new = zip(*((one, other) for one, other in pairs if one.is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, new, 1 - keep)
        for average, other in pairs:
            if not average.is_floating_point():
                average.copy_(other)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy of the averaged weights on the CPU."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
