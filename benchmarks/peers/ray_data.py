"""Ray Data's own example of batch inference on images: `read_images`, a row map, an actor, `write_parquet`.

After https://docs.ray.io/en/latest/data/examples/pytorch_resnet_batch_prediction.html, with our network.
"""

from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

from benchmarks.peers.job import BATCH_SIZE, ROWS, Job, Ticks
from benchmarks.peers.network import Network, published_transform
from locray.models.files import read_artifact_info

TENSOR, SIZE, PATH = "tensor", "size_wh", "path"


def main() -> None:
    """The script."""
    job = Job.from_arguments()
    transform = published_transform(read_artifact_info(job.model).info.input_size)

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        picture = Image.fromarray(row["image"])
        return {TENSOR: transform(picture).numpy(), SIZE: np.array(picture.size), PATH: row[PATH]}

    class Actor:
        def __init__(self) -> None:
            self._network = Network(job)
            self._ticks = Ticks(job.output)
            job.note(precision=self._network.precision)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            sizes = [(int(width), int(height)) for width, height in batch[SIZE]]
            columns = self._network(torch.from_numpy(batch[TENSOR]), batch[PATH], sizes)
            self._ticks.add(len(sizes))
            return columns

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    images = ray.data.read_images(str(job.images), mode="RGB", include_paths=True)
    predicted = images.map(preprocess).map_batches(
        Actor,
        batch_size=BATCH_SIZE,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_gpus=1 if torch.cuda.is_available() else 0,
        num_cpus=0 if job.tuned else 1,
    )
    predicted.write_parquet(str(job.output / ROWS))


if __name__ == "__main__":
    main()
