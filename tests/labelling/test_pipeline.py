"""The graph on Ray Data, driven from its own process."""

import subprocess
import sys

import pytest

from tests.helpers.commands import PROJECT_ROOT

RUNS = """
import sys, threading, time
from contextlib import closing
from dataclasses import replace
import pyarrow as pa
import ray
from locray import schema
from locray.errors import LocrayError
from locray.config import InferenceOptions
from locray.labelling.model import ModelSpec
from locray.labelling.pipeline import Pipeline
from locray.labelling.worklist import InlineWorklist, StoredWorklist

artifact, absent = sys.argv[1:]
images = pa.Table.from_pylist([{schema.IMAGE_URI: f"{absent}/{n}.jpg"} for n in range(13)], schema.LISTING_SCHEMA)
inline = InlineWorklist.of(images, 2)
options = InferenceOptions(score_threshold=0.5, batch_size=1, predictors="1")
model_spec = ModelSpec.read(artifact, options)
for worklist, model in (
    (inline, artifact), (StoredWorklist(f"{absent}/worklist", 3, 1), artifact), (inline, f"{absent}/model")
):
    try:
        rows = list(Pipeline(replace(model_spec, uri=model), units_per_wave=4).rows(worklist))
    except LocrayError as error:
        print(type(error).__name__, error)
    else:
        print(len(rows), sorted(pa.concat_tables(rows)[schema.ORDINAL].to_pylist()))

get, gets = ray.get, 0
def late_get(*arguments, **options):
    global gets
    if threading.current_thread().name == "iter_threaded":
        gets += 1
        if gets > 1:
            while any(thread.name.startswith("StreamingExecutor") for thread in threading.enumerate()):
                time.sleep(0.01)
            time.sleep(1)
    return get(*arguments, **options)
ray.get = late_get  # asks for a second block after the end of the execution
before = {thread.name for thread in threading.enumerate()}
with closing(Pipeline(model_spec).rows(inline)) as rows:
    next(rows)
    during = {thread.name for thread in threading.enumerate()} - before
after = {thread.name for thread in threading.enumerate()} - before
print(any(name.startswith("StreamingExecutor") for name in during), "iter_threaded" in during, sorted(after))
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_waves_give_each_image_once_and_errors_reach_the_driver(
    artifact: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUNS, artifact, "/absent"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done
    waves, worklist, model, closed = done.stdout.splitlines()
    assert waves == f"7 {list(range(13))}"
    assert worklist.startswith("StoreAccessError /absent/worklist/worklist-000000 does not exist")
    assert model.startswith("UsageError no model at /absent/model: ")
    assert closed == "True True []"
    assert done.stderr == ""
