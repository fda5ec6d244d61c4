"""A detector and its table give the same metrics at the same score threshold, and only there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from locray import schema
from locray.config import EvaluateConfig
from locray.convert.comparison import check_images
from locray.datasets.csv_boxes import write_csv
from locray.datasets.records import Annotation, ImageAnnotations
from locray.demo.images import write_dataset
from locray.evaluation.run import evaluate
from locray.evaluation.summary import EvaluationMetrics
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import InlineWorklist
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactInfo
from locray.progress import ignore
from tests.evaluation.test_table import write
from tests.helpers.in_process import InProcess, without_ray
from tests.helpers.one_thread import one_thread
from tests.models.test_detectors import make_lively

__all__ = ["one_thread", "without_ray"]

ARCHITECTURE, SIZE, CLASSES = "detector/fcos/mobilenet_v3_small", 64, ["bolt", "nut", "screw"]
THRESHOLD = 0.35


@dataclass(frozen=True)
class Labelled:
    """A detector, and a table that `locray label` has written with it."""

    data: str
    model: str
    table: str
    config_hash: str

    def config(self, **options: object) -> EvaluateConfig:
        return EvaluateConfig(data=self.data, format="csv", precision="fp32", **options)


@pytest.fixture
def labelled(tmp_path: Path) -> Labelled:
    """An artifact with a threshold; some of its detections below are correct, too."""
    write_dataset(tmp_path, {"test": 8}, seed=0)
    torch.manual_seed(0)
    network = build_model(ARCHITECTURE, len(CLASSES), SIZE)
    make_lively(network, lambda own: own.predict(check_images(SIZE).permute(0, 3, 1, 2)))
    model = str(tmp_path / "model")
    info = ArtifactInfo(architecture=ARCHITECTURE, classes=CLASSES, input_size=SIZE, score_threshold=THRESHOLD)
    save_artifact(model, network, info)
    config = EvaluateConfig(data=str(tmp_path), format="csv", model=model, precision="fp32")
    usual = ModelSpec.read(model, config)
    everything = ModelSpec.read(model, config.model_copy(update={"score_threshold": 0.0}))
    objects = [_first_and_last(row) for row in rows_of(everything, tmp_path).to_pylist()]
    (tmp_path / "test.csv").write_text(write_csv(objects), newline="")
    key = usual.key
    table = write(tmp_path / "table", rows_of(usual, tmp_path), model_id=key.model_id, config_hash=key.config_hash)
    return Labelled(str(tmp_path), model, table, key.config_hash)


def rows_of(spec: ModelSpec, folder: Path) -> pa.Table:
    uris = sorted(map(str, (folder / "images").iterdir()))
    unknown = {name: [None] * len(uris) for name in schema.LISTING_SCHEMA.names[1:]}
    listing = pa.table({schema.IMAGE_URI: uris} | unknown, schema=schema.LISTING_SCHEMA)
    (rows,) = InProcess(spec).rows(InlineWorklist.of(listing, len(uris)))
    return rows


def _first_and_last(row: dict[str, Any]) -> ImageAnnotations:
    """An image annotated with its first and last detection, one on either side of the threshold."""
    found = [row[schema.DETECTIONS][place] for place in (0, -1)]
    assert found[0][schema.SCORE] > THRESHOLD > found[1][schema.SCORE]
    corners = schema.CORNERS
    objects = tuple(Annotation(one[schema.LABEL], tuple(one[name] for name in corners)) for one in found)
    return ImageAnnotations(
        f"images/{Path(row[schema.IMAGE_URI]).name}", objects, row[schema.WIDTH], row[schema.HEIGHT]
    )


def what_counts_detections(metrics: EvaluationMetrics) -> list[object]:
    return [
        metrics.localization,
        metrics.detection.map_50_95,
        metrics.detection.map_50,
        metrics.classes,
        metrics.confusion.counts.tolist(),
        metrics.calibration,
        metrics.best_threshold,
    ]


@pytest.mark.usefixtures("without_ray")
def test_detector_and_table_give_equal_metrics_at_equal_threshold(labelled: Labelled) -> None:
    of_table = evaluate(labelled.config(table=labelled.table), ignore)
    at_threshold = evaluate(labelled.config(model=labelled.model, score_threshold=THRESHOLD), ignore)
    whole = evaluate(labelled.config(model=labelled.model), ignore)
    assert what_counts_detections(at_threshold.metrics) == what_counts_detections(of_table.metrics)
    assert at_threshold.summary.config_hash == of_table.summary.config_hash == labelled.config_hash
    assert whole.metrics.detection.map_50 > of_table.metrics.detection.map_50 > 0
    assert whole.metrics.confusion.counts.tolist() == of_table.metrics.confusion.counts.tolist()
    assert [(row.precision, row.recall) for row in whole.metrics.classes] == [
        (row.precision, row.recall) for row in of_table.metrics.classes
    ]
    assert (whole.summary.score_threshold, at_threshold.summary.score_threshold) == (THRESHOLD, THRESHOLD)
    assert whole.summary.config_hash != labelled.config_hash
