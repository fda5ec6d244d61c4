"""Rows from real photographs, predicted again by `verify`: unchanged ones agree, changed ones don't."""

import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable
from PIL import Image

from locray import schema
from locray.config import InferenceOptions, VerifyConfig
from locray.errors import ExitCode, UsageError
from locray.labelling.committer import Committer
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactInfo
from locray.progress import ignore
from locray.sources import open_source
from locray.table.writer import TableWriter
from locray.verification.findings import Check
from locray.verification.run import Verification, verify
from locray.verification.sample import Tolerance, unmatched

pytestmark = pytest.mark.slow

NUM_IMAGES = 12


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(real_data: Path, tmp_path: Path) -> Path:
    """Photographs, one of them rotated by EXIF, and a file that is not an image."""
    folder = tmp_path / "images"
    folder.mkdir()
    photographs = sorted((real_data / "runway" / "JPEGImages").iterdir())
    for photograph in photographs[:: len(photographs) // (NUM_IMAGES - 1)][: NUM_IMAGES - 1]:
        shutil.copy(photograph, folder)
    shutil.copy(next((real_data / "exif" / "orientation").glob("*6*")), folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def table(images: Path, artifact: str, tmp_path: Path) -> Path:
    """A table with all of them, labelled in one batch."""
    return labelled(images, artifact, tmp_path / "table")


def labelled(images: Path, artifact: str, table: Path) -> Path:
    spec = ModelSpec.read(artifact, InferenceOptions(precision="fp32", device="cpu"))
    listed = pa.Table.from_batches(open_source(str(images)).listing())
    unit = InlineWorklist.of(listed, len(listed)).read_unit(0)
    predictor = Predictor(spec, num_threads=1)
    rows = predictor(decode_rows(unit, spec))
    writer = TableWriter.claim(str(table), spec.key.model_id)
    stamp = {schema.CONFIG_HASH: spec.key.config_hash, schema.RUN_ID: "run"}
    commits = Committer(writer, len(rows), stamp=stamp, run_date=date(2026, 1, 2), commit_rows=1000)
    commits.add(rows)
    commits.flush()
    assert (commits.ok, commits.failed) == (NUM_IMAGES, 1)
    return table


def verified(table: Path, **options: Any) -> Verification:
    return verify(VerifyConfig(table=str(table), **({"precision": "fp32"} | options)), ignore)


def test_single_images_agree_with_batches(table: Path, images: Path, artifact: str) -> None:
    found = verified(table, images=str(images), model=artifact)
    assert (found.faults, found.pending, found.notes) == ({}, {}, {})
    assert (found.listed, found.rows, found.sampled, found.compared) == (NUM_IMAGES + 1, NUM_IMAGES + 1, 12, 12)
    assert found.exit_code is ExitCode.DONE
    assert verified(table, model=artifact, sample=5).compared == 5
    assert verified(table, model=f"{found.model_id}/{found.config_hash}", images=str(images)).sampled == 0


def change_label(row: dict[str, Any]) -> None:
    row[schema.DETECTIONS][0][schema.LABEL] = "something else"


def change_score(row: dict[str, Any]) -> None:
    row[schema.DETECTIONS][0][schema.SCORE] -= 0.02


def move_box(row: dict[str, Any]) -> None:
    """Moves a box by two pixels of the network's input."""
    step = 2 * max(row[schema.WIDTH], row[schema.HEIGHT]) / 32
    for edge in (schema.XMIN, schema.XMAX):
        row[schema.DETECTIONS][0][edge] -= step


def turn_sides(row: dict[str, Any]) -> None:
    row[schema.WIDTH] += 1


def lose_detections(row: dict[str, Any]) -> None:
    row[schema.DETECTIONS] = []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (change_label, "only the row has 'something else'"),
        (change_score, "the model now finds"),
        (move_box, "only the row has"),
        (turn_sides, "the row says"),
        (lose_detections, "the model now finds"),
    ],
)
def test_a_row_that_differs_from_the_model(
    table: Path, artifact: str, damage: Callable[[dict[str, Any]], None], told: str
) -> None:
    (file,) = DeltaTable(table).file_uris()
    stored = pq.ParquetFile(file).read()
    rows = stored.to_pylist()
    damaged = next(row for row in rows if row[schema.STATUS] == schema.STATUS_OK)
    damage(damaged)
    pq.write_table(pa.Table.from_pylist(rows, schema=stored.schema), file)
    found = verified(table, model=artifact)
    assert found.faults[Check.PREDICTION].count == 1
    assert found.faults[Check.PREDICTION].first[0].startswith(f"{damaged[schema.IMAGE_URI]}: ")
    assert told in found.faults[Check.PREDICTION].first[0]
    assert found.exit_code is ExitCode.CORRUPT


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize(("steps", "differs"), [(2, False), (3, True)])
def test_rows_of_bfloat16_may_differ_more(
    table: Path, artifact: str, precision: str, steps: int, differs: bool
) -> None:
    (file,) = DeltaTable(table).file_uris()
    stored = pq.ParquetFile(file).read()
    rows = stored.to_pylist()
    damaged = next(row for row in rows if row[schema.STATUS] == schema.STATUS_OK)
    for _ in range(steps):
        change_score(damaged)
    pq.write_table(pa.Table.from_pylist(rows, schema=stored.schema), file)
    assert (Check.PREDICTION in verified(table, model=artifact, precision=precision).faults) == differs


def test_changed_or_deleted_images_are_not_compared(table: Path, images: Path, artifact: str) -> None:
    first, second, *_ = sorted(images.glob("[!b]*"))
    first.unlink()
    Image.new("RGB", (50, 40)).save(second, "JPEG")
    alone = verified(table, model=artifact)
    assert alone.notes[Check.NOT_COMPARED].count == 2
    assert (alone.faults, alone.sampled, alone.compared) == ({}, 12, 10)
    beside = verified(table, model=artifact, images=str(images))
    assert (beside.sampled, beside.compared) == (10, 10)
    assert beside.pending[Check.IMAGE_CHANGED].first == (str(second),)
    assert beside.notes[Check.IMAGE_GONE].first == (str(first),)
    assert beside.exit_code is ExitCode.DEFERRED


def test_the_model_must_have_rows_in_the_table(table: Path, artifact: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    info = ArtifactInfo(architecture="small_cnn", classes=["a", "b", "c"], input_size=32)
    described = save_artifact(other, build_model("small_cnn", 3), info)
    with pytest.raises(UsageError, match=rf"no rows of {described.model_id}/.*Found: small_cnn@.*13 rows"):
        verified(table, model=other)
    with pytest.raises(UsageError, match=r"no rows of .*the options that the table was labelled with"):
        verified(table, model=artifact, score_threshold=0.2)


def detection(score: float, *, label_id: int = 0, shift: float = 0.0) -> dict[str, Any]:
    corners = dict.fromkeys((schema.XMIN, schema.YMIN), 10.0 + shift) | dict.fromkeys(
        (schema.XMAX, schema.YMAX), 20.0 + shift
    )
    return {schema.LABEL_ID: label_id, schema.LABEL: f"class {label_id}", schema.SCORE: score} | corners


@pytest.mark.parametrize(
    ("before", "again", "lost", "added"),
    [
        ([], [], 0, 0),
        ([detection(0.9), detection(0.8, shift=50)], [detection(0.805, shift=51), detection(0.895, shift=1)], 0, 0),
        ([detection(0.9)], [detection(0.9, shift=3)], 1, 1),
        ([detection(0.9)], [detection(0.88)], 1, 1),
        ([detection(0.9)], [detection(0.9, label_id=1)], 1, 1),
        ([detection(0.9), detection(0.9)], [detection(0.9)], 1, 0),
        # Detections close to the threshold may be in one list only.
        ([detection(0.309)], [], 0, 0),
        ([], [detection(0.309)], 0, 0),
        ([], [detection(0.311)], 0, 1),
    ],
)
def test_detections_match_one_to_one(before: Any, again: Any, lost: int, added: int) -> None:
    tolerance = Tolerance(box_px=2.0, score=0.01, min_score=0.31)
    assert tuple(map(len, unmatched(before, again, tolerance))) == (lost, added)
