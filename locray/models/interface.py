"""What every model promises, whatever its family. Called by training, labelling and evaluation.

Letters of shapes: B images, S side of the square input in pixels, K places for predictions, M places for objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NO_OBJECT = -1
"""The label id of an unused place in `Targets`."""

LOSS = "loss"
"""The key of the loss to minimise among those that `LabelModel.loss` returns; the others are its parts."""

BACKBONE = "backbone"
"""The submodule that holds a network's pretrained layers, where it has any."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PredictedBoxes(NamedTuple):
    """Predictions of a batch, each image with the same number of places, highest score first.

    An unused place has score 0 and some finite box. Fixed shapes keep the compiled network one static graph.
    """

    boxes_xyxy_px: Tensor
    """(B, K, 4) float32, pixels of the network input, inside it."""
    scores: Tensor
    """(B, K) float32 in [0, 1]."""
    label_ids: Tensor
    """(B, K) int64 in [0, number of classes)."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of a batch, each image with the same number of places, used places first."""

    boxes_xyxy_px: Tensor
    """(B, M, 4) float32, pixels of the network input. Any finite value where `has_box` is false."""
    label_ids: Tensor
    """(B, M) int64; `NO_OBJECT` in an unused place, so an image of unused places shows none of the classes."""
    has_box: Tensor
    """(B, M) bool; false in unused places, and for an object whose class alone is known."""

    def to(self, device: torch.device) -> "Targets":
        """The same targets on `device`."""
        return Targets(self.boxes_xyxy_px.to(device), self.label_ids.to(device), self.has_box.to(device))


class LabelModel(Protocol):
    """A network that finds objects in square images; each one is also a `torch.nn.Module`.

    In evaluation mode the results of an image never depend on the other images of its batch.
    """

    input_size_px: int
    num_classes: int
    max_detections: int
    """Places for predictions: the most objects that it can find in an image."""

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """The scalar to minimise under `LOSS`, and its parts for the log.

        Args:
            images_u8: (B, 3, S, S) uint8, RGB. Best in the channels_last memory format, which a permuted view of
                (B, S, S, 3) has.
            targets: the objects of these images.
        """
        ...

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """Predictions for (B, 3, S, S) uint8 RGB images: `postprocess` of what `network` says."""
        ...

    def network(self, images_u8: Tensor) -> tuple[Tensor, ...]:
        """The part of `predict` whose course and shapes depend on no pixel: one static graph, which holds the backbone.

        Some of what it gives are the tensors of a named tuple; `postprocess` alone knows which.
        """
        ...

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """The rest of `predict`, of what `network` gave: once a batch."""
        ...


class Normalise(torch.nn.Module):
    """From uint8 pixels to the float32 numbers that the network was trained on. Part of the model's graph.

    Args:
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255), persistent=False)

    def forward(self, images_u8: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, 3, S, S) float32 of about zero mean and unit variance."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return (images_u8.to(torch.float32) - shift) * scale
