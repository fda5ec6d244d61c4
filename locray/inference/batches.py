"""Images through a network in batches, of a size that the memory of its device allows.

Letters of shapes: N images, S side of the square input in pixels, K predictions per image.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from locray.inference.cuda import GPU_ERRORS, DeviceError, is_memory_shortage
from locray.inference.network import Network
from locray.models.interface import PredictedBoxes

_log = logging.getLogger(__name__)

_Rows = NDArray[np.intp]


class _BatchError(NamedTuple):
    """Why a batch failed. An exception would keep the batch's tensors in memory."""

    message: str
    is_memory_shortage: bool

    @classmethod
    def of(cls, error: Exception) -> "_BatchError":
        message = next(iter(str(error).splitlines()), type(error).__name__)
        return cls(message, is_memory_shortage(error))


class Batches:
    """Predicts images in batches.

    An image that the network fails on fails alone. An error that comes from the device instead is none of an image:
    where memory is short, batches are halved for the rest of the process; a device that doesn't compute a known image
    either raises `DeviceError`.

    Args:
        network: The network.
        batch_size: Images per batch, unless they need more memory than there is.
    """

    def __init__(self, network: Network, batch_size: int) -> None:
        self._network = network
        self._halved_from: int | None = None
        """The size that failed, until a smaller one has succeeded."""
        self.batch_size = batch_size
        """Images per batch from now on."""

    def predict(
        self, images: NDArray[np.uint8], rows: _Rows
    ) -> tuple[list[tuple[_Rows, PredictedBoxes]], dict[int, str]]:
        """Predictions for rows of images (N, S, S, 3), and messages by row for those that the network fails on.

        Raises:
            DeviceError: the device has failed, or has too little memory for one image. So do the other `GPU_ERRORS`.
        """
        done: list[tuple[_Rows, PredictedBoxes]] = []
        failures: dict[int, str] = {}
        rest = rows
        while len(rest):
            num_done, error = self._predict_in_batches(images, rest, done)
            rest = rest[num_done:]
            if error is None:
                continue
            if error.is_memory_shortage:
                self._halve(error)
                continue
            self._check_device(error)
            chosen, rest = rest[: self.batch_size], rest[self.batch_size :]
            messages = self._predict_alone(images, chosen, done)
            if messages:
                self._check_device(error)
                failures |= messages
            elif self.batch_size > 1:
                # No image is the cause. Libraries of GPUs have many words for too little memory.
                self._halve(error)
        self._network.wait()
        return done, failures

    def _predict_in_batches(
        self, images: NDArray[np.uint8], rows: _Rows, done: list[tuple[_Rows, PredictedBoxes]]
    ) -> tuple[int, _BatchError | None]:
        """Adds to `done`. Returns the number of images until a batch failed, and why it did."""
        choices = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        num_done = 0
        try:
            for chosen, batch in zip(choices, self._upload(images, choices), strict=True):
                done.append((chosen, _first(self._network.predict(batch), len(chosen))))
                num_done += len(chosen)
                self._report_halving()
        except Exception as error:
            if isinstance(error, GPU_ERRORS) and not is_memory_shortage(error):
                raise
            return num_done, _BatchError.of(error)
        return num_done, None

    def _predict_alone(
        self, images: NDArray[np.uint8], rows: _Rows, done: list[tuple[_Rows, PredictedBoxes]]
    ) -> dict[int, str]:
        """Adds to `done` the images that the network doesn't fail on. Returns messages for the others."""
        failures = {}
        for row in rows:
            alone = np.array([row])
            try:
                (image,) = self._network.upload([images[alone]])
                done.append((alone, _first(self._network.predict_eagerly(image), 1)))
            except GPU_ERRORS:
                raise
            except Exception as error:
                found = _BatchError.of(error)
                if found.is_memory_shortage:
                    raise DeviceError(f"memory is too short for one image: {found.message}") from error
                failures[int(row)] = found.message
        return failures

    def _upload(self, images: NDArray[np.uint8], choices: list[_Rows]) -> Iterator[Tensor]:
        """The chosen rows of images (N, S, S, 3), padded to batch sizes that the network prefers."""
        missing = [self._network.padded_size(len(rows), self.batch_size) - len(rows) for rows in choices]
        return self._network.upload(
            np.pad(images[rows], ((0, more), (0, 0), (0, 0), (0, 0))) if more else images[rows]
            for rows, more in zip(choices, missing, strict=True)
        )

    def _check_device(self, error: _BatchError) -> None:
        if not self._network.is_healthy():
            raise DeviceError(f"the {self._network.device.type} computes no known image any more: {error.message}")

    def _halve(self, error: _BatchError) -> None:
        if self.batch_size == 1:
            raise DeviceError(f"memory is too short for one image: {error.message}")
        self._halved_from = self._halved_from or self.batch_size
        self.batch_size //= 2
        self._network.release_batch()

    def _report_halving(self) -> None:
        if self._halved_from is not None:
            _log.warning(
                "batches of %d images fail for want of memory: %d images per batch from now on, as with "
                "--batch-size %d",
                *(self._halved_from, self.batch_size, self.batch_size),
            )
            self._halved_from = None


def _first(predicted: PredictedBoxes, num_images: int) -> PredictedBoxes:
    """Predictions for the first images of a batch, on the CPU; a GPU's are complete after `Network.wait`."""
    return PredictedBoxes(*(values[:num_images].to("cpu", non_blocking=True) for values in predicted))
