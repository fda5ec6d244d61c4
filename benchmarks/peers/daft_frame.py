"""Daft's script for the classification of images: download, decode, a row-wise transform, a batch UDF, `write_parquet`.

After `benchmarking/ai/image_classification` of https://github.com/Eventual-Inc/Daft, on its runner for one machine.
Daft 0.7 needs pyarrow before 26, so it comes from a folder of its own: `--daft`.
"""

from typing import Any

import daft
import numpy as np
import torch
from daft import DataType, col
from PIL import Image

from benchmarks.peers.job import BATCH_SIZE, BOX, ROWS, Job, Ticks
from benchmarks.peers.network import Network, published_transform
from locray import schema
from locray.models.files import read_artifact_info


def main() -> None:
    """The script."""
    job = Job.from_arguments()
    size_px = read_artifact_info(job.model).info.input_size
    transform = published_transform(size_px)
    floats = dict.fromkeys(("score", *BOX), DataType.float64())
    answer = DataType.struct({schema.LABEL_ID: DataType.int64(), **floats})

    def preprocess(image: Any) -> Any:
        return transform(Image.fromarray(np.asarray(image))).numpy()

    class Model:
        def __init__(self) -> None:
            self._network = Network(job)
            self._ticks = Ticks(job.output)
            job.note(precision=self._network.precision)

        def __call__(self, tensors: Any, widths: Any, heights: Any, paths: Any) -> list[dict[str, Any]]:
            images = torch.from_numpy(np.stack(tensors.to_pylist()))
            sizes = list(zip(widths.to_pylist(), heights.to_pylist(), strict=True))
            columns = self._network(images, paths.to_pylist(), sizes)
            self._ticks.add(len(sizes))
            names = (schema.LABEL_ID, *floats)
            rows = zip(*(columns[name].tolist() for name in names), strict=True)
            return [dict(zip(names, row, strict=True)) for row in rows]

    model: Any = daft.udf(return_dtype=answer, batch_size=BATCH_SIZE, concurrency=1)(Model)
    frame = daft.from_pydict({schema.IMAGE_URI: job.paths()})
    frame = frame.with_column("decoded", col(schema.IMAGE_URI).download().decode_image(mode="RGB"))
    tensor = DataType.tensor(DataType.float32(), (3, size_px, size_px))
    frame = frame.with_column("tensor", col("decoded").apply(preprocess, return_dtype=tensor))
    frame = frame.with_column("width", col("decoded").image_width()).with_column(
        "height", col("decoded").image_height()
    )
    frame = frame.with_column("answer", model(col("tensor"), col("width"), col("height"), col(schema.IMAGE_URI)))
    fields = [col("answer").get(name).alias(name) for name in (schema.LABEL_ID, *floats)]
    frame.select(schema.IMAGE_URI, *fields).write_parquet(str(job.output / ROWS))


if __name__ == "__main__":
    main()
