"""A network made ready to predict: as fast as its device allows, with the same answers. Called by labelling.

Letters of shapes: B images, S side of the square input in pixels.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou

from locray.inference import cuda, int8
from locray.inference.folding import fold_batch_norms
from locray.models.interface import LabelModel, PredictedBoxes

StaticNetwork = Callable[[Tensor], tuple[Tensor, ...]]
"""From (B, S, S, 3) uint8 images on the network's device to what `LabelModel.network` gives."""

_log = logging.getLogger(__name__)

_ROUNDS = 3
_WORTHWHILE = 1.04
_SCORE_BOUND = 0.05
_SAME_BOX_IOU = 0.9
_LEAST_SAME_BOXES = 0.5
"""Of the images. Rounding alone moves few; where a network knows nothing, candidates of one score change places."""


class Likeness(NamedTuple):
    """How near the answers of another form of a network are to its own, for the same images."""

    score_difference: float
    """The largest one; not a number where a score is none."""
    same_boxes: float
    """The share of images whose best box is among the other's, by an IoU of 0.9."""

    @classmethod
    def of(cls, answer: PredictedBoxes, other: PredictedBoxes) -> "Likeness":
        """Of two answers of the same shapes."""
        difference = float((other.scores - answer.scores).abs().max())
        pairs = zip(answer.boxes_xyxy_px[:, :1], other.boxes_xyxy_px, strict=True)
        # Unused places have boxes without an area, whose overlap is no number.
        same = [((box_iou(best, boxes) >= _SAME_BOX_IOU) | (best == boxes).all(1)).any() for best, boxes in pairs]
        return cls(difference, float(torch.stack(same).float().mean()))

    @property
    def is_close(self) -> bool:
        """Whether one may stand for the other."""
        return self.score_difference <= _SCORE_BOUND and self.same_boxes >= _LEAST_SAME_BOXES


class Trial(NamedTuple):
    """Another form of a network beside the one that it is to replace, on the same images."""

    seconds: float
    seconds_before: float
    likeness: Likeness

    @property
    def is_won(self) -> bool:
        """Whether it gives the same answers, clearly sooner."""
        return self.likeness.is_close and self.seconds * _WORTHWHILE < self.seconds_before


class StaticPart(nn.Module):
    """`LabelModel.network` of images as decoders give them, in one number format: what can be compiled.

    Its convolutions and dense layers hold their weights in that format. Autocast has nothing left to convert then,
    and keeps norms and the arithmetic of boxes in the formats that they had in training.
    """

    def __init__(self, model: LabelModel, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(model, nn.Module)
        self.model = model
        self.device_type = device.type
        self.dtype = dtype

    def forward(self, images_u8: Tensor) -> tuple[Tensor, ...]:
        """What `LabelModel.network` gives, of (B, S, S, 3) uint8 images."""
        with self.autocast():
            return tuple(self.model.network(images_u8.permute(0, 3, 1, 2)))

    def autocast(self) -> torch.autocast:
        """The context of its arithmetic."""
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device_type, self.dtype if enabled else None, enabled, cache_enabled=False)


def static_part(
    model: LabelModel, device: torch.device, dtype: torch.dtype, int8_ranges: int8.Ranges | None = None
) -> StaticPart:
    """Moves a model in evaluation mode to its device and number format, batch norms folded. The model is changed."""
    network: nn.Module = model  # type: ignore[assignment]
    assert not network.training
    network.requires_grad_(False)
    if int8_ranges is not None:
        int8.quantise(model, int8_ranges)
    size = model.input_size_px
    example = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        fold_batch_norms(network, lambda: model.predict(example))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.to(dtype)
    network.to(device).to(memory_format=torch.channels_last)
    return StaticPart(model, device, dtype)


class Network:
    """Predicts batches of few shapes: what is compiled, or replayed on a GPU, takes the one that it was made for.

    Args:
        model: in evaluation mode; it is changed.
        device: where it is to run.
        dtype: the number format of its arithmetic.
        int8_ranges: of its backbone's activations, where that is to compute in 8-bit integers on the CPU.
    """

    def __init__(
        self, model: LabelModel, device: torch.device, dtype: torch.dtype, int8_ranges: int8.Ranges | None = None
    ) -> None:
        self._model = model
        self._device = device
        self._static = static_part(model, device, dtype, int8_ranges)
        self._run: StaticNetwork = self._static
        self._made_for: torch.Size | None = None

    def places(self, num_images: int, batch_size: int) -> int:
        """The size of the batch that so many images are filled up to, at most `batch_size`."""
        # A GPU does a whole batch in the time of one image. A processor doesn't, but each new shape costs it, too.
        return batch_size if self._device.type == "cuda" else min(batch_size, 1 << (num_images - 1).bit_length())

    def uploaded(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Tensor]:
        """Batches (B, S, S, 3) where `predict` wants them; a GPU gets the next one while it computes."""
        if self._device.type == "cuda":
            return cuda.upload(batches, self._device)
        return map(torch.from_numpy, batches)

    @torch.inference_mode()
    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """Predictions of one of the `uploaded`."""
        if self._made_for is None and self._device.type == "cuda":
            self._take(cuda.Replayed(self._static, images_u8), images_u8)
        if images_u8.shape != self._made_for:
            return self._predict(self._static, images_u8)
        try:
            return self._predict(self._run, images_u8)
        except RuntimeError as error:
            if self._device.type == "cuda":
                raise
            # No image is to be blamed for what was compiled.
            _log.info("the compiled network is left: %s", error)
            self.be_plain()
            return self._predict(self._static, images_u8)

    def wait(self) -> None:
        """Returns once a GPU has done all that it was asked for: batch after batch is put in its queue before."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def challenge(self, other: StaticNetwork, images_u8: Tensor) -> Trial:
        """Tries another form of the static part on some images; from now on, that one runs if it wins."""
        seconds: dict[StaticNetwork, list[float]] = {other: [], self._static: []}
        answers: dict[StaticNetwork, PredictedBoxes] = {}
        for _ in range(_ROUNDS):
            for run, times in seconds.items():
                start = time.perf_counter()
                answers[run] = self._predict(run, images_u8)
                times.append(time.perf_counter() - start)
        likeness = Likeness.of(answers[self._static], answers[other])
        trial = Trial(min(seconds[other]), min(seconds[self._static]), likeness)
        if trial.is_won:
            self._take(other, images_u8)
        return trial

    @torch.inference_mode()
    def take_if_same(self, other: StaticNetwork, images_u8: Tensor, answer: PredictedBoxes) -> bool:
        """From now on, another form of the static part runs, if it gives this answer for these images."""
        likeness = Likeness.of(answer, self._predict(other, images_u8))
        if likeness.is_close:
            self._take(other, images_u8)
        return likeness.is_close

    def be_plain(self) -> None:
        """From now on, nothing that was compiled runs."""
        self._run, self._made_for = self._static, None

    def _take(self, run: StaticNetwork, images_u8: Tensor) -> None:
        self._run, self._made_for = run, images_u8.shape

    def _predict(self, run: StaticNetwork, images_u8: Tensor) -> PredictedBoxes:
        outputs = run(images_u8)
        with self._static.autocast():
            return self._model.postprocess(outputs)
