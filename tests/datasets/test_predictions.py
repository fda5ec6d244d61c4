from datetime import UTC, date, datetime

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from locray import schema, storage
from locray.config import ConvertConfig
from locray.datasets import Annotation, list_splits, read_dataset
from locray.datasets.conversion import convert
from locray.errors import UsageError
from locray.progress import ignore

OLD, NEW = "net@0123456789ab", "net@ba9876543210"


def detection(score, label="cow"):
    box = {schema.XMIN: 1.0, schema.YMIN: 2.0, schema.XMAX: 3.5, schema.YMAX: 4.0}
    return {schema.LABEL_ID: 0, schema.LABEL: label, schema.SCORE: score, **box}


def row(name, detections, *, day=1, model_id=OLD, etag="v1"):
    failed = detections is None
    return {
        schema.IMAGE_URI: f"s3://bucket/{name}.jpg",
        schema.ETAG: etag,
        schema.SIZE_BYTES: 10,
        schema.LAST_MODIFIED: None,
        schema.WIDTH: None if failed else 64,
        schema.HEIGHT: None if failed else 48,
        schema.FORMAT: "jpeg",
        schema.STATUS: schema.STATUS_FAILED if failed else schema.STATUS_OK,
        schema.ERROR_CODE: "corrupt" if failed else None,
        schema.ERROR_MESSAGE: None,
        schema.DETECTIONS: detections,
        schema.MODEL_ID: model_id,
        schema.CONFIG_HASH: "c0ffee",
        schema.RUN_ID: "run",
        schema.RUN_DATE: date(2026, 1, day),
        schema.LABELLED_AT: datetime(2026, 1, day, 12, tzinfo=UTC),
    }


def make_table(uri, *rows):
    uri = str(uri)
    table = pa.Table.from_pylist(list(rows), schema=schema.PREDICTIONS_SCHEMA)
    options = storage.delta_storage_options(uri)
    write_deltalake(uri, table, mode="append", partition_by=schema.PARTITION_COLUMNS, storage_options=options)
    return uri


def labels(dataset):
    return {
        record.image_uri[len("s3://bucket/") : -4]: [found.label for found in record.objects]
        for record in dataset.records
    }


def test_detections_above_the_minimum_score_are_annotations(tmp_path):
    rows = [
        row("some", [detection(0.9), detection(0.5, "ant"), detection(0.49, "bee")]),
        row("none", []),
        row("doubtful", [detection(0.4), detection(0.3)]),
        row("failed", None),
    ]
    uri = make_table(tmp_path / "table", *rows)
    assert list_splits(uri, "predictions") == ["train"]

    dataset = read_dataset(uri, "predictions", "train")

    assert labels(dataset) == {"none": [], "some": ["cow", "ant"]}
    record = dataset.records[1]
    assert record.objects[0] == Annotation("cow", (1, 2, 3.5, 4))
    assert (record.width_px, record.height_px) == (64, 48)
    assert dataset.skipped == {"failed_image": 1, "low_score": 1}
    assert labels(read_dataset(uri, "predictions", "train", min_score=0.95)) == {"none": []}
    assert labels(read_dataset(uri, "predictions", "train", min_score=0))["doubtful"] == ["cow"]


def test_a_table_is_converted_without_opening_its_images(tmp_path):
    uri = make_table(tmp_path / "table", row("some", [detection(0.9), detection(0.1)]), row("failed", None))
    config = ConvertConfig(data=uri, format="predictions", to="coco", output=str(tmp_path / "out"), min_score=0.5)
    assert convert(config, ignore).skipped == {"failed_image": 1}
    (record,) = read_dataset(str(tmp_path / "out"), "coco", "train").records
    assert (record.image_uri, record.objects) == ("s3://bucket/some.jpg", (Annotation("cow", (1, 2, 3.5, 4)),))


def test_the_newest_row_of_an_image_counts(tmp_path):
    uri = make_table(
        tmp_path / "table",
        row("a", [detection(0.9, "new")], day=3, etag="v2"),
        row("a", [detection(0.9, "old")], day=1),
        row("broken since", [detection(0.9)], day=1),
        row("broken since", None, day=2, etag="v2"),
    )
    make_table(tmp_path / "table", row("a", [detection(0.9, "middle")], day=2))
    dataset = read_dataset(uri, "predictions", "train")
    assert labels(dataset) == {"a": ["new"]}
    assert dataset.skipped == {"failed_image": 1}


def test_each_of_several_models_is_a_split(tmp_path):
    uri = make_table(
        tmp_path / "table",
        row("a", [detection(0.9, "old")], day=1),
        row("b", [detection(0.9, "old")], day=1),
        row("a", [detection(0.9, "new")], day=2, model_id=NEW),
    )
    assert list_splits(uri, "predictions") == [OLD, NEW, "train"]
    assert labels(read_dataset(uri, "predictions", "train")) == {"a": ["new"], "b": ["old"]}
    assert labels(read_dataset(uri, "predictions", OLD)) == {"a": ["old"], "b": ["old"]}
    assert labels(read_dataset(uri, "predictions", NEW)) == {"a": ["new"]}
    with pytest.raises(UsageError, match=rf"no split 'net@0' in .*It has: {OLD}, {NEW}, train"):
        read_dataset(uri, "predictions", "net@0")


def test_strict_refuses_failures_but_not_low_scores(tmp_path):
    doubtful = [row("a", [detection(0.9)]), row("b", [detection(0.4)])]
    uri = make_table(tmp_path / "table", *doubtful)
    assert labels(read_dataset(uri, "predictions", "train", strict=True)) == {"a": ["cow"]}
    make_table(tmp_path / "table", row("c", None))
    with pytest.raises(
        UsageError, match=r"image s3://bucket/c.jpg: failed_image. Found in split 'train': 1 x failed_im"
    ):
        read_dataset(uri, "predictions", "train", strict=True)


def test_tables_that_hold_no_predictions(tmp_path):
    with pytest.raises(UsageError, match=r"Found no splits in .*Expected: a predictions table"):
        read_dataset(str(tmp_path), "predictions", "train")
    write_deltalake(str(tmp_path / "other"), pa.table({schema.IMAGE_URI: ["a"]}))
    with pytest.raises(UsageError, match=r"other is a Delta table without the columns etag, .*Expected a predictions"):
        read_dataset(str(tmp_path / "other"), "predictions", "train")


@pytest.mark.s3
def test_a_table_in_a_bucket(s3_bucket):
    uri = make_table(f"{s3_bucket.uri}/table", row("a", [detection(0.9)]))
    assert list_splits(uri, "predictions") == ["train"]
    assert labels(read_dataset(uri, "predictions", "train")) == {"a": ["cow"]}
    assert list_splits(s3_bucket.uri, "predictions") == []
