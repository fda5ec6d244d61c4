"""End to end on real photographs: train from VOC, label from S3 into a table on S3, evaluate; results agree."""

import json
from pathlib import Path

import pytest

from locray import schema
from locray.datasets import read_dataset
from tests.helpers.commands import locray
from tests.helpers.s3_server import S3Bucket
from tests.helpers.tables import dataset_of

pytestmark = [pytest.mark.ray, pytest.mark.s3]

NUM_IMAGES = {"train": 192, "val": 32, "test": 48}
MODEL = (
    "--model",
    "localizer/mobilenet_v2",
    "--input-size",
    "128",
    "--epochs",
    "2",
    "--workers",
    "2",
    "--batch-size",
    "32",
)


def some_of(real: Path, folder: Path) -> None:
    """Returns a data set of some of the real images: every n-th id of each split."""
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (folder / name).symlink_to(real / name)
    for split, count in NUM_IMAGES.items():
        ids = (real / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        chosen = ids[:: len(ids) // count][:count]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(chosen) + "\n")


def last_line(*arguments: str) -> dict[str, object]:
    done = locray(*arguments, "--json")
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_from_annotations_to_a_table_that_evaluation_agrees_with(
    real_data: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    data, model = tmp_path / "runway", str(tmp_path / "model")
    some_of(real_data / "runway", data)
    trained = last_line("train", "--data", str(data), "--format", "voc", "--output", model, *MODEL)
    assert (trained["train_images"], trained["val_images"], trained["epochs"]) == (192, 32, 2)
    page = tmp_path / "model" / "report.html"
    assert trained["page"] == str(page)
    assert "of split &#39;val&#39;" in page.read_text()
    again = last_line("train", "--data", str(data), "--format", "voc", "--output", model, *MODEL)
    assert (again["already_trained"], again["model_id"], again["page"]) == (True, trained["model_id"], str(page))

    truth = {Path(record.image_uri).name: record for record in read_dataset(str(data), "voc", "test").records}
    for name in truth:
        s3_bucket.put(f"test/{name}", (data / "JPEGImages" / name).read_bytes())
    table = f"{s3_bucket.uri}/predictions"
    labelled = last_line("label", "--images", f"{s3_bucket.uri}/test", "--model", model, "--table", table)
    assert (labelled["ok"], labelled["failed"], labelled["model_id"]) == (len(truth), 0, trained["model_id"])
    rows = dataset_of(table).to_table()
    best = {
        row[schema.IMAGE_URI].rsplit("/", 1)[-1]: row[schema.DETECTIONS][0][schema.LABEL] for row in rows.to_pylist()
    }
    assert best.keys() == truth.keys()

    evaluation = last_line("evaluate", "--data", str(data), "--format", "voc", "--model", model, "--unit-size", "16")
    assert (evaluation["images"], evaluation["errors"]) == (len(truth), {})
    right = sum(best[name] in {found.label for found in record.objects} for name, record in truth.items())
    assert evaluation["class_accuracy"] == pytest.approx(right / len(truth), abs=1e-3)
    assert 0 < float(str(evaluation["mean_iou"])) < 1

    from_table = last_line("evaluate", "--data", str(data), "--format", "voc", "--table", table)
    assert from_table["images"] == len(truth)
    assert {**from_table, "table": None, "wall_s": 0} == {**evaluation, "wall_s": 0}
