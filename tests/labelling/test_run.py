"""Labelling as a user runs it: real Ray, real stores, and the table read back with common readers.

Tests that don't depend on Ray run the stages in the driver's process.
"""

import hashlib
import io
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import safetensors.numpy
from PIL import Image

from locray import schema
from locray.models.files import INFO_FILE, WEIGHTS_FILE
from tests.helpers.commands import locray
from tests.helpers.made_up import without_ray
from tests.helpers.s3_server import S3Bucket
from tests.helpers.tables import dataset_of

Run = Callable[..., subprocess.CompletedProcess[str]]


def with_ray(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.ray(pytest.mark.usefixtures("ray_cluster")(test))


def picture(seed: int, size: tuple[int, int] = (60, 40), image_format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def rows_of(table: str) -> pd.DataFrame:
    frame = dataset_of(table).to_table()
    return frame.to_pandas().sort_values(schema.IMAGE_URI, ignore_index=True)


def label(
    images: str, model: str, table: str, *options: str, exit_code: int = 0, run: Run = without_ray
) -> dict[str, object]:
    done = run("label", "--images", images, "--model", model, "--table", table, "--json", *options)
    assert done.returncode == exit_code, done
    assert "Traceback" not in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] + summary["failed"] + summary["deferred"] == summary["planned"]
    return dict(summary)


@with_ray
def test_a_folder_becomes_a_table_and_the_next_night_only_what_changed(tmp_path: Path, artifact: str) -> None:
    images, table = tmp_path / "images", str(tmp_path / "table")
    odd_names = ["with space.jpg", "ünï/cödé.JPG", "ha#sh.jpg", "per%20cent.jpg", "no_ending", "deep/er/x.jpeg"]
    for number, name in enumerate([*odd_names, *(f"{n:03d}.jpg" for n in range(40))]):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(picture(number))
    (images / "a.png").write_bytes(picture(100, image_format="PNG"))
    (images / "empty.jpg").write_bytes(b"")
    (images / "page.jpg").write_bytes(b"<!doctype html><title>404</title>")
    (images / "cut.jpg").write_bytes(picture(101)[:400])

    first = label(str(images), artifact, table, "--unit-size", "16", run=locray)
    assert (first["listed"], first["ok"], first["failed"], first["commits"]) == (50, 47, 3, 1)
    assert first["errors"] == {"empty_file": 1, "unsupported_format": 1, "truncated": 1}
    rows = rows_of(table)
    assert sorted(rows[schema.IMAGE_URI]) == sorted(str(path) for path in images.rglob("*") if path.is_file())
    ok = rows[rows[schema.STATUS] == schema.STATUS_OK]
    assert set(zip(ok[schema.WIDTH], ok[schema.HEIGHT], strict=True)) == {(60, 40)}
    for found in ok[schema.DETECTIONS]:
        for box in found:
            assert 0 <= box[schema.XMIN] < box[schema.XMAX] <= 60
            assert 0 <= box[schema.YMIN] < box[schema.YMAX] <= 40
            assert 0 < box[schema.SCORE] <= 1
    assert rows[rows[schema.STATUS] == schema.STATUS_FAILED][schema.DETECTIONS].isna().all()

    second = label(str(images), artifact, table)
    assert (second["already_labelled"], second["planned"], second["commits"]) == (50, 0, 0)

    (images / "000.jpg").write_bytes(picture(200, size=(30, 30)))
    (images / "new.jpg").write_bytes(picture(201))
    (images / "001.jpg").unlink()
    third = label(str(images), artifact, table)
    assert (third["listed"], third["planned"], third["ok"]) == (50, 2, 2)
    assert Counter(rows_of(table)[schema.IMAGE_URI])[str(images / "000.jpg")] == 2
    (of_the_model,) = (tmp_path / "table" / "_locray").iterdir()
    assert list(of_the_model.iterdir()) == []


@pytest.mark.slow
def test_failed_images_are_tried_again_when_asked(tmp_path: Path, artifact: str) -> None:
    images, table = tmp_path / "images", str(tmp_path / "table")
    images.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(picture(number))
    (images / "page.jpg").write_bytes(b"<!doctype html>")
    listing = tmp_path / "listing.csv"
    uris = [str(images / name) for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "late.jpg", "page.jpg")]
    listing.write_text("\n".join([schema.IMAGE_URI, *uris]) + "\n")
    summary = label(str(listing), artifact, table, exit_code=3)
    assert summary["errors"] == {"not_found": 1, "unsupported_format": 1}
    before = rows_of(table).set_index(schema.IMAGE_URI)[schema.RUN_ID]

    (images / "late.jpg").write_bytes(picture(10))
    arguments = ("--images", str(listing), "--model", artifact, "--table", table, "--json")
    planned = json.loads(without_ray("plan", *arguments, "--retry-failed", "not_found").stdout)
    assert (planned["planned"], planned["retried"], planned["new"], planned["already_labelled"]) == (1, 1, 0, 5)
    summary = label(str(listing), artifact, table, "--retry-failed", "not_found")
    assert (summary["planned"], summary["ok"], summary["failed"]) == (1, 1, 0)
    rows = rows_of(table).set_index(schema.IMAGE_URI)
    assert rows[schema.ERROR_CODE].dropna().to_dict() == {uris[-1]: "unsupported_format"}
    assert (rows[schema.RUN_ID] == before).to_dict() == {uri: uri != uris[-2] for uri in uris}

    summary = label(str(listing), artifact, table, "--retry-failed")
    assert (summary["planned"], summary["errors"], summary["commits"]) == (1, {"unsupported_format": 1}, 1)
    rows = rows_of(table).set_index(schema.IMAGE_URI)
    assert sorted(rows.index) == sorted(uris)
    assert rows[schema.RUN_ID][uris[-1]] == summary["run_id"]

    listing.write_text("\n".join([schema.IMAGE_URI, *uris, str(images / "gone.jpg")]) + "\n")
    summary = label(str(listing), artifact, table)
    assert (summary["planned"], summary["errors"], summary["deferred"]) == (1, {"not_found": 1}, 0)
    assert label(str(listing), artifact, table)["planned"] == 0


@with_ray
@pytest.mark.s3
def test_a_bucket_becomes_a_table_on_the_bucket_for_every_reader(s3_bucket: S3Bucket, artifact: str) -> None:
    keys = [f"in/{n:03d}.jpg" for n in range(30)] + ["in/a b#c%20.JPG", "in/ünï", "in/new\nline.jpg"]
    for number, key in enumerate(keys):
        s3_bucket.put(key, picture(number))
    s3_bucket.put("in/broken.jpg", b"not an image")
    table = f"{s3_bucket.uri}/out/predictions"
    summary = label(f"{s3_bucket.uri}/in", artifact, table, "--unit-size", "8", run=locray)
    assert (summary["ok"], summary["errors"]) == (33, {"unsupported_format": 1})

    predictions = dataset_of(table)
    assert isinstance(predictions, ds.Dataset)
    by_pyarrow = predictions.to_table()
    assert sorted(by_pyarrow[schema.IMAGE_URI].to_pylist()) == sorted(
        f"{s3_bucket.uri}/{key}" for key in [*keys, "in/broken.jpg"]
    )
    connection = duckdb.connect()
    connection.register("predictions", predictions)
    counts = connection.execute(
        f"SELECT {schema.STATUS}, count(*), sum(len({schema.DETECTIONS}))::INT FROM predictions GROUP BY ALL ORDER BY 1"
    ).fetchall()
    assert counts == [("failed", 1, None), ("ok", 33, 33)]
    frame = by_pyarrow.to_pandas()
    assert frame[schema.LABELLED_AT].dt.tz is not None
    assert frame[schema.DETECTIONS].notna().sum() == 33
    assert label(f"{s3_bucket.uri}/in", artifact, table)["planned"] == 0
    assert not [key for key in list(s3_bucket.keys()) if "_locray" in key]


@pytest.mark.s3
def test_an_empty_prefix_is_wrong_usage_until_it_was_labelled_once(s3_bucket: S3Bucket, artifact: str) -> None:
    table = f"{s3_bucket.uri}/out"
    arguments = ("--images", f"{s3_bucket.uri}/in", "--model", artifact, "--table", table)
    for verb in ("plan", "label"):
        done = without_ray(verb, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"no object lies below {s3_bucket.uri}/in/" in done.stderr
    assert s3_bucket.keys() == []
    s3_bucket.put("in/a.jpg", picture(0))
    of_one_unit = label(f"{s3_bucket.uri}/in", artifact, table)
    assert (of_one_unit["ok"], of_one_unit["images_per_s_steady"]) == (1, None)
    s3_bucket.client.delete_object(Bucket=s3_bucket.name, Key="in/a.jpg")
    for verb in ("plan", "label"):
        done = without_ray(verb, *arguments)
        assert done.returncode == 0, done
        assert f"There is no image in {s3_bucket.uri}/in: nothing to label." in done.stderr
    assert len(rows_of(table)) == 1


@pytest.mark.slow
def test_when_nothing_can_be_labelled_the_run_stops_and_says_so(tmp_path: Path, artifact: str) -> None:
    images, table = tmp_path / "images", str(tmp_path / "table")
    images.mkdir()
    for number in range(600):
        (images / f"{number:04d}.jpg").write_bytes(b"no image")
    done = without_ray(
        "label", "--images", str(images), "--model", artifact, "--table", table, "--json", "--unit-size", "50"
    )
    assert done.returncode == 3, done
    summary = json.loads(done.stdout.splitlines()[-1])
    failed, deferred = summary["failed"], summary["deferred"]
    assert (summary["planned"], summary["ok"], failed + deferred) == (600, 0, 600)
    assert 200 <= failed == len(rows_of(table)) < 600
    told = " ".join(done.stderr.split())
    assert f"{failed} of {failed} images failed (unsupported_format {failed}), more than --max-failure-rate" in told
    assert f"{deferred} images were deferred (not_tried {deferred}): the next run will retry them. " in told
    assert f"Reason: the run was aborted: none of the first {failed} images could be labelled" in told


@pytest.mark.slow
def test_limit_and_plan_and_status(tmp_path: Path, artifact: str) -> None:
    images, table = tmp_path / "images", str(tmp_path / "table")
    images.mkdir()
    for number in range(10):
        (images / f"{number}.jpg").write_bytes(picture(number))
    arguments = ("--images", str(images), "--model", artifact, "--table", table, "--json")
    planned = without_ray("plan", *arguments, "--hourly-price", "3.6")
    assert " limits the speed: " in planned.stderr
    before = json.loads(planned.stdout)
    assert (before["listed"], before["new"], before["changed"], before["planned"]) == (10, 10, 0, 10)
    assert before["estimated_cost"] == pytest.approx(before["estimated_s"] * 0.001, abs=1e-3)
    assert before["bottleneck"] in {"fetching", "decoding", "predicting"}
    assert before["images_per_s"] < min(before[f"{stage}_images_per_s"] for stage in ("decode", "predict"))
    assert not (tmp_path / "table").exists()
    assert label(str(images), artifact, table, "--limit", "4", "--run-date", "2026-01-02")["ok"] == 4
    (images / "0.jpg").write_bytes(picture(50))
    after = json.loads(without_ray("plan", *arguments).stdout)
    assert (after["new"], after["changed"], after["already_labelled"]) == (6, 1, 3)
    verified = without_ray("verify", *arguments)
    assert verified.returncode == 4, verified
    found = json.loads(verified.stdout)
    pending = {check: finding["count"] for check, finding in found["pending"].items()}
    assert (found["faults"], pending, found["compared"]) == ({}, {"image_without_row": 6, "image_changed": 1}, 3)
    status = json.loads(without_ray("status", "--table", table, "--json").stdout)
    assert status["rows"] == 4
    assert [(run["run_date"], run["ok"], run["failed"]) for run in status["runs"]] == [("2026-01-02", 4, 0)]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_before_anything_is_begun(
    tmp_path: Path, artifact: str, number: float
) -> None:
    images, model, table = tmp_path / "images", tmp_path / "model", tmp_path / "table"
    images.mkdir()
    (images / "a.jpg").write_bytes(picture(0))
    shutil.copytree(artifact, model)
    tensors = safetensors.numpy.load_file(model / WEIGHTS_FILE)
    next(iter(tensors.values())).flat[0] = number
    safetensors.numpy.save_file(tensors, model / WEIGHTS_FILE)
    info = json.loads((model / INFO_FILE).read_bytes())
    info["weights_sha256"] = hashlib.sha256((model / WEIGHTS_FILE).read_bytes()).hexdigest()
    (model / INFO_FILE).write_text(json.dumps(info), encoding="utf-8")
    done = without_ray("label", "--images", str(images), "--model", str(model), "--table", str(table))
    assert done.returncode == 2, done
    assert "are not finite, such as" in done.stderr
    assert not table.exists()
