"""The graph on Ray Data, driven from a process of its own; and its model stage, without Ray."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from commands import PROJECT_ROOT
from PIL import Image

from locray import schema
from locray.errors import UsageError
from locray.images.decode import DecodeLimits
from locray.labelling import pipeline
from locray.labelling.fetch_decode import MAX_DEATHS, DecodeSettings, FetchDecode
from locray.labelling.identity import PredictorSettings
from locray.labelling.worklist import InlineWorklist
from locray.sources import open_source

RUNS = """
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
images = pa.Table.from_pylist([{schema.IMAGE_URI: f"{absent}/{n}.jpg"} for n in range(13)], schema.LISTING_SCHEMA)
inline = InlineWorklist.of(images, 2)
decode = DecodeSettings(32, DecodeLimits(99, 99), 1, 60)
for worklist, model in (
    (inline, artifact), (StoredWorklist(f"{absent}/worklist", 3, 1), artifact), (inline, f"{absent}/model")
):
    predict = PredictorSettings(model, score_threshold=0.5, batch_size=1)
    try:
        rows = list(Pipeline(decode, predict, num_predictors=1, units_a_wave=4).rows(worklist))
    except LocrayError as error:
        print(type(error).__name__, error)
    else:
        print(len(rows), sorted(pa.concat_tables(rows)[schema.ORDINAL].to_pylist()))
"""


def test_a_unit_over_which_one_model_worker_after_the_other_dies_is_left_to_the_next_run(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would restart the worker and give it the unit again, without end."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"")
    listing = pa.Table.from_batches(open_source(str(tmp_path)).listing()).sort_by(schema.IMAGE_URI)
    decoded = FetchDecode(InlineWorklist.of(listing, 2), DecodeSettings(32, DecodeLimits(10**6, 10**6), 1, 60))(0)
    stage = pipeline._PredictStage(PredictorSettings(artifact, score_threshold=0.5, batch_size=2), 1)

    def labelled(deaths: int) -> list[dict[str, Any]]:
        monkeypatch.setattr(pipeline, "_deaths", lambda: deaths)
        rows = stage(decoded)
        assert rows.schema == schema.PREDICTED_SCHEMA
        return list(rows.to_pylist())

    first, second = labelled(MAX_DEATHS - 1)
    assert (first[schema.STATUS], second[schema.ERROR_CODE]) == (schema.STATUS_OK, "empty_file")
    given_up, empty = labelled(MAX_DEATHS)
    assert (given_up[schema.STATUS], given_up[schema.ERROR_CODE]) == (schema.STATUS_DEFERRED, "worker")
    assert given_up[schema.ERROR_MESSAGE].startswith("5 model workers died over its unit")
    assert (given_up[schema.DETECTIONS], empty) == (None, second)
    block = pipeline._block_of(UsageError("no model"))
    assert stage(block) is block


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_several_waves_give_each_image_once_and_an_error_that_only_workers_meet_comes_out_as_itself(
    artifact: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUNS, artifact, "/absent"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done
    waves, worklist, model = done.stdout.splitlines()
    assert waves == f"7 {list(range(13))}"
    assert worklist.startswith("StoreAccessError /absent/worklist/worklist-000000 does not exist")
    assert model.startswith("UsageError no model at /absent/model: ")
    assert done.stderr == ""
