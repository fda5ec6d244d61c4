"""A typical PyTorch loop: a DataLoader with two workers, Pillow, torchvision's transforms, one file."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.job import BATCH_SIZE, ROWS, Job, Ticks
from benchmarks.peers.network import Network, published_transform


class Pictures(Dataset[tuple[Tensor, str, Tensor]]):
    """Pictures as network inputs, with paths and sizes."""

    def __init__(self, paths: list[str], size_px: int) -> None:
        self._paths = paths
        self._transform = published_transform(size_px)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        """(3, S, S) float32, the path, and (2,) width and height."""
        with Image.open(self._paths[index]) as file:
            picture = file.convert("RGB")
        return self._transform(picture), self._paths[index], torch.tensor(picture.size)


def main() -> None:
    """The script."""
    job = Job.from_arguments()
    network, ticks = Network(job), Ticks(job.output)
    job.note(precision=network.precision)
    loader: Any = DataLoader(Pictures(job.paths(), network.size_px), BATCH_SIZE, num_workers=2)
    parts = []
    for images, paths, sizes in loader:
        parts.append(pa.table(network(images, paths, [(width, height) for width, height in sizes.tolist()])))
        ticks.add(len(paths))
    (job.output / ROWS).mkdir()
    pq.write_table(pa.concat_tables(parts), job.output / ROWS / "rows.parquet")


if __name__ == "__main__":
    main()
