"""The network of all scripts, so that they differ only in the path from files to rows."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import transforms

from benchmarks.peers.job import BOX, NOTHING_FOUND, Job, num_cores
from locray import schema
from locray.boxes import Letterbox
from locray.images.letterbox import PAD_VALUE
from locray.inference.devices import fastest_dtype
from locray.models.artifact import load_artifact
from locray.models.interface import IMAGENET_MEAN, IMAGENET_STD, Normalise, PredictedBoxes


class Letterboxed:
    """The geometry of locray's input as a transform: shrink to fit, pad with grey."""

    def __init__(self, size_px: int) -> None:
        self._size = (size_px, size_px)

    def __call__(self, image: Image.Image) -> Image.Image:
        """A square picture."""
        return ImageOps.pad(image, self._size, Image.Resampling.BILINEAR, color=(PAD_VALUE,) * 3)


def published_transform(size_px: int) -> Callable[[Image.Image], Tensor]:
    """The usual chain: to size, to a float tensor (3, S, S), normalised."""
    steps = [Letterboxed(size_px), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    chain: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return chain


class Network:
    """The network of an artifact, for normalised float images as torchvision's transforms make them."""

    def __init__(self, job: Job) -> None:
        artifact = load_artifact(job.model)
        self.size_px = artifact.info.input_size
        self._threshold = artifact.info.score_threshold
        self._model = artifact.model
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tuned = job.tuned
        self._dtype = torch.float32
        module = artifact.model
        assert isinstance(module, nn.Module)
        for name, part in list(module.named_children()):
            if isinstance(part, Normalise):
                setattr(module, name, nn.Identity())
        module.to(self._device)
        if job.tuned:
            torch.set_num_threads(num_cores())
            module.to(memory_format=torch.channels_last)
            self._dtype = fastest_dtype(self._device)

    @property
    def precision(self) -> str:
        """The number format of the arithmetic."""
        return str(self._dtype).removeprefix("torch.")

    def __call__(self, images: Tensor, paths: Sequence[str], sizes_wh: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Columns for a batch (B, 3, S, S) float32 of pictures of these sizes."""
        return columns_of(self._predict(images), paths, sizes_wh, self.size_px, self._threshold)

    def _predict(self, images: Tensor) -> PredictedBoxes:
        images = images.to(self._device)
        if self._tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        exact = self._dtype is torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, None if exact else self._dtype, not exact):
            return self._model.predict(images)


def best_time(run: Callable[[], object]) -> float:
    """Returns the seconds of the faster of two runs, after a warm-up."""
    run()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def columns_of(
    predicted: PredictedBoxes,
    paths: Sequence[str],
    sizes_wh: Sequence[tuple[int, int]],
    size_px: int,
    score_threshold: float,
) -> dict[str, Any]:
    """The columns that every contender writes: the best detection of each image, in its own pixels."""
    count = len(paths)
    boxes = predicted.boxes_xyxy_px[:count, 0].double().cpu().numpy()
    scores = predicted.scores[:count, 0].float().cpu().numpy()
    labels: NDArray[np.int64] = predicted.label_ids[:count, 0].cpu().numpy()
    scaled = [Letterbox.fit(*size, size_px).to_image(box) for size, box in zip(sizes_wh, boxes, strict=True)]
    corners = np.clip(np.array(scaled), 0, np.array(sizes_wh)[:, [0, 1, 0, 1]])
    found = (scores > 0) & (scores >= score_threshold)
    return {
        schema.IMAGE_URI: np.array(paths),
        schema.LABEL_ID: np.where(found, labels, NOTHING_FOUND),
        "score": scores,
        **{name: corners[:, edge] for edge, name in enumerate(BOX)},
    }
