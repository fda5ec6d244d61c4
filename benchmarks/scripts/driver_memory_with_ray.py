"""Memory of the driver in a complete run with Ray whose two stages do nothing. For docs/scale.md.

Everything else is real: the listing (a Parquet file of URIs), the join, the worklist, Ray Data's graph, blocks of
pixels between the stages, the committer and the table.

Run from the project's root: `python -m benchmarks.scripts.driver_memory_with_ray 1000000`.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from locray import schema
from locray.config import LabelConfig
from locray.labelling import pipeline
from locray.labelling.model import ModelSpec
from locray.labelling.run import label
from locray.labelling.worklist import Worklist
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactInfo
from locray.progress import Progress

IMAGES_PER_LINE = 100_000


BOX = {schema.LABEL_ID: 0, schema.LABEL: "disc", schema.SCORE: 0.5}
BOX |= {schema.XMIN: 1.0, schema.YMIN: 2.0, schema.XMAX: 3.0, schema.YMAX: 4.0}


@dataclass(frozen=True)
class BlackPictures:
    """Replaces `FetchDecode`."""

    worklist: Worklist
    model: ModelSpec

    def __call__(self, unit: int, crashes: int) -> pa.Table:  # noqa: ARG002 (the shape of a stage)
        rows, side = self.worklist.read_unit(unit), self.model.input_size_px
        pixels = pa.array(np.zeros(len(rows) * side * side * 3, dtype=np.uint8))
        same = {schema.WIDTH: 64, schema.HEIGHT: 48, schema.FORMAT: "jpeg", schema.STATUS: schema.STATUS_OK}
        columns = {name: rows[name] for name in rows.column_names}
        columns |= {schema.IMAGE: pa.FixedSizeListArray.from_arrays(pixels, side * side * 3)}
        fields = schema.decoded_schema(side)
        arrays = [
            columns[field.name].cast(field.type)
            if field.name in columns
            else pa.repeat(pa.scalar(same.get(field.name), field.type), len(rows))
            for field in fields
        ]
        return pa.table(arrays, schema=fields)


class OneBox:
    """Replaces the model worker."""

    def __init__(self, *_: object) -> None:
        """Needs no model."""

    def __call__(self, decoded: pa.Table) -> pa.Table:
        boxes = pa.array([[BOX]] * len(decoded), schema.PREDICTED_SCHEMA.field(schema.DETECTIONS).type)
        rows = decoded.drop_columns([schema.IMAGE]).append_column(schema.DETECTIONS, boxes)
        return rows.cast(schema.PREDICTED_SCHEMA)


def private_mib() -> float:
    """Resident memory of this process, without the blocks of Ray's object store that it has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines if "kB" in line)}
    return (kib["VmRSS"] - kib["RssShmem"]) / 1024


class Reporter:
    """Prints the memory after every `IMAGES_PER_LINE` images."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._next = IMAGES_PER_LINE

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "labelling" and progress.done >= self._next:
            seconds = time.monotonic() - self._started
            print(f"{progress.done:,} images after {seconds:.0f} s: {private_mib():.0f} MiB", flush=True)
            self._next += IMAGES_PER_LINE


def main(num_images: int) -> None:
    """Labels images that do not exist."""
    pipeline.FetchDecode, pipeline._PredictStage = BlackPictures, OneBox  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder:
        uris = pa.array(f"/absent/photos/{number // 1000:06d}/{number:09d}.jpg" for number in range(num_images))
        pq.write_table(pa.table({schema.IMAGE_URI: uris}), f"{folder}/listing.parquet")
        del uris
        info = ArtifactInfo(architecture="small_cnn", classes=["disc"], input_size=32)
        save_artifact(f"{folder}/model", build_model("small_cnn", 1), info)
        config = LabelConfig(images=f"{folder}/listing.parquet", model=f"{folder}/model", table=f"{folder}/table")
        print(f"before: {private_mib():.0f} MiB")
        summary = label(config, Reporter())
        print(f"{summary.ok:,} of {summary.listed:,} images in {summary.commits} commits, {summary.wall_s:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
