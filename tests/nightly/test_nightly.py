"""Nightly runs as a scheduler starts them, one after the other, and runs that find faults."""

import html
import io
import json
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image

from locray import schema, storage
from locray.cli import commands
from locray.cli.console import Console
from locray.config import InferenceOptions, NightlyConfig
from locray.errors import ExitCode, FencedError, StoreError
from locray.labelling import run as label_run
from locray.labelling.committer import Committer
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist, Worklist
from locray.nightly import run as nightly_run
from locray.nightly.maintenance import Compaction
from locray.nightly.records import last_records, read_records
from locray.nightly.run import nightly, worst
from locray.progress import Progress, ignore
from locray.sources import open_source
from locray.table.data_files import row_dataset
from locray.table.writer import TableWriter
from locray.verification.findings import Check
from tests.helpers.commands import locray_job
from tests.helpers.made_up import MadeUpPipeline, without_ray
from tests.helpers.rows import predicted
from tests.helpers.s3_server import S3Bucket
from tests.helpers.tables import OTHER, commit, dataset_of, flip_a_byte


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.jpg").write_bytes(picture(number))
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "table"


def files_outside_of_records(store: Path) -> set[str]:
    return {str(path) for path in store.rglob("*") if path.is_file() and "nights" not in path.parts}


def check_against_the_files(store: Path, versions: dict[Path, int], *, old_files: int = 0) -> None:
    """Checks that each image has one row per version, and that the folder holds only current and old files."""
    table = DeltaTable(store)
    rows = row_dataset(table, str(store)).to_table().to_pandas()
    assert Counter(rows[schema.IMAGE_URI]) == {str(image): count for image, count in versions.items() if count}
    assert not rows.duplicated([schema.IMAGE_URI, schema.ETAG]).any()
    here = {str(path) for path in store.rglob("*.parquet")}
    live = set(table.file_uris())
    assert live <= here
    assert len(here - live) == old_files
    assert files_outside_of_records(store) == live | {str(path) for path in (store / "_delta_log").iterdir()} | here


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_three_nightly_runs(images: Path, store: Path, artifact: str) -> None:
    def night(number: int, *options: str, run: Any = without_ray) -> dict[str, Any]:
        arguments = ("--images", str(images), "--model", artifact, "--table", str(store), "--retention-hours", "0")
        done = run("nightly", *arguments, "--json", "--run-date", f"2026-01-0{number}", *options)
        assert done.returncode == 0, done
        assert "Traceback" not in done.stderr
        assert "Verdict: every listed image has its row, and the table is correct (exit code 0)" in done.stderr
        facts = json.loads(done.stdout.splitlines()[-1])
        assert (facts["exit_code"], facts["failed"], facts["verify"]["faults"]) == (0, {}, {})
        page = Path(facts["page"]).read_text()
        assert f"Nightly run of 2026-01-0{number}" in page
        return dict(facts)

    # All images are new. Each commit adds a file; they are compacted into one, and the old ones stay for readers.
    first = night(1, "--unit-size", "4", "--commit-rows", "4", run=locray_job)
    everything = dict.fromkeys(images.iterdir(), 1)
    assert (first["label"]["ok"], first["label"]["errors"]) == (12, {"unsupported_format": 1})
    assert (first["verify"]["listed"], first["verify"]["compared"], first["verify"]["pending"]) == (13, 12, {})
    assert first["deleted"]["images"] == 0
    commits = first["label"]["commits"]
    assert commits > 1
    assert first["compaction"] == {"files_before": commits, "files_after": 1, "rows_rewritten": 13}
    check_against_the_files(store, everything, old_files=commits)

    # One image is new, one changed, one deleted.
    (images / "new.jpg").write_bytes(picture(100))
    (images / "00.jpg").write_bytes(picture(101, size=(30, 30)))
    (images / "01.jpg").rename(store.parent / "away.jpg")
    second = night(2)
    assert (second["label"]["planned"], second["label"]["ok"]) == (2, 2)
    assert (second["verify"]["listed"], second["verify"]["rows"], second["verify"]["pending"]) == (13, 15, {})
    assert {check: found["first"] for check, found in second["verify"]["notes"].items()}["image_gone"] == [
        str(images / "01.jpg")
    ]
    deleted = pd.read_parquet(second["deleted"]["list_uri"])
    assert deleted.to_dict("list") == {
        schema.IMAGE_URI: [str(images / "01.jpg")],
        schema.MISSING_SINCE: [date(2026, 1, 2)],
    }
    assert second["vacuumed"] == commits
    check_against_the_files(store, everything | {images / "new.jpg": 1, images / "00.jpg": 2})

    # The deleted image is back unchanged: there is nothing to do.
    (store.parent / "away.jpg").rename(images / "01.jpg")
    before = files_outside_of_records(store)
    third = night(3)
    assert (third["label"]["planned"], third["label"]["commits"], third["vacuumed"]) == (0, 0, 0)
    assert (third["deleted"]["images"], third["deleted"]["returned"]) == (0, 1)
    assert third["compaction"]["files_after"] == third["compaction"]["files_before"] == 2
    (claim,) = files_outside_of_records(store) - before
    assert Path(claim).parent.name == "_delta_log"
    check_against_the_files(store, everything | {images / "new.jpg": 1, images / "00.jpg": 2})

    status = json.loads(without_ray("status", "--table", str(store), "--json").stdout)
    assert (status["rows"], status["files"], status["small_files"]) == (15, 2, 0)
    assert [run[schema.RUN_DATE] for run in status["runs"]] == ["2026-01-01", "2026-01-02"]
    assert [last[schema.RUN_ID] for last in status["nights"]] == [third["run_id"]]


@pytest.mark.slow
def test_an_aborted_labelling_ends_the_run(store: Path, tmp_path: Path, artifact: str) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03d}.jpg").write_bytes(b"no image")
    options = ("--images", str(folder), "--model", artifact, "--table", str(store), "--unit-size", "20")
    done = without_ray("nightly", *options, "--json")
    assert done.returncode == 3, done
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["label"]["failed"] >= 200
    assert (facts["verify"], facts["deleted"], facts["vacuumed"], facts["compaction"]) == (None, None, None, None)
    assert "skipped: labelling ended early" in Path(facts["page"]).read_text()


def labelled_before(images: Path, artifact: str, table: str) -> NightlyConfig:
    """A table that holds all images in two small files, so that a nightly run needs no Ray."""
    spec = ModelSpec.read(artifact, InferenceOptions())
    listed = pa.Table.from_batches(open_source(str(images)).listing())
    rows = Predictor(spec, 1)(decode_rows(InlineWorklist.of(listed, 99).read_unit(0), spec))
    stamp = {schema.CONFIG_HASH: spec.key.config_hash, schema.RUN_ID: "run"}
    writer = TableWriter.claim(table, spec.key.model_id)
    commits = Committer(writer, 99, stamp=stamp, run_date=date(2026, 1, 1), commit_rows=7)
    for start in (0, 7):
        commits.add(rows.slice(start, 7))
    commits.flush()
    return NightlyConfig(images=str(images), model=artifact, table=table, sample=0, retention_hours=0)


@pytest.fixture
def labelled(images: Path, store: Path, artifact: str) -> NightlyConfig:
    return labelled_before(images, artifact, str(store))


@pytest.mark.s3
def test_nightly_runs_on_a_bucket(images: Path, artifact: str, s3_bucket: S3Bucket) -> None:
    table = f"{s3_bucket.uri}/table"
    config = labelled_before(images, artifact, table)
    first = nightly(config, ignore)
    assert (first.exit_code, first.compaction) == (ExitCode.DONE, Compaction(2, 1, 13))
    (images / "00.jpg").unlink()
    second = nightly(config, ignore)
    assert (second.exit_code, second.vacuumed) == (ExitCode.DONE, 2)
    assert second.verify is not None
    assert second.verify.notes.keys() == {Check.IMAGE_GONE, Check.FILE_REMOVED}
    assert second.deleted is not None
    listed = pd.read_parquet(io.BytesIO(storage.read_bytes(second.deleted.list_uri)))
    assert listed[schema.IMAGE_URI].tolist() == [str(images / "00.jpg")]
    files = DeltaTable(table, storage_options=storage.delta_storage_options(table)).file_uris()
    assert {uri for uri in storage.list_uris(table) if uri.endswith(".parquet")} == set(files)
    runs = {record[schema.RUN_ID] for record in read_records(second.records, 9)}
    assert runs == {first.label.run_id, second.label.run_id}


def test_a_damaged_table_is_left_as_it_is(labelled: NightlyConfig, store: Path) -> None:
    flip_a_byte(DeltaTable(store).file_uris()[0])
    before = set(DeltaTable(store).file_uris())
    night = nightly(labelled, ignore)
    assert night.exit_code is ExitCode.CORRUPT
    assert night.verify is not None
    assert night.verify.faults.keys() == {Check.FILE_UNREADABLE}
    assert (night.deleted, night.vacuumed, night.compaction, night.failed) == (None, None, None, {})
    assert set(DeltaTable(store).file_uris()) == before


def test_a_step_that_fails_does_not_stop_the_others(labelled: NightlyConfig) -> None:
    first = nightly(labelled, ignore)
    assert (first.exit_code, first.failed) == (ExitCode.DONE, {})
    assert first.deleted is not None
    Path(first.deleted.list_uri).write_bytes(b"something else")
    second = nightly(labelled, ignore)
    assert second.exit_code is ExitCode.UNEXPECTED
    assert second.failed.keys() == {"deleted"}
    assert (second.vacuumed, second.compaction) == (2, Compaction(1, 1, 0))
    assert second.verify is not None
    assert second.verify.notes.keys() == {Check.FILE_REMOVED}


def test_a_concurrent_run_takes_precedence(labelled: NightlyConfig, store: Path) -> None:
    """Compaction is left to the other run, which is not fenced."""
    others: list[TableWriter] = []

    def report(progress: Progress) -> None:
        if progress.stage == "vacuuming":
            model_id = ModelSpec.read(labelled.model, InferenceOptions()).key.model_id
            others.append(TableWriter.claim(str(store), model_id))

    night = nightly(labelled, report)
    assert night.exit_code is ExitCode.FENCED
    assert night.failed.keys() == {"vacuum", "compact"}
    assert len(DeltaTable(store).file_uris()) == 2
    assert TableWriter.resume(str(store), others[0].model_id, others[0].transaction)


def test_images_that_arrive_during_a_run_are_left_to_the_next(labelled: NightlyConfig, images: Path) -> None:
    """Verification uses the listing of the labelling."""

    def report(progress: Progress) -> None:
        if progress.stage == "reading the log":
            (images / "late.jpg").write_bytes(picture(200))

    night = nightly(labelled, report)
    assert (night.exit_code, night.verify and night.verify.pending) == (ExitCode.DONE, {})


def test_a_model_without_rows_beside_another(store: Path, tmp_path: Path, artifact: str) -> None:
    commit(str(store), predicted([0, 1]), model_id=OTHER)
    (tmp_path / "empty").mkdir()
    night = nightly(NightlyConfig(images=str(tmp_path / "empty"), model=artifact, table=str(store)), ignore)
    assert (night.exit_code, night.failed) == (ExitCode.DONE, {})
    assert night.verify is not None
    assert (night.verify.rows, night.verify.listed) == (2, 0)


def test_each_date_draws_another_sample(labelled: NightlyConfig) -> None:
    seeds = [
        nightly_run._verify_config(labelled.model_copy(update={"run_date": date(2026, 1, day)})).seed for day in (1, 2)
    ]
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("is_fenced", [False, True])
def test_a_labelling_stopped_by_an_error_is_recorded(
    images: Path,
    store: Path,
    artifact: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_fenced: bool,
) -> None:
    """Its commits stay, and the record reports the error."""

    class Stopped(MadeUpPipeline):
        def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
            units = super().rows(worklist)
            yield next(units)
            yield next(units)
            if is_fenced:
                TableWriter.claim(str(store), ModelSpec.read(artifact, InferenceOptions()).key.model_id)
            raise StoreError("the store is out")

    monkeypatch.setattr(label_run, "Pipeline", Stopped)
    config = NightlyConfig(images=str(images), model=artifact, table=str(store), unit_size=4, commit_rows=4)
    error, exit_code = (FencedError, 5) if is_fenced else (StoreError, 1)
    with pytest.raises(error) as told:
        commands.nightly(config, Console(as_json=True))
    facts = json.loads(capsys.readouterr().out)
    page = html.unescape(Path(facts["page"]).read_text())
    assert f"failed: {told.value}" in page
    assert "skipped: labelling ended early" in page
    (record,) = last_records(str(store))
    assert (record["exit_code"], record["failed"]) == (exit_code, {"label": str(told.value)})
    assert facts == record | {"page": facts["page"]}
    assert record["label"]["planned"] == 13
    assert record["label"]["ok"] + record["label"]["failed"] == dataset_of(str(store)).count_rows() > 0
    assert record["label"]["deferred_reason"] == f"the run was stopped by an error: {error.__name__}"


def test_a_failed_page_does_not_change_the_other_results(labelled: NightlyConfig) -> None:
    night = nightly(labelled, ignore)

    def fail() -> None:
        raise StoreError("no space")

    assert night.attempt("page", fail) is None
    assert (night.exit_code, night.failed) == (ExitCode.UNEXPECTED, {"page": "no space"})


def test_an_unexpected_error_in_a_step_is_recorded(labelled: NightlyConfig) -> None:
    night = nightly(labelled, ignore)
    assert night.attempt("compact", lambda: 1 // 0) is None
    assert night.exit_code is ExitCode.UNEXPECTED
    assert night.failed == {"compact": "ZeroDivisionError: integer division or modulo by zero"}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([4, 0], 4),
        ([4, 3], 3),
        ([3, 5], 5),
        ([5, 1], 1),
        ([1, 2], 2),
        ([0, 6, 1, 2, 3, 4, 5], 6),
    ],
)
def test_the_exit_code_is_the_worst_of_the_steps(codes: list[int], expected: int) -> None:
    assert worst(*map(ExitCode, codes)) == expected
