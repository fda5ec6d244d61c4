"""Evaluation from a predictions table: same metrics as from the model; wrong tables and rows are refused."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from locray import schema
from locray.config import EvaluateConfig
from locray.datasets import read_dataset
from locray.demo.images import write_dataset
from locray.evaluation.comparison import Comparison
from locray.evaluation.run import evaluate
from locray.evaluation.summary import EvaluationMetrics
from locray.images.decode import DecodeLimits
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import ArtifactInfo
from locray.progress import ignore
from locray.table.writer import TableWriter
from tests.cli.test_cli import locray, refused

MODEL_ID, CONFIG = "small_cnn@0123456789ab", "ba9876543210"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"test": 12}, seed=0)
    (folder / "images" / "test-00007.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights for the classes of the pictures."""
    torch.manual_seed(0)
    folder, classes = str(tmp_path_factory.mktemp("model")), read_dataset(str(data), "csv", "test").classes
    info = ArtifactInfo(architecture="small_cnn", classes=list(classes), input_size=32)
    save_artifact(folder, build_model("small_cnn", len(classes)), info)
    return folder


@pytest.fixture(scope="module")
def labelled(data: Path, model: str) -> pa.Table:
    """Rows of the pictures, labelled in this process."""
    spec = ModelSpec.read(model, EvaluateConfig(data=str(data), format="csv", model=model))
    uris = [record.image_uri for record in read_dataset(str(data), "csv", "test").records]
    unknown = {name: [None] * len(uris) for name in schema.LISTING_SCHEMA.names[1:]}
    listing = pa.table({schema.IMAGE_URI: uris} | unknown, schema=schema.LISTING_SCHEMA)
    worklist = InlineWorklist.of(listing, len(uris))
    return Predictor(spec)(decode_rows(worklist.read_unit(0), spec))


def write(
    table: Path, rows: pa.Table, *, model_id: str = MODEL_ID, config_hash: str = CONFIG, prefix: str | None = None
) -> str:
    """Commits rows as a run does; with a prefix, under other URIs."""
    columns = {name: rows[name] for name in schema.PREDICTED_SCHEMA.names if name != schema.ORDINAL}
    if prefix is not None:
        columns[schema.IMAGE_URI] = pa.array(
            [f"{prefix}/{Path(uri).name}" for uri in rows[schema.IMAGE_URI].to_pylist()]
        )
    columns |= {
        schema.CONFIG_HASH: pa.array([config_hash] * len(rows)),
        schema.RUN_ID: pa.array(["run"] * len(rows)),
        schema.LABELLED_AT: pa.array([datetime.now(UTC)] * len(rows), schema.TIMESTAMP),
    }
    TableWriter.claim(str(table), model_id).append(pa.table(columns), date(2026, 1, 2))
    return str(table)


def options(data: Path, table: str, *more: str) -> tuple[str, ...]:
    return ("evaluate", "--data", str(data), "--format", "csv", "--table", table, *more)


@pytest.mark.parametrize("prefix", [None, "s3://bucket/elsewhere"])
def test_a_table_and_its_model_give_the_same_figures(
    data: Path, labelled: pa.Table, tmp_path: Path, prefix: str | None
) -> None:
    dataset = read_dataset(str(data), "csv", "test")
    config = EvaluateConfig(data=str(data), format="csv", table=write(tmp_path / "t", labelled, prefix=prefix))
    evaluation = evaluate(config, ignore)
    limits = DecodeLimits.of(config)
    comparison = Comparison(limits)
    pairs = zip(dataset.records, labelled.to_pylist(), strict=True)
    metrics = EvaluationMetrics.of([comparison.result(*pair) for pair in pairs])
    assert metrics.localization.class_accuracy > 0
    assert metrics.localization.mean_iou > 0
    assert evaluation.metrics.localization == metrics.localization
    assert evaluation.metrics.detection.map_50_95 == metrics.detection.map_50_95
    assert evaluation.metrics.classes == metrics.classes
    assert evaluation.metrics.calibration == metrics.calibration
    assert (evaluation.summary.images, evaluation.summary.errors) == (12, {"truncated": 1})
    assert (evaluation.summary.model_id, evaluation.summary.config_hash) == (MODEL_ID, CONFIG)


def test_options_of_a_table_include_the_artifacts_threshold(
    data: Path, model: str, labelled: pa.Table, tmp_path: Path
) -> None:
    strict, loaded = str(tmp_path / "strict"), load_artifact(model)
    save_artifact(strict, loaded.model, loaded.info.model_copy(update={"score_threshold": 0.25}))
    usual = ModelSpec.read(strict, EvaluateConfig(data=str(data), format="csv", model=strict))
    table = write(tmp_path / "t", labelled, model_id=usual.key.model_id, config_hash=usual.key.config_hash)
    config = EvaluateConfig(data=str(data), format="csv", table=table, model=strict)
    assert evaluate(config, ignore).summary.config_hash == usual.key.config_hash


def test_the_newest_version_of_an_image_counts(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    nothing = pa.array([[] if found else None for found in labelled[schema.DETECTIONS].to_pylist()])
    without = labelled.set_column(
        labelled.column_names.index(schema.DETECTIONS), schema.DETECTIONS, nothing.cast(pa.list_(schema.DETECTION))
    )
    table = write(tmp_path / "t", labelled)
    write(tmp_path / "t", without)
    facts = json.loads(locray(*options(data, table, "--json")).stdout)
    assert facts["class_accuracy"] == 0


def test_a_higher_threshold_than_that_of_the_table(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    table = write(tmp_path / "t", labelled)
    facts = json.loads(locray(*options(data, table, "--score-threshold", "1", "--json")).stdout)
    assert (facts["images"], facts["class_accuracy"]) == (12, 0)


def test_several_models_or_configurations(data: Path, model: str, labelled: pa.Table, tmp_path: Path) -> None:
    table = write(tmp_path / "t", labelled)
    write(tmp_path / "t", labelled, config_hash="0" * 12)
    message = refused(*options(data, table))
    assert f"{MODEL_ID}/{CONFIG} (12 rows)" in message
    assert f"{MODEL_ID}/{'0' * 12} (12 rows)" in message
    assert "--model ID/CONFIGURATION" in refused(*options(data, table, "--model", MODEL_ID))
    facts = json.loads(locray(*options(data, table, "--model", f"{MODEL_ID}/{CONFIG}", "--json")).stdout)
    assert (facts["model_id"], facts["config_hash"]) == (MODEL_ID, CONFIG)
    assert "no rows of small_cnn@" in refused(*options(data, table, "--model", model))
    spec = ModelSpec.read(model, EvaluateConfig(data="d", format="csv", model=model))
    write(tmp_path / "t", labelled, model_id=spec.key.model_id, config_hash=spec.key.config_hash)
    facts = json.loads(locray(*options(data, table, "--model", model, "--json")).stdout)
    assert facts["model_id"] == spec.key.model_id


def test_images_without_a_row(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    table = write(tmp_path / "t", labelled.slice(2))
    message = refused(*options(data, table))
    assert "2 of 12 images have no row" in message
    assert "test-00001.jpg" in message
    message = refused(
        *options(data, write(tmp_path / "u", labelled, prefix="s3://b", model_id="other@0123456789ab")),
        "--model",
        MODEL_ID,
    )
    assert "other@0123456789ab" in message


def test_ambiguous_rows_are_an_error(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    table = write(tmp_path / "t", labelled, prefix="s3://a/x")
    write(tmp_path / "t", labelled, prefix="s3://b/x")
    assert "12 of 12 images can't be told apart" in refused(*options(data, table))


def test_a_missing_table_is_an_error(data: Path, model: str, labelled: pa.Table, tmp_path: Path) -> None:
    assert "no predictions table" in refused(*options(data, str(tmp_path / "absent")))
    assert "no predictions table" in refused(*options(data, model))
    other = write(tmp_path / "t", labelled.slice(0, 0))
    assert "holds no row for any of the 12 images" in refused(*options(data, other))


def test_bad_usage(data: Path, model: str, tmp_path: Path) -> None:
    common = ("evaluate", "--data", str(data), "--format", "csv")
    assert "--model or --table is required" in refused(*common)
    assert "model.json" in refused(*common, "--model", str(tmp_path))
    message = refused(*common, "--model", model, "--split", "tets")
    assert "'tets'" in message
    assert "test" in message
    for option in ("--page", "--output"):
        assert "is a folder" in refused(*common, "--model", model, option, str(tmp_path))


def test_metrics_are_written_to_a_file(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    table, output = write(tmp_path / "t", labelled), tmp_path / "deep" / "figures.json"
    done = locray(*options(data, table, "--output", str(output), "--json"))
    facts, written = json.loads(done.stdout), json.loads(output.read_text())
    assert facts == written
    assert sum(map(sum, facts["confusion"]["counts"])) == 12
    assert {row["label"] for row in facts["classes"]} >= set(read_dataset(str(data), "csv", "test").classes)


def test_a_page_is_written_and_metrics_are_printed(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    table, page = write(tmp_path / "t", labelled), tmp_path / "deep" / "page.html"
    done = locray(*options(data, table, "--page", str(page)))
    assert done.returncode == 0, done
    assert "map_50_95" in done.stdout
    assert "calibration_error" in done.stdout
    assert f"Rows of {table}" in page.read_text()


def test_boxes_outside_their_image_are_skipped_and_counted(labelled: pa.Table, tmp_path: Path) -> None:
    """Without a frame in the annotations, this is noticed only when the image is opened."""
    uris = labelled[schema.IMAGE_URI].to_pylist()
    rows = [f"{uri},cow,{box}" for uri in uris for box in ("9999,0,10020,50", "0,0,9,9")]
    (tmp_path / "test.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))
    table = write(tmp_path / "t", labelled)
    facts = json.loads(locray(*options(tmp_path, table, "--json")).stdout)
    assert (facts["images"], facts["errors"]) == (12, {"truncated": 1})
    assert facts["skipped"] == {"outside_box": 11}
    assert facts["objects"] == 12 + 1, "the size of the one that is broken is not known"
    message = refused(*options(tmp_path, table, "--strict"))
    assert f"{tmp_path}/test.csv, image" in message
    assert "box of 'cow': 9999 0 10020 50 in an image of" in message


def test_strict_refuses_unusable_images(data: Path, labelled: pa.Table, tmp_path: Path) -> None:
    message = refused(*options(data, write(tmp_path / "t", labelled), "--strict"))
    assert f"{data}/images/test-00007.jpg: could not be labelled (truncated)" in message
