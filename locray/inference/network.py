"""A network made ready to predict: as fast as its device allows, with the same results.

Letters of shapes: B images, S side of the square input in pixels.
"""

import copy
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from locray.inference import cuda
from locray.inference.folding import fold_batch_norms
from locray.models.interface import LabelModel, PredictedBoxes

StaticNetwork = Callable[[Tensor], tuple[Tensor, ...]]
"""From (B, S, S, 3) uint8 images on the network's device to the outputs of `LabelModel.network`."""


class StaticPart(nn.Module):
    """`LabelModel.network` for uint8 images, in one number format: the part that can be compiled.

    Convolutions and dense layers hold their weights in that format, so autocast has nothing left to convert. It keeps
    norms and the arithmetic of boxes in the formats that they had in training.
    """

    def __init__(self, model: LabelModel, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(model, nn.Module)
        self.model = model
        self.device_type = device.type
        self.dtype = dtype

    def forward(self, images_u8: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of `LabelModel.network` for (B, S, S, 3) uint8 images."""
        with self.autocast():
            return tuple(self.model.network(images_u8.permute(0, 3, 1, 2)))

    def autocast(self) -> torch.autocast:
        """The autocast context that it computes in."""
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device_type, self.dtype if enabled else None, enabled, cache_enabled=False)


def static_part(model: LabelModel, device: torch.device, dtype: torch.dtype) -> StaticPart:
    """Moves a model in evaluation mode to a device and number format, and folds batch norms. The model is changed."""
    network: nn.Module = model  # type: ignore[assignment]
    assert not network.training
    network.requires_grad_(False)
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
    """Predicts batches, on a processor or a GPU.

    Args:
        model: in evaluation mode; it is changed.
        device: where it runs.
        dtype: the number format of its arithmetic.
    """

    def __init__(self, model: LabelModel, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self.device = device
        """Where it runs."""
        self.static_part = static_part(model, device, dtype)
        self._compiled: StaticNetwork | None = None
        self._captured: StaticNetwork | None = None
        self._captured_shape: torch.Size | None = None

    def with_compiled(self, compiled: StaticNetwork) -> "Network":
        """This network with its static part in compiled form, which takes whole batches only."""
        other = copy.copy(self)
        other._compiled = compiled
        return other

    def padded_size(self, num_images: int, batch_size: int) -> int:
        """Size of the batch that `num_images` images are padded to, at most `batch_size`."""
        # Compiled code takes one shape, and a GPU computes a whole batch in the time of one image. The eager form on a
        # processor doesn't, but each new shape costs it time as well.
        if self._compiled is not None or self.device.type == "cuda":
            return batch_size
        return min(batch_size, 1 << (num_images - 1).bit_length())

    def upload(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Tensor]:
        """Moves batches (B, S, S, 3) to the device; a GPU gets the next one while it computes."""
        if self.device.type == "cuda":
            return cuda.upload(batches, self.device)
        return map(torch.from_numpy, batches)

    @torch.inference_mode()
    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        """Predictions for a batch (B, S, S, 3) of `upload`, B as `padded_size` says.

        On a GPU the next call overwrites them: queue their copies first.
        """
        if self._compiled is not None:
            return self._postprocess(self._compiled(images_u8))
        if self.device.type != "cuda":
            return self.predict_eagerly(images_u8)
        run = self._capture(images_u8)
        if self._model.has_static_postprocess:
            return PredictedBoxes(*run(images_u8))
        return self._postprocess(run(images_u8))

    @torch.inference_mode()
    def predict_eagerly(self, images_u8: Tensor) -> PredictedBoxes:
        """Predictions for a batch (B, S, S, 3) of any size, without what was compiled or captured for one size."""
        return self._postprocess(self.static_part(images_u8))

    def _postprocess(self, outputs: tuple[Tensor, ...]) -> PredictedBoxes:
        with self.static_part.autocast():
            return self._model.postprocess(outputs)

    def _capture(self, images_u8: Tensor) -> StaticNetwork:
        """What a CUDA graph can hold of `predict`, as a graph for the shape of the first batch, else in eager form."""
        run: StaticNetwork = self.predict_eagerly if self._model.has_static_postprocess else self.static_part
        if self._captured is None:
            self._captured = cuda.captured(run, images_u8)
            self._captured_shape = images_u8.shape
        return self._captured if self._captured_shape == images_u8.shape else run

    def release_batch(self) -> None:
        """Drops what was made for one size of batch, the compiled form too, and gives unused memory back to the GPU."""
        self._compiled = self._captured = self._captured_shape = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Returns once a GPU has computed all batches that were queued on it. The processor is free meanwhile."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            event.synchronize()

    def is_healthy(self) -> bool:
        """Whether the device still computes: a grey image, in eager form."""
        size = self._model.input_size_px
        try:
            grey = torch.full((1, size, size, 3), 128, dtype=torch.uint8)
            self.predict_eagerly(grey.to(self.device))
            self.wait()
        except Exception:  # noqa: BLE001 - libraries of GPUs raise all kinds
            return False
        return True
