"""Batch norms that become part of the convolution before them. Called by `inference`.

Which belong together is found by running the network once, so that no architecture needs rules of its own.
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
    """Gives each convolution whose outputs all go into one batch norm, and nowhere else, that norm's work to do.

    Args:
        network: in evaluation mode; it is changed, and computes the same but for rounding.
        run: runs the network once, whatever the images.

    Returns:
        How many batch norms are gone.
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


class _Uses(TorchFunctionMode):
    """Counts the operations that a tensor goes into, by its id."""

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
        if any(isinstance(value, Tensor) for value in tree_leaves(result)):  # not a question for its shape
            self.counts.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return result


def _pairs(network: nn.Module, run: Callable[[], object]) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """Batch norms with statistics, and the convolution that alone feeds each."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensors, so that no id is given twice
    read: dict[int, nn.BatchNorm2d] = {}
    sources: dict[nn.BatchNorm2d, set[nn.Conv2d | None]] = {}

    def note_output(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        made[id(output)] = layer, output
        uses.counts[id(output)] = 0  # it may have been that of a tensor that is no more

    def note_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        place = id(inputs[0])
        if place in made:
            read[place] = layer
        sources.setdefault(layer, set()).add(made[place][0] if place in made else None)

    uses = _Uses()
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
