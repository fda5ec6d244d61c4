"""The committer: commits by time."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from locray import schema
from locray.config import LabelConfig
from locray.errors import ErrorCode, FencedError
from locray.labelling import run
from locray.labelling.committer import Committer
from locray.labelling.worklist import Worklist
from locray.progress import ignore
from locray.table.writer import TableWriter
from tests.helpers.made_up import MadeUpPipeline
from tests.helpers.processes import wait_for
from tests.helpers.rows import predicted

DENIED = ErrorCode.ACCESS_DENIED
MODEL_ID = "net@0123456789ab"


def test_rows_are_committed_while_a_run_waits_for_others(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table"

    class Slow(MadeUpPipeline):
        """Yields the rows of a unit only after those of the previous one are in the table."""

        def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
            for number, rows in enumerate(super().rows(worklist)):
                yield rows
                wait_for(lambda wanted=number: len(DeltaTable(table).file_uris()) > min(wanted, 1))

    monkeypatch.setattr(run, "Pipeline", Slow)
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"x")
    summary = run.label(
        LabelConfig(
            images=str(tmp_path / "images"), model=artifact, table=str(table), unit_size=1, commit_interval_s=0.01
        ),
        ignore,
    )
    assert (summary.ok, summary.commits) == (2, 2)


def committer(tmp_path: Path, num_images: int, **options: Any) -> Committer:
    return Committer(
        TableWriter.claim(str(tmp_path / "table"), MODEL_ID),
        num_images,
        stamp={schema.CONFIG_HASH: "c0ffee", schema.RUN_ID: "run"},
        run_date=date(2026, 1, 2),
        commit_rows=1000,
        **options,
    )


@pytest.mark.parametrize("rows_come", [True, False])
def test_what_stops_a_commit_in_between_is_raised_where_rows_are_added(tmp_path: Path, rows_come: bool) -> None:
    commits = committer(tmp_path, 100)
    TableWriter.claim(str(tmp_path / "table"), MODEL_ID)

    def add_rows() -> None:
        with commits.commit_every(0.01):
            commits.add(predicted([1]))
            wait_for(lambda: commits.deferred)
            if rows_come:
                commits.add(predicted([2]))
                pytest.fail("rows were taken")

    with pytest.raises(FencedError):
        add_rows()
    commits.close()
    assert (commits.ok, commits.deferred_causes) == (0, {"not_committed": 1})


@pytest.mark.parametrize("code", ["access_denied", "not_found", "non_finite"])
@pytest.mark.parametrize(
    ("has_previous_rows", "images", "has_rows"), [(True, 9, True), (True, 10, False), (False, 9, False)]
)
def test_few_quarantined_failures_become_rows_in_a_known_table(
    tmp_path: Path, code: str, has_previous_rows: bool, images: int, has_rows: bool
) -> None:
    commits = committer(tmp_path, images, has_previous_rows=has_previous_rows)
    commits.add(predicted(list(range(images)), status=schema.STATUS_FAILED, code=code))
    commits.flush()
    assert commits.commits == 0, "others may still come that clear them"
    commits.close()
    assert (commits.failed, commits.deferred, commits.commits) == ((images, 0, 1) if has_rows else (0, images, 0))


@pytest.mark.parametrize(("listed", "said", "has_rows"), [(2, None, True), (3, None, False), (2, DENIED, False)])
def test_few_quarantined_failures_are_deferred_in_a_run_cut_off(
    tmp_path: Path, listed: int, said: ErrorCode | None, has_rows: bool
) -> None:
    commits = committer(tmp_path, listed, has_previous_rows=True, check_store=lambda: said)
    commits.add(predicted([0, 1], status=schema.STATUS_FAILED, code=DENIED))
    commits.close()
    assert (commits.failed, commits.deferred) == ((2, 0) if has_rows else (0, 2))
