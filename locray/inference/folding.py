"""Folds batch norms into the convolutions before them.

The pairs are found by running the network once, so no architecture needs rules of its own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@torch.no_grad()
def fold_batch_norms(network: nn.Module, run: Callable[[], object]) -> int:
    """Folds a batch norm into a convolution if all outputs of the convolution go into that norm and nowhere else.

    Args:
        network: in evaluation mode; it is changed, and computes the same except for rounding.
        run: runs the network once, on any images.

    Returns:
        The number of batch norms that were folded.
    """
    pairs = _pairs(network, run)
    for norm, convolution in pairs.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    for parent in network.modules():
        for name, child in parent.named_children():
            if child in pairs:
                setattr(parent, name, nn.Identity())
    return len(pairs)


class _UseCounter(TorchFunctionMode):
    """Counts the operations that read each tensor, by the tensor's id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) for value in tree_leaves(result)):  # unlike a query of its shape
            self.counts.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return result


def _pairs(network: nn.Module, run: Callable[[], object]) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """Each batch norm that has statistics and a single convolution as its only input, with that convolution."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # keeps the tensors alive, so that no id is reused
    read: dict[int, nn.BatchNorm2d] = {}
    sources: dict[nn.BatchNorm2d, set[nn.Conv2d | None]] = {}

    def note_output(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        made[id(output)] = layer, output
        uses.counts[id(output)] = 0  # the id may have been that of a freed tensor

    def note_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        place = id(inputs[0])
        if place in made:
            read[place] = layer
        sources.setdefault(layer, set()).add(made[place][0] if place in made else None)

    uses = _UseCounter()
    hooks = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(note_output))
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            hooks.append(layer.register_forward_pre_hook(note_input))
    try:
        with uses:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    feeds: dict[nn.Conv2d, set[nn.BatchNorm2d | None]] = {}
    for place, (convolution, _) in made.items():
        reader = read.get(place) if uses.counts[place] == 1 else None
        feeds.setdefault(convolution, set()).add(reader)
    pairs = {}
    for norm, fed_by in sources.items():
        source = fed_by.pop()
        if not fed_by and source is not None and feeds[source] == {norm}:
            pairs[norm] = source
    return pairs
