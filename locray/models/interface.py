"""The interface of every model, and its input and output tensors.

Shapes: B images, S side of the square input in pixels, K predictions per image, M objects per image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NO_OBJECT = -1
"""Label id of an unused place in `Targets`."""

LOSS = "loss"
"""Key of the total loss in the result of `LabelModel.loss`; the other keys are its parts."""

BACKBONE = "backbone"
"""Name of the submodule that holds the pretrained layers, in models that have any."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PredictedBoxes(NamedTuple):
    """Predictions for a batch: K places per image, highest score first.

    An unused place has score 0 and an arbitrary finite box. Fixed shapes keep a compiled network one static graph.
    """

    boxes_xyxy_px: Tensor
    """(B, K, 4) float32, in pixels of the network input, clipped to it."""
    scores: Tensor
    """(B, K) float32 in [0, 1]."""
    label_ids: Tensor
    """(B, K) int64 in [0, num_classes)."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Objects of a batch: M places per image, used places first."""

    boxes_xyxy_px: Tensor
    """(B, M, 4) float32, in pixels of the network input. Any finite value where `has_box` is false."""
    label_ids: Tensor
    """(B, M) int64; `NO_OBJECT` in unused places. An image with unused places only shows none of the classes."""
    has_box: Tensor
    """(B, M) bool; false in unused places and for objects of which only the class is known."""

    def to(self, device: torch.device) -> "Targets":
        """Returns the targets on `device`."""
        return Targets(self.boxes_xyxy_px.to(device), self.label_ids.to(device), self.has_box.to(device))


class LabelModel(Protocol):
    """A network that finds objects in square images. Every implementation is also a `torch.nn.Module`.

    In evaluation mode the predictions for an image never depend on the other images of its batch.
    """

    input_size_px: int
    num_classes: int
    max_detections: int
    """K: maximum number of objects found per image."""
    has_static_postprocess: bool
    """Whether `postprocess` is one static graph on a GPU, like `network`. On a CPU its work depends on the boxes."""

    def loss(self, images_u8: Tensor, targets: Targets) -> Mapping[str, Tensor]:
        """Returns the scalar to minimise under `LOSS`, and its parts for the log.

        Args:
            images_u8: (B, 3, S, S) uint8, RGB. Fastest in the channels_last memory format, which a permuted view of
                (B, S, S, 3) has.
            targets: objects of these images.
        """
        ...

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """Predictions for (B, 3, S, S) uint8 RGB images: `postprocess(network(images_u8))`."""
        ...

    def network(self, images_u8: Tensor) -> tuple[Tensor, ...]:
        """The part of `predict` without data-dependent shapes or branches: one static graph, backbone included.

        The meaning of the output tensors is private to the model; they are the input of `postprocess`.
        """
        ...

    def postprocess(self, outputs: Sequence[Tensor]) -> PredictedBoxes:
        """The rest of `predict`, run once per batch on the outputs of `network`."""
        ...


class Normalise(torch.nn.Module):
    """Converts uint8 pixels to normalised float32. Part of the model's graph.

    Args:
        mean: mean per channel, of pixels in [0, 1].
        std: standard deviation per channel, of pixels in [0, 1].
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255), persistent=False)

    def forward(self, images_u8: Tensor) -> Tensor:
        """Maps (B, 3, S, S) uint8 to (B, 3, S, S) float32 of about zero mean and unit variance."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        return (images_u8.to(torch.float32) - shift) * scale
