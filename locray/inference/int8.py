"""Backbones in 8-bit integers: calibration of the ranges of their activations, and conversion.

Nearly all arithmetic of a model is in its backbone. Weights become integers with a scale per channel, activations
integers with a range measured on sample images (static quantization: Jacob et al. 2018). Necks and heads keep floats.

All use of torch's quantization (`torch.ao`, deprecated) is in this module.
"""

import copy
import importlib
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
"""Minimum and maximum of each activation of a backbone, by its name in the traced graph."""

_ENGINE = "onednn"
_MAX_U8 = 255


def runs_here() -> bool:
    """Whether this processor multiplies 8-bit integers without overflow (AVX-512 VNNI)."""
    return _ENGINE in torch.backends.quantized.supported_engines and bool(torch.cpu._is_vnni_supported())


def check_runs_on(device: torch.device) -> None:
    """Refuses machines on which a quantized model would give other results than where it was compared.

    Raises:
        UsageError: this torch has no `torch.ao`, `device` is a GPU, or the processor lacks the instructions.
    """
    try:
        importlib.import_module("torch.ao.quantization.quantize_fx")
    except ImportError as error:
        raise UsageError(
            f"torch {torch.__version__} can't run backbones in 8-bit integers: it has no torch.ao.quantization. "
            "Install an older torch (2.14 has it), or use the model that this one was made from"
        ) from error
    if device.type == "cpu" and runs_here():
        return
    found = (
        "this processor lacks it" if device.type == "cpu" else "this worker has a GPU (--device cpu leaves it unused)"
    )
    raise UsageError(
        "a backbone in 8-bit integers needs a processor that multiplies them without overflow (avx512_vnni in "
        f"`lscpu`), and {found}. Use the model that this one was made from"
    )


def has_backbone(model: LabelModel) -> bool:
    """Whether the model has a backbone that can be quantized."""
    return isinstance(getattr(model, BACKBONE, None), nn.Module)


def calibrate(model: LabelModel, batches: Iterable[Tensor]) -> Ranges:
    """Measures the ranges of the backbone's activations.

    Args:
        model: in evaluation mode, with its batch norms; in float32 on the CPU.
        batches: sample images (B, 3, S, S) uint8.
    """
    backbone: nn.Module = getattr(model, BACKBONE)
    observed = _with_observers(backbone, histograms=True)
    setattr(model, BACKBONE, observed)
    try:
        with torch.no_grad():
            for images_u8 in batches:
                model.predict(images_u8)
    finally:
        setattr(model, BACKBONE, backbone)
    return {name: _range_of(observer) for name, observer in _observers_of(observed)}


def quantize_backbone(model: LabelModel, ranges: Ranges) -> None:
    """Replaces the backbone of a model by a quantized one.

    Args:
        model: in evaluation mode, with its batch norms; in float32 on the CPU. It is changed.
        ranges: result of `calibrate` for the same network.
    """
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx

    observed = _with_observers(getattr(model, BACKBONE), histograms=False)
    observers = dict(_observers_of(observed))
    assert observers.keys() == ranges.keys()
    for name, (minimum, maximum) in ranges.items():
        observers[name].min_val.fill_(minimum)
        observers[name].max_val.fill_(maximum)
    with _without_deprecations():
        converted = convert_fx(observed, backend_config=get_onednn_backend_config())
    setattr(model, BACKBONE, _OutsideAutocast(converted))


class _OutsideAutocast(nn.Module):
    """A quantized backbone, which takes and returns float32 regardless of autocast."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Backbone.forward`."""
        with torch.autocast("cpu", enabled=False):
            return tuple(self.backbone(images.float()))


def _with_observers(backbone: nn.Module, *, histograms: bool) -> GraphModule:
    """A copy of the backbone as a graph with an observer per activation."""
    from torch.ao.quantization import QConfig, QConfigMapping
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, default_per_channel_weight_observer
    from torch.ao.quantization.quantize_fx import prepare_fx

    torch.backends.quantized.engine = _ENGINE
    observer = HistogramObserver if histograms else MinMaxObserver
    settings: Any = QConfig(observer.with_args(reduce_range=False), default_per_channel_weight_observer)  # type: ignore[no-untyped-call]
    example = torch.zeros(1, 3, 64, 64)
    with _without_deprecations():
        return prepare_fx(
            copy.deepcopy(backbone).eval(),
            QConfigMapping().set_global(settings),
            (example,),
            backend_config=get_onednn_backend_config(),
        )


def _observers_of(observed: nn.Module) -> Iterator[tuple[str, Any]]:
    from torch.ao.quantization import ObserverBase

    for name, module in observed.named_children():
        if isinstance(module, ObserverBase):
            yield name, module


def _range_of(observer: Any) -> tuple[float, float]:
    """Minimum and maximum from which a `MinMaxObserver` computes the scale and zero point of this observer."""
    scale, zero_point = (value.item() for value in observer.calculate_qparams())
    return -zero_point * scale, (_MAX_U8 - zero_point) * scale


@contextmanager
def _without_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
        yield
