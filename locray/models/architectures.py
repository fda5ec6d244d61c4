"""The registry of model families. A new family is one module and one line in `MODELS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from locray.errors import UsageError, did_you_mean
from locray.models import detector, localizer, small_cnn, small_resnet
from locray.models.interface import LabelModel


class ModelBuilder(Protocol):
    """Builds a network of a family."""

    def __call__(self, variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
        """Returns a network in training mode, on the CPU.

        Args:
            variant: the part of the architecture's name after the slash; empty where there is none.
            num_classes: number of classes.
            input_size_px: side of the square input.
            weights: URI or torchvision name of pretrained weights; None for random ones.

        Raises:
            UsageError: the family has no such variant, input size or weights.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """An entry of `MODELS`."""

    build: ModelBuilder
    default_input_size_px: Callable[[str], int]
    """From a variant to the default side of its square input, in pixels."""


MODELS = {
    "small_cnn": ModelFamily(small_cnn.build_small_cnn, lambda _: small_cnn.DEFAULT_INPUT_SIZE_PX),
    "small_resnet": ModelFamily(small_resnet.build_small_resnet, lambda _: small_resnet.DEFAULT_INPUT_SIZE_PX),
    "localizer": ModelFamily(localizer.build_localizer, lambda _: localizer.DEFAULT_INPUT_SIZE_PX),
    "detector": ModelFamily(detector.build_detector, detector.default_input_size_px),
}
"""Families by name. An architecture is named `<family>` or `<family>/<variant>`."""


def build_model(
    architecture: str, num_classes: int, input_size_px: int | None = None, weights: str | None = None
) -> LabelModel:
    """Builds a network by name, in training mode, on the CPU.

    Args:
        architecture: such as `small_cnn`, `localizer/resnet18` or `detector/fcos`.
        num_classes: number of classes, at least 1.
        input_size_px: side of the square input; None for the default of the architecture.
        weights: URI or torchvision name of pretrained weights; None for random ones.

    Raises:
        UsageError: unknown name, unsupported input size, or weights that don't fit.
    """
    assert num_classes >= 1
    family, variant = _family(architecture)
    return family.build(variant, num_classes, input_size_px or family.default_input_size_px(variant), weights)


def default_input_size_px(architecture: str) -> int:
    """Default side of the square input of an architecture, in pixels."""
    family, variant = _family(architecture)
    return family.default_input_size_px(variant)


def _family(architecture: str) -> tuple[ModelFamily, str]:
    name, _, variant = architecture.partition("/")
    if name not in MODELS:
        raise UsageError(
            f"no model named {architecture!r}{did_you_mean(name, MODELS)}. Known: small_cnn, small_resnet, "
            "localizer/<backbone>, detector/<name>[/<backbone>], where <backbone> is a classification network of "
            "torchvision such as mobilenet_v2 or resnet18"
        )
    return MODELS[name], variant
