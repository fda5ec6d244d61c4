"""The networks, their parts, and the artifact that holds one. Called by training, labelling and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from locray.errors import UsageError, did_you_mean
from locray.models import detector, localizer, small_cnn, small_resnet
from locray.models.interface import LabelModel


class ModelBuilder(Protocol):
    """Builds the networks of a family."""

    def __call__(self, variant: str, num_classes: int, input_size_px: int, weights: str | None) -> LabelModel:
        """A network in training mode, on the CPU.

        Args:
            variant: what follows the family's name and a slash, or an empty string.
            num_classes: number of classes.
            input_size_px: side of the square input.
            weights: URI or name of pretrained weights, or none for random ones.

        Raises:
            UsageError: the family has no such variant, input size or weights.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A line of `MODELS`."""

    build: ModelBuilder
    default_input_size_px: Callable[[str], int]
    """The side of the square input that a variant usually takes, in pixels."""


MODELS = {
    "small_cnn": ModelFamily(small_cnn.build_small_cnn, lambda _: small_cnn.DEFAULT_INPUT_SIZE_PX),
    "small_resnet": ModelFamily(small_resnet.build_small_resnet, lambda _: small_resnet.DEFAULT_INPUT_SIZE_PX),
    "localizer": ModelFamily(localizer.build_localizer, lambda _: localizer.DEFAULT_INPUT_SIZE_PX),
    "detector": ModelFamily(detector.build_detector, detector.default_input_size_px),
}
"""The families by name. An architecture is named `<family>` or `<family>/<variant>`."""


def build_model(
    architecture: str, num_classes: int, input_size_px: int | None = None, weights: str | None = None
) -> LabelModel:
    """A network by name, in training mode, on the CPU.

    Args:
        architecture: such as `small_cnn`, `localizer/resnet18` or `detector/fcos`.
        num_classes: number of classes, at least 1.
        input_size_px: side of the square input; none for the usual one.
        weights: URI or name of pretrained weights, or none for random ones.

    Raises:
        UsageError: unknown name, input size that the network can't take, or weights that don't fit.
    """
    assert num_classes >= 1
    family, variant = _family(architecture)
    return family.build(variant, num_classes, input_size_px or family.default_input_size_px(variant), weights)


def default_input_size_px(architecture: str) -> int:
    """The side of the square input that this architecture usually takes, in pixels."""
    family, variant = _family(architecture)
    return family.default_input_size_px(variant)


def _family(architecture: str) -> tuple[ModelFamily, str]:
    name, _, variant = architecture.partition("/")
    if name not in MODELS:
        raise UsageError(
            f"no model named {architecture!r}{did_you_mean(name, MODELS)}. Known: small_cnn, small_resnet, "
            "localizer/<backbone>, detector/<name>[/<backbone>], where a backbone is a network of torchvision, such as "
            "mobilenet_v2 or resnet18"
        )
    return MODELS[name], variant
