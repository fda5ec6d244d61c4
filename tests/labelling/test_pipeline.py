"""The graph on Ray Data, driven from a process of its own."""

import subprocess
import sys

import pytest
from commands import PROJECT_ROOT

TWO_RUNS = """
import sys
import pyarrow as pa
from locray import schema
from locray.errors import LocrayError
from locray.images.decode import DecodeLimits
from locray.labelling.fetch_decode import DecodeSettings
from locray.labelling.pipeline import Pipeline
from locray.labelling.identity import PredictorSettings
from locray.labelling.worklist import InlineWorklist, StoredWorklist

artifact, absent = sys.argv[1:]
images = pa.Table.from_pylist([{schema.IMAGE_URI: f"{absent}/{n}.jpg"} for n in range(3)], schema.LISTING_SCHEMA)
runs = [(StoredWorklist(f"{absent}/worklist", 3, 1), artifact), (InlineWorklist.of(images, 1), f"{absent}/model")]
for worklist, model in runs:
    settings = PredictorSettings(model, score_threshold=0.5, batch_size=1)
    try:
        list(Pipeline(DecodeSettings(32, DecodeLimits(99, 99), 1, 60), settings, num_predictors=1).rows(worklist))
    except LocrayError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_that_only_workers_meet_comes_out_as_itself(artifact: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, artifact, "/absent"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done
    worklist, model = done.stdout.splitlines()
    assert worklist.startswith("StoreAccessError /absent/worklist/worklist-000000 does not exist")
    assert model.startswith("UsageError no model at /absent/model: ")
    assert done.stderr == ""


WAVES = """
import sys
import pyarrow as pa
from locray import schema
from locray.images.decode import DecodeLimits
from locray.labelling.fetch_decode import DecodeSettings
from locray.labelling.pipeline import Pipeline
from locray.labelling.identity import PredictorSettings
from locray.labelling.worklist import InlineWorklist

images = pa.Table.from_pylist([{schema.IMAGE_URI: f"/absent/{n}.jpg"} for n in range(13)], schema.LISTING_SCHEMA)
predict = PredictorSettings(sys.argv[1], score_threshold=0.5, batch_size=1)
decode = DecodeSettings(32, DecodeLimits(99, 99), 1, 60)
pipeline = Pipeline(decode, predict, num_predictors=1, units_a_wave=int(sys.argv[2]))
rows = [rows.select([schema.ORDINAL, schema.ERROR_CODE]) for rows in pipeline.rows(InlineWorklist.of(images, 2))]
print(len(rows), sorted(pa.concat_tables(rows).to_pydict()[schema.ORDINAL]))
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_of_several_waves_gives_each_image_once(artifact: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAVES, artifact, "3"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.strip() == f"7 {list(range(13))}"
