"""A typical PyTorch training loop: DataLoader, Pillow, one process. No Ray.

A script that takes its settings as JSON in the first argument and prints JSON. It uses locray's network and
annotations, so that it computes the same from the same files. The rest is as in a tutorial.
"""

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from locray.datasets import read_dataset
from locray.datasets.records import Record
from locray.models.architectures import build_model
from locray.models.interface import LOSS, Targets


@dataclass(frozen=True, slots=True)
class PlainSettings:
    """Settings of a training run."""

    data: str
    format: str
    split: str
    model: str
    input_size_px: int
    batch_size: int
    epochs: int
    tuned: bool
    """bfloat16 and channels_last memory, not float32 and contiguous."""


class PillowImages(Dataset[tuple[Tensor, Tensor, int]]):
    """Images stretched to a square, flipped at random, with the box and class of their first object."""

    def __init__(self, records: tuple[Record, ...], classes: tuple[str, ...], size_px: int) -> None:
        self._records = [record for record in records if record.objects and record.objects[0].box_xyxy_px]
        self._ids = {label: label_id for label_id, label in enumerate(classes)}
        self._size = size_px

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Returns an image (3, S, S) uint8, its box (4,) in pixels, and its class id."""
        record = self._records[index]
        found = record.objects[0]
        with Image.open(record.image_uri) as file:
            image = file.convert("RGB")
        scale = torch.tensor([self._size / image.width, self._size / image.height] * 2)
        box = torch.tensor(found.box_xyxy_px) * scale
        image = image.resize((self._size, self._size))
        if random.random() < 0.5:  # noqa: PLR2004, S311
            image = functional.hflip(image)
            box = torch.stack([self._size - box[2], box[1], self._size - box[0], box[3]])
        return functional.pil_to_tensor(image), box, self._ids[found.label]


def train(settings: PlainSettings) -> dict[str, Any]:
    """Trains. Returns images per second of each epoch; the first includes the start of the workers."""
    dataset = read_dataset(settings.data, settings.format, settings.split)
    images = PillowImages(dataset.records, dataset.classes, settings.input_size_px)
    loader = DataLoader(
        images, settings.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    model: Any = build_model(settings.model, len(dataset.classes), settings.input_size_px)
    if settings.tuned:
        model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    speeds = []
    for _ in range(settings.epochs):
        seen, started = 0, time.monotonic()
        for pixels, boxes, label_ids in loader:
            batch = pixels.contiguous(memory_format=torch.channels_last) if settings.tuned else pixels
            targets = Targets(boxes[:, None], label_ids[:, None], torch.ones(len(boxes), 1, dtype=torch.bool))
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.tuned):
                loss = model.loss(batch, targets)[LOSS]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            seen += len(boxes)
        speeds.append(seen / (time.monotonic() - started))
    return {"settings": asdict(settings), "images_per_s": speeds}


if __name__ == "__main__":
    print(json.dumps(train(PlainSettings(**json.loads(sys.argv[1])))), flush=True)  # noqa: T201
