"""A network's backbone in 8-bit integers, with the ranges of its activations.

The backbone is nearly all of a network's arithmetic. Its weights become integers with a scale for each channel; its
activations get the range that they had over images of the training (static quantisation: Jacob et al. 2018). Neck and
heads, where boxes come from, stay as they are.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from locray.errors import UsageError
from locray.models.interface import BACKBONE, LabelModel

Ranges = Mapping[str, tuple[float, float]]
"""The least and the greatest number of each activation of a backbone, by a name that its graph gives it."""

_ENGINE = "onednn"
_LARGEST = 255


def runs_here() -> bool:
    """Whether this processor multiplies 8-bit integers without overflow, and faster than floats (AVX-512 VNNI)."""
    return _ENGINE in torch.backends.quantized.supported_engines and bool(torch.cpu._is_vnni_supported())


def check_runs_on(device: torch.device) -> None:
    """Refuses what would silently compute in floats, and give answers that are not this model's.

    Raises:
        UsageError: `device` is a GPU, or a processor without the instructions.
    """
    if device.type == "cpu" and runs_here():
        return
    found = (
        "this processor has none" if device.type == "cpu" else "this worker has a GPU (--device cpu leaves it alone)"
    )
    raise UsageError(
        "a backbone in 8-bit integers needs a processor that multiplies them without overflow (`lscpu` lists "
        f"avx512_vnni), and {found}. Elsewhere, take the model that it was made of"
    )


def has_backbone(model: LabelModel) -> bool:
    """Whether there is something to quantise."""
    return isinstance(getattr(model, BACKBONE, None), nn.Module)


def find_ranges(model: LabelModel, run: Iterable[Any]) -> Ranges:
    """The ranges of the backbone's activations while the model runs over images.

    Args:
        model: in evaluation mode, with its batch norms.
        run: each item that is taken of it has run the model over a batch.
    """
    backbone: nn.Module = getattr(model, BACKBONE)
    observed = _observed(backbone, histograms=True)
    setattr(model, BACKBONE, observed)
    try:
        with torch.no_grad():
            for _ in run:
                pass
    finally:
        setattr(model, BACKBONE, backbone)
    return {name: _range_of(observer) for name, observer in _observers(observed)}


def quantise(model: LabelModel, ranges: Ranges) -> None:
    """Puts an integer backbone in the place of the model's own.

    Args:
        model: in evaluation mode, with its batch norms; on the CPU, in float32.
        ranges: of `find_ranges`, of the same network.
    """
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx

    observed = _observed(getattr(model, BACKBONE), histograms=False)
    observers = dict(_observers(observed))
    assert observers.keys() == ranges.keys()
    for name, (least, greatest) in ranges.items():
        observers[name].min_val.fill_(least)
        observers[name].max_val.fill_(greatest)
    with _quietly():
        converted = convert_fx(observed, backend_config=get_onednn_backend_config())
    setattr(model, BACKBONE, _InFloat32(converted))


class _InFloat32(nn.Module):
    """A backbone that takes and gives float32, whatever autocast says: its own integers are its business."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As of `Backbone`."""
        with torch.autocast("cpu", enabled=False):
            return tuple(self.backbone(images.float()))


def _observed(backbone: nn.Module, *, histograms: bool) -> GraphModule:
    """A copy of the backbone as a graph that takes note of its activations."""
    from torch.ao.quantization import QConfig, QConfigMapping
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, default_per_channel_weight_observer
    from torch.ao.quantization.quantize_fx import prepare_fx

    torch.backends.quantized.engine = _ENGINE
    observer = HistogramObserver if histograms else MinMaxObserver
    settings: Any = QConfig(observer.with_args(reduce_range=False), default_per_channel_weight_observer)  # type: ignore[no-untyped-call]
    example = torch.zeros(1, 3, 64, 64)
    with _quietly():
        return prepare_fx(
            copy.deepcopy(backbone).eval(),
            QConfigMapping().set_global(settings),
            (example,),
            backend_config=get_onednn_backend_config(),
        )


def _observers(observed: nn.Module) -> Iterator[tuple[str, Any]]:
    from torch.ao.quantization import ObserverBase

    for name, module in observed.named_children():
        if isinstance(module, ObserverBase):
            yield name, module


def _range_of(observer: Any) -> tuple[float, float]:
    """What an observer that keeps the extremes alone would have to have seen, to choose the same scale."""
    scale, zero_point = (value.item() for value in observer.calculate_qparams())
    return -zero_point * scale, (_LARGEST - zero_point) * scale


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch's quantisation of graphs is to move to another package one day.
        warnings.simplefilter("ignore")
        yield
