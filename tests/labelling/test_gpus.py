"""Labelling where Ray has GPUs. They are only declared, so any machine will do; see test_cuda.py for CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deltalake import DeltaTable
from PIL import Image

from locray import schema
from tests.helpers.commands import PROJECT_ROOT

LABELS = """
import os
import sys
import ray
from locray.ray_runtime import data
from locray.config import LabelConfig, PlanConfig
from locray.labelling import pipeline
from locray.labelling.plan import plan
from locray.labelling.run import label
from locray.progress import ignore

images, artifact, table, fallback = sys.argv[1:]
if fallback:
    data._MAP_WHOLE_BLOCKS = ()
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
config = LabelConfig(images=images, model=artifact, table=table, unit_size=64, predictors_per_gpu=2)
blocks = []
rows_of = pipeline.Pipeline.rows
def counted(self, worklist):
    for rows in rows_of(self, worklist):
        blocks.append(rows["ordinal"].to_pylist())
        yield rows
pipeline.Pipeline.rows = counted
summary = label(config, ignore)
print(summary.ok, summary.deferred, sorted(map(len, blocks)))
print(all(len({n // 64 for n in block}) == 1 for block in blocks))
os.environ["RAY_ADDRESS"] = "the one of above"
found = plan(PlanConfig(images=images, model=artifact, table=table + "-2"), ignore)
print(found.num_cpus, found.num_gpus, found.predict_images_per_s, found.bottleneck)
"""
"""Labels with a declared GPU that two model workers share.

Prints the number of rows per block, whether each block is of one unit, and what a plan finds.
"""


@pytest.mark.ray
@pytest.mark.parametrize("fallback", ["", "without Ray's internal call"])
def test_labels_where_ray_has_a_gpu(tmp_path: Path, artifact: str, fallback: str) -> None:
    images, table = tmp_path / "images", str(tmp_path / "table")
    images.mkdir()
    for number in range(300):
        Image.new("RGB", (48, 32), (number % 256, 0, 0)).save(images / f"{number:03d}.jpg")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", LABELS, str(images), artifact, table, fallback],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts, one_unit_a_block, planned = done.stdout.splitlines()
    assert counts == "300 0 [44, 64, 64, 64, 64]" or (fallback and counts.startswith("300 0 "))
    assert one_unit_a_block == "True" or fallback
    if not torch.cuda.is_available():
        assert planned == "2 1 None None"
        assert "but PyTorch can't use it" in done.stderr
    uris = DeltaTable(table).to_pyarrow_dataset().to_table([schema.IMAGE_URI])[schema.IMAGE_URI].to_pylist()
    assert sorted(uris) == sorted(map(str, images.iterdir()))
