"""The highest speed of a machine: hand-written, without a framework, one process, decoding threads, one file.

JPEGs are decoded no larger than needed, pixels stay uint8 up to the network, the network runs in the fastest form
(float32 or bfloat16, eager or compiled), and its memory is kept from batch to batch. In return it has no retries, no
handling of bad images, and can't resume.
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.job import BATCH_SIZE, ROWS, Job, Ticks, num_cores
from benchmarks.peers.network import best_time, columns_of
from locray.boxes import Letterbox
from locray.images.letterbox import PAD_VALUE
from locray.inference.devices import fastest_dtype, keep_freed_memory
from locray.models.artifact import load_artifact

_REDUCING_GAP = 2.0
_SIDES = 2
"""Minimum reduction left to the resizing filter: with half of it, 4 % of boxes in photographs differ."""
_MAX_COMPILED_TIME = 0.95
"""Relative to the eager network's; otherwise the eager one is used."""
_Sizes = list[tuple[int, int]]
_Batch = tuple[NDArray[np.uint8], _Sizes]


def main() -> None:
    """The script."""
    job = Job.from_arguments()
    keep_freed_memory()
    ticks = Ticks(job.output)
    paths = job.paths()
    artifact = load_artifact(job.model)
    size_px = artifact.info.input_size
    network = FastestNetwork(artifact.model, size_px, compiles=job.tuned)
    job.note(precision=network.form)
    parts = []
    with ThreadPoolExecutor(num_cores()) as threads:
        groups = [paths[start : start + BATCH_SIZE] for start in range(0, len(paths), BATCH_SIZE)]
        ahead = [_begin(threads, group, size_px) for group in groups[:2]]
        for index, group in enumerate(groups):
            pixels, sizes = _end(ahead.pop(0))
            if index + 2 < len(groups):
                ahead.append(_begin(threads, groups[index + 2], size_px))
            predicted = network(pixels)
            parts.append(pa.table(columns_of(predicted, group, sizes, size_px, artifact.info.score_threshold)))
            ticks.add(len(group))
    (job.output / ROWS).mkdir()
    pq.write_table(pa.concat_tables(parts), job.output / ROWS / "rows.parquet")


def _begin(
    threads: ThreadPoolExecutor, paths: Iterable[str], size_px: int
) -> tuple[NDArray[np.uint8], list["Future[tuple[int, int]]"]]:
    pixels = np.full((BATCH_SIZE, size_px, size_px, 3), PAD_VALUE, dtype=np.uint8)
    return pixels, [threads.submit(_decode, path, pixels[row]) for row, path in enumerate(paths)]


def _end(begun: tuple[NDArray[np.uint8], list["Future[tuple[int, int]]"]]) -> _Batch:
    pixels, sizes = begun
    return pixels, [size.result() for size in sizes]


def _decode(path: str, out: NDArray[np.uint8]) -> tuple[int, int]:
    """Fills a row of the batch (S, S, 3), and returns the picture's full width and height."""
    data = Path(path).read_bytes()
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    fit = Letterbox.fit(width, height, out.shape[0])
    image = simplejpeg.decode_jpeg(
        data, "RGB", min_height=_SIDES * fit.scaled_height_px, min_width=_SIDES * fit.scaled_width_px, min_factor=2
    )
    scaled = Image.fromarray(image).resize(
        (fit.scaled_width_px, fit.scaled_height_px), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP
    )
    top, left = fit.pad_top_px, fit.pad_left_px
    out[top : top + fit.scaled_height_px, left : left + fit.scaled_width_px] = np.asarray(scaled)
    return width, height


class FastestNetwork:
    """A network in the form that is fastest on this machine, measured when it starts."""

    def __init__(self, model: Any, size_px: int, *, compiles: bool) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(self._device).to(memory_format=torch.channels_last)
        self._dtype = fastest_dtype(self._device)
        self._run = model.predict
        self.form = str(self._dtype).removeprefix("torch.")
        if compiles:
            pixels = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, size_px, size_px, 3), dtype=np.uint8)
            self._compile(model, pixels)

    def _compile(self, model: Any, pixels: NDArray[np.uint8]) -> None:
        from torch._inductor import config

        config.freezing = True
        compiled = torch.compile(model.predict, dynamic=False)
        eager_s = self._measured(model.predict, pixels)
        started = time.perf_counter()
        try:
            seconds = self._measured(compiled, pixels)
        except RuntimeError:  # no compiler on this machine
            self.form += ", eager: nothing to compile with"
            return
        took = time.perf_counter() - started - 3 * seconds
        if seconds < _MAX_COMPILED_TIME * eager_s:
            self._run = compiled
            self.form += f", compiled in {took:.0f} s"
        else:
            self.form += ", eager: compiled is no faster"

    def _measured(self, run: Any, pixels: NDArray[np.uint8]) -> float:
        return best_time(lambda: self._predict(run, pixels))

    def _predict(self, run: Any, pixels: NDArray[np.uint8]) -> Any:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self._device)
        exact = self._dtype is torch.float32
        with torch.no_grad(), torch.autocast(self._device.type, None if exact else self._dtype, not exact):
            return run(images)

    def __call__(self, pixels: NDArray[np.uint8]) -> Any:
        """`PredictedBoxes` of (B, S, S, 3) uint8 images, B always the same."""
        return self._predict(self._run, pixels)


if __name__ == "__main__":
    main()
