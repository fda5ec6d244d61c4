"""Makes the golden table again: `python -m tests.golden.make_table`. Only if old tables may stop working.

Two models label generated pictures on two dates. Two of the files are damaged; one of them is labelled again on the
second date, when it is whole. The table has a checkpoint, a removed file, the record of a nightly run and a list of
deleted images. The URIs name a bucket that does not exist: nothing may fetch an image that has a row.
"""

import hashlib
import io
import json
import shutil
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
from PIL import Image

from locray import schema
from locray.config import InferenceOptions
from locray.errors import ExitCode
from locray.labelling.committer import Committer
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.summary import LabelSummary
from locray.labelling.worklist import InlineWorklist
from locray.nightly.deleted import list_deleted
from locray.nightly.records import deleted_uri, write_record
from locray.nightly.run import NightlyRun
from locray.table.open import open_existing_table
from locray.table.writer import TableWriter
from tests.golden.make_artifact import ARTIFACT, pictures

TABLE = Path(__file__).parent / "table"
BUCKET = "s3://golden/pictures"
DATES = date(2026, 1, 2), date(2026, 1, 3)
TRUNCATED, NO_IMAGE = 4, 5
NUM_PICTURES = 8
_MODIFIED = datetime(2026, 1, 1, tzinfo=UTC)


def picture(number: int) -> bytes:
    """One of the pictures that the golden artifact was trained on, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pictures()[0][number].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def listing(numbers: list[int]) -> pa.Table:
    """Pictures as a table of `LISTING_SCHEMA`."""
    data = [picture(number) for number in numbers]
    columns = [
        [f"{BUCKET}/{number:02d}.png" for number in numbers],
        [hashlib.md5(content).hexdigest() for content in data],
        [len(content) for content in data],
        [_MODIFIED] * len(numbers),
    ]
    return pa.table(columns, schema=schema.LISTING_SCHEMA)


def label(artifact: Path, numbers: list[int], run_date: date, *, damaged: bool, replace: bool = False) -> TableWriter:
    """Labels pictures as a run does, from a local folder, and gives the rows their URIs in the bucket."""
    spec = ModelSpec.read(str(artifact), InferenceOptions())
    images = listing(numbers)
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            data = picture(number)
            if damaged and number == TRUNCATED:
                data = data[: len(data) // 2]
            if damaged and number == NO_IMAGE:
                data = b"no image"
            Path(folder, f"{number:02d}.png").write_bytes(data)
        local = InlineWorklist.of_uris([f"{folder}/{number:02d}.png" for number in numbers], len(numbers))
        predicted = Predictor(spec, num_threads=1)(decode_rows(local.read_unit(0), spec))
    for name in schema.LISTING_SCHEMA.names:
        index = predicted.schema.get_field_index(name)
        predicted = predicted.set_column(index, predicted.schema.field(index), images[name])
    message = pa.array(
        [text and text.replace(folder, BUCKET) for text in predicted[schema.ERROR_MESSAGE].to_pylist()], pa.string()
    )
    index = predicted.schema.get_field_index(schema.ERROR_MESSAGE)
    predicted = predicted.set_column(index, predicted.schema.field(index), message)
    writer = TableWriter.claim(str(TABLE), spec.key.model_id)
    run_id = f"{run_date:%Y%m%d}T000000000-00000000"
    committer = Committer(
        writer,
        len(numbers),
        stamp={schema.CONFIG_HASH: spec.key.config_hash, schema.RUN_ID: run_id},
        run_date=run_date,
        commit_rows=100,
        replace=replace,
        has_previous_rows=True,
    )
    committer.add(predicted)
    committer.close()
    return writer


def other_artifact(folder: Path) -> Path:
    """The golden artifact under another model id: its description differs."""
    shutil.copytree(ARTIFACT, folder)
    description = json.loads((folder / "model.json").read_text())
    description["provenance"]["data"] = "the same squares"
    (folder / "model.json").write_text(json.dumps(description))
    return folder


def main() -> None:
    """Replaces the golden table."""
    shutil.rmtree(TABLE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        label(ARTIFACT, [0, 1, 2, 3, TRUNCATED, NO_IMAGE], DATES[0], damaged=True)
        label(other_artifact(Path(folder, "other")), [0, 1], DATES[0], damaged=False)
    open_existing_table(str(TABLE)).create_checkpoint()
    label(ARTIFACT, [6, 7], DATES[1], damaged=False)
    writer = label(ARTIFACT, [TRUNCATED], DATES[1], damaged=False, replace=True)
    config_hash = ModelSpec.read(str(ARTIFACT), InferenceOptions()).key.config_hash
    summary = LabelSummary("20260103T000000000-00000000", writer.model_id, "golden", 8, 6, 2, config_hash=config_hash)
    run = NightlyRun(str(TABLE), BUCKET, DATES[1], summary, ExitCode.DONE)
    run.deleted = list_deleted(
        run.table, run.key, listing(list(range(1, NUM_PICTURES))).to_batches(), deleted_uri(run.records), DATES[1]
    )
    write_record(run.records, summary.run_id, run.to_dict())
    for file in TABLE.rglob("*.json"):
        file.write_text(file.read_text().replace(str(TABLE), "/golden"))


if __name__ == "__main__":
    main()
