"""The page of a nightly run."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from locray import schema
from locray.errors import ExitCode
from locray.labelling.summary import LabelSummary
from locray.nightly.deleted import DeletedImages
from locray.nightly.maintenance import Compaction
from locray.nightly.records import write_record
from locray.nightly.run import NightlyRun
from locray.report.nightly import charts, write_nightly_page
from locray.verification.findings import Check, Finding
from locray.verification.run import Verification


def run_of(table: Path, day: int, *, faults: dict[Check, Finding] | None = None) -> NightlyRun:
    label = LabelSummary(
        f"2026010{day}T000000-0", "net@0123456789ab", str(table), listed=10, already_labelled=4, planned=6,
        ok=4, failed=1, deferred=1, errors={"corrupt": 1}, config_hash="c0ffee", deferred_reason="the <store> was away",
    )  # fmt: skip
    run = NightlyRun(str(table), "s3://bucket/<photos>", date(2026, 1, day), label, ExitCode.DEFERRED)
    run.verify = Verification(
        str(table), 1, 2, 9, "net@0123456789ab", "c0ffee", 10, 3, 3, faults or {},
        {Check.IMAGE_WITHOUT_ROW: Finding(1, ("s3://bucket/<a>.jpg",))}, {}, 1.0,
    )  # fmt: skip
    if not faults:
        run.deleted = DeletedImages(3, 2, 1, "s3://bucket/deleted")
        run.vacuumed, run.compaction = 5, Compaction(4, 1, 9)
    return run


def page_of(run: NightlyRun) -> str:
    write_record(run.records, run.label.run_id, run.to_dict())
    return Path(write_nightly_page(run)).read_text()


def test_a_page_with_everything(tmp_path: Path) -> None:
    run = run_of(tmp_path, 2)
    run.failed["vacuum"] = "no <space>"
    page = page_of(run)
    for text in (
        "Nightly run of 2026-01-02",
        "images are left for the next run (exit code 4)",
        "s3://bucket/&lt;photos&gt;",
        "the &lt;store&gt; was away",
        "s3://bucket/&lt;a&gt;.jpg",
        "failed: no &lt;space&gt;",
        "4 files of this model became 1",
        "Since the previous run: 2 new, 1 returned",
        f"read_parquet('s3://bucket/deleted') USING ({schema.IMAGE_URI})",
        "<code>corrupt</code>",
    ):
        assert text in page
    assert "<svg" not in page


def test_earlier_runs_are_shown_latest_first(tmp_path: Path) -> None:
    pages = [page_of(run_of(tmp_path, day)) for day in (1, 2, 3)]
    assert pages[2].index("<td>2026-01-03") < pages[2].index("<td>2026-01-02") < pages[2].index("<td>2026-01-01")
    assert pages[2].count("<svg") == 2
    assert "failed at -2: 1" in pages[2]


def test_a_run_without_a_speed_leaves_a_gap() -> None:
    speeds = [5.0, None, 7.0]
    records = [{"label": dict.fromkeys(("ok", "failed", "deferred", "listed"), 0) | {"images_per_s_steady": speed}}
              for speed in speeds]  # fmt: skip
    *_, chart = charts(records)
    assert chart.svg.count("<circle") == 2
    assert "at 0: 7" in chart.svg


def test_a_damaged_table_is_left_as_it_is(tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path, 1, faults={Check.DUPLICATE: Finding(7, ("x",))}))
    assert page.count("skipped: the table has faults") == 3
    assert "<td>fault</td><td><code>duplicate</code></td>" in page


def test_a_run_that_was_cut_short(tmp_path: Path) -> None:
    run = NightlyRun(
        **(vars(run_of(tmp_path, 1)) | {"verify": None, "deleted": None, "vacuumed": None, "compaction": None})
    )
    run.label.deferred_causes["not_tried"] = 1
    assert page_of(run).count("skipped: labelling ended early") == 4


def test_a_run_that_could_not_be_verified(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, faults={Check.DUPLICATE: Finding(7, ("x",))})
    run.verify = None
    run.failed["verify"] = "away"
    page = page_of(run)
    assert "failed: away" in page
    assert "Findings of the verification" not in page


@pytest.mark.parametrize("count", [0, 1])
def test_no_charts_without_runs_to_compare(count: int) -> None:
    records: list[dict[str, Any]] = [{"label": {}}] * count
    assert charts(records) == []
