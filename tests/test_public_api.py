"""`import locray`: its names, their import cost, and that they do the same as the commands."""

import ast
import inspect
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image

import locray
from locray import schema
from locray.config import InferenceOptions
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist
from locray.table.open import create_table
from tests.helpers.commands import PROJECT_ROOT

NAMES = """
    Annotation Dataset ErrorCode EvaluateConfig EvaluationSummary ExitCode ExportError FencedError ImageLike
    ImagePrediction InferenceOptions LabelConfig LabelPlan LabelSummary LocrayError Model NightlyConfig NightlyRun
    PlanConfig Progress Record RunStoppedError StoreAccessError StoreError TrainConfig TrainSummary UsageError
    Verification VerifyConfig WorkersFailedError __version__ evaluate label load_model nightly plan read_dataset
    read_predictions train verify
"""
MODEL_A, MODEL_B = "a@000000000001", "b@000000000002"
CONFIG_1, CONFIG_2 = "00000000000a", "00000000000b"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Paths of images in several forms, and of a broken image."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)

    def picture(height, width):
        return Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))

    picture(32, 32).save(folder / "0_as_the_network.png")
    picture(300, 500).save(folder / "1_large.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 60).save(folder / "2_turned.jpg", exif=exif)
    picture(50, 20).save(folder / "3_small.png")
    (folder / "4_broken.jpg").write_bytes((folder / "1_large.jpg").read_bytes()[:200])
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def model(artifact):
    return locray.load_model(artifact, device="cpu", precision="fp32", score_threshold=0)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table with a row per model, configuration and date."""
    uri = str(tmp_path_factory.mktemp("table") / "t")
    create_table(uri)
    keys = [(MODEL_A, CONFIG_1, 1), (MODEL_A, CONFIG_2, 2), (MODEL_B, CONFIG_1, 2)]
    rows = [
        {
            schema.IMAGE_URI: f"/{number}.jpg",
            schema.STATUS: schema.STATUS_OK,
            schema.MODEL_ID: model_id,
            schema.CONFIG_HASH: config_hash,
            schema.RUN_ID: "r",
            schema.RUN_DATE: date(2026, 1, day),
            schema.LABELLED_AT: datetime(2026, 1, day, tzinfo=UTC),
        }
        for number, (model_id, config_hash, day) in enumerate(keys)
    ]
    write_deltalake(uri, pa.Table.from_pylist(rows, schema=schema.PREDICTIONS_SCHEMA), mode="append")
    return uri


def same(a, b):
    """Compares predictions up to rounding, which depends on the batch size."""
    np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    assert (a.labels, a.width_px, a.height_px, a.error_code) == (b.labels, b.width_px, b.height_px, b.error_code)
    return True


def test_the_public_names_are_these():
    assert sorted(locray.__all__) == NAMES.split()
    assert all(getattr(locray, name) is not None for name in locray.__all__)
    assert set(locray.__all__) <= set(dir(locray))
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        _ = locray.lable


def test_types_and_values_come_from_the_same_modules():
    tree = ast.parse(Path(locray.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {imported.names[0].asname: imported.module for imported in block.body}
    assert typed == locray._MODULE_OF


def test_the_import_alone_loads_no_library():
    program = "import sys, locray; print({name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "ray", "pyarrow", "numpy", "pydantic", "click"} & ast.literal_eval(loaded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tabel": "t"}, "unknown option 'tabel'. Did you mean 'table'?"),
        ({"batch_size": 0}, "--batch-size: input should be greater than or equal to 1; found 0"),
        ({}, "--images is required"),
        ({"config": locray.LabelConfig(images="i", model="m", table="t"), "limit": 3}, "a configuration and limit"),
    ],
)
def test_wrong_options_are_usage_errors(options, message):
    with pytest.raises(locray.UsageError, match=re.escape(message)):
        locray.label(**options)


def test_options_and_configurations_mean_the_same(tmp_path):
    given = {"images": tmp_path / "absent", "model": tmp_path / "m", "table": tmp_path / "t"}
    config = locray.LabelConfig(**{name: str(value) for name, value in given.items()})
    stages = []
    for call in (lambda: locray.label(config), lambda: locray.label(**given, progress=stages.append)):
        with pytest.raises(locray.UsageError, match="absent"):
            call()
    assert [progress.stage for progress in stages] == ["checking"]


def test_the_signature_shows_the_options():
    for function, config_class in [(locray.label, locray.LabelConfig), (locray.train, locray.TrainConfig)]:
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:2] == ["config", "progress"]
        assert "options" not in parameters
        assert {field.alias or name for name, field in config_class.model_fields.items()} < set(parameters)


def test_a_model_predicts_what_the_stages_of_label_do(model, artifact, images):
    config = InferenceOptions(device="cpu", precision="fp32", score_threshold=0)
    spec = ModelSpec.read(artifact, config)
    assert (model.model_id, model.config_hash) == (spec.key.model_id, spec.key.config_hash)
    worklist = InlineWorklist.of_uris([str(path) for path in images], len(images))
    rows = Predictor(spec)(decode_rows(worklist.read_unit(0), spec)).to_pylist()
    predictions = model.predict(images)
    assert [found.error_code for found in predictions] == [None] * 4 + [locray.ErrorCode.TRUNCATED]
    for row, found in zip(rows, predictions, strict=True):
        detections = row[schema.DETECTIONS] or []
        assert len(found) == len(detections)
        assert found.boxes_xyxy_px.tolist() == [[one[corner] for corner in schema.CORNERS] for one in detections]
        assert found.scores.tolist() == [one[schema.SCORE] for one in detections]
        assert found.labels == [one[schema.LABEL] for one in detections]
        assert [model.classes[number] for number in found.label_ids] == found.labels
        assert (found.width_px, found.height_px) == (row[schema.WIDTH], row[schema.HEIGHT])
    assert sum(map(len, predictions)) == 4


def test_bytes_pictures_and_arrays_are_images_too(model, images):
    expected = model.predict(images)
    for found, wanted in zip(model.predict([path.read_bytes() for path in images]), expected, strict=True):
        assert same(found, wanted)
    for number in (0, 3):  # not a JPEG, which may be decoded at a reduced size
        with Image.open(images[number]) as picture:
            for found in model.predict([picture, np.asarray(picture)]):
                assert same(found, expected[number])
    with Image.open(images[2]) as turned:
        (found,) = model.predict([turned])
    assert (found.width_px, found.height_px) == (40, 60)


def test_units_and_kinds_may_be_mixed(artifact, images):
    one_by_one = locray.load_model(artifact, device="cpu", precision="fp32", unit_size=2, batch_size=1)
    at_once = locray.load_model(artifact, device="cpu", precision="fp32", batch_size=1)
    mixed = [images[0], images[1].read_bytes(), Image.open(images[3]), str(images[0]), b"", images[4]]
    found = one_by_one.predict(mixed)
    assert all(same(*pair) for pair in zip(found, at_once.predict(mixed), strict=True))
    assert [one.error_code for one in found[4:]] == [locray.ErrorCode.EMPTY_FILE, locray.ErrorCode.TRUNCATED]
    assert one_by_one.predict([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"images\[1\]: expected .*; found \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), r"found \(4, 4, 3\) float32"),
        (np.zeros((0, 4, 3), np.uint8), r"expected an array with pixels; found \(0, 4, 3\)"),
        (3, "found int"),
    ],
)
def test_what_is_no_image_is_a_usage_error(model, images, image, message):
    with pytest.raises(locray.UsageError, match=message):
        model.predict([images[0], image])
    with pytest.raises(locray.UsageError, match="Wrap it in a list"):
        model.predict(image if isinstance(image, np.ndarray) else str(images[0]))


def test_files_and_models_that_are_not_there(model, tmp_path):
    (found,) = model.predict([tmp_path / "absent.jpg"])
    assert found.error_code is locray.ErrorCode.NOT_FOUND
    assert len(found) == 0
    assert found.boxes_xyxy_px.shape == (0, 4)
    with pytest.raises(locray.UsageError, match=r"model\.json"):
        locray.load_model(tmp_path)
    with pytest.raises(locray.UsageError, match="Did you mean 'device'"):
        locray.load_model(tmp_path, devise="cpu")


def test_predictions_are_filtered_by_model_and_date(table, artifact):
    def uris(**filters):
        return sorted(locray.read_predictions(table, **filters).to_table()[schema.IMAGE_URI].to_pylist())

    assert uris() == ["/0.jpg", "/1.jpg", "/2.jpg"]
    assert uris(model=MODEL_A) == ["/0.jpg", "/1.jpg"]
    assert uris(model=f"{MODEL_A}/{CONFIG_2}") == ["/1.jpg"]
    assert uris(run_date="2026-01-02") == uris(run_date=date(2026, 1, 2)) == ["/1.jpg", "/2.jpg"]
    assert uris(model=MODEL_A, run_date="2026-01-02") == ["/1.jpg"]
    assert uris(model=artifact) == []
    with pytest.raises(locray.UsageError, match="found 'today'"):
        locray.read_predictions(table, run_date="today")
    with pytest.raises(locray.UsageError, match="no predictions table"):
        locray.read_predictions(f"{table}/absent")


def test_a_table_without_rows_is_an_empty_data_set(tmp_path):
    create_table(str(tmp_path / "t"))
    rows = locray.read_predictions(tmp_path / "t", run_date="2026-01-01").to_table()
    assert rows.schema == schema.PREDICTIONS_SCHEMA
    assert len(rows) == 0


def write_annotations(folder):
    """Writes a data set of coloured squares with the splits train and test."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        lines = ["filename,class,xmin,ymin,xmax,ymax"]
        for number in range(count):
            left, top = noise.integers(0, 24, 2)
            image = np.full((48, 48, 3), 200, np.uint8)
            image[top : top + 24, left : left + 24] = [(220, 30, 30), (30, 30, 220)][number % 2]
            Image.fromarray(image).save(folder / f"{split}{number}.png")
            lines.append(f"{split}{number}.png,{['red', 'blue'][number % 2]},{left},{top},{left + 24},{top + 24}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def test_a_data_set_is_read(tmp_path):
    write_annotations(tmp_path / "annotated")
    dataset = locray.read_dataset(tmp_path / "annotated", format="csv", split="test")
    assert (len(dataset.records), list(dataset.classes)) == (8, ["blue", "red"])
    with pytest.raises(locray.UsageError, match="vocc"):
        locray.read_dataset(tmp_path, format="vocc")


@pytest.mark.ray
@pytest.mark.slow
def test_the_examples_of_the_documentation_run(tmp_path, images):
    """Runs all code blocks in order, in a folder with a data set and a folder of images."""
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT_ROOT / "docs" / "python.md").read_text(), re.M | re.S)
    assert len(blocks) >= 6
    write_annotations(tmp_path / "annotated")
    (tmp_path / "photos").mkdir()
    for path in images:
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    program = "\n".join(blocks) + AFTER_THE_EXAMPLES
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout.endswith("the same\n"), done


AFTER_THE_EXAMPLES = """
import numpy, pathlib
rows = locray.read_predictions("predictions").to_table().to_pylist()
exact = locray.load_model("model", device="cpu", precision="fp32")
paths = [row["image_uri"] for row in rows]
assert len(paths) == 5
for row, found in zip(rows, exact.predict(paths), strict=True):
    assert found.error_code == row["error_code"]
    wanted = row["detections"] or []
    if all(one["score"] > 0.55 for one in wanted):  # below, the two classes are nearly equal
        assert found.labels == [one["label"] for one in wanted]
    corners = [[one[name] for name in ("xmin", "ymin", "xmax", "ymax")] for one in wanted]
    numpy.testing.assert_allclose(found.boxes_xyxy_px, numpy.reshape(corners, (-1, 4)), atol=1e-3)
    numpy.testing.assert_allclose(found.scores, [one["score"] for one in wanted], atol=1e-5)
print("the same")
"""
