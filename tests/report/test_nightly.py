"""The page of a night, from nights good and bad."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from locray import schema
from locray.errors import ExitCode
from locray.labelling.summary import LabelSummary
from locray.nightly.compaction import Compaction
from locray.nightly.deleted import Deleted
from locray.nightly.records import write_record
from locray.nightly.run import NightlyRun
from locray.report.nightly import charts, write_nightly_page
from locray.verification.findings import Check, Finding
from locray.verification.run import Verification


def night_of(table: Path, day: int, *, faults: dict[Check, Finding] | None = None) -> NightlyRun:
    label = LabelSummary(
        f"2026010{day}T000000-0", "net@0123456789ab", str(table), listed=10, already_labelled=4, planned=6,
        ok=4, failed=1, deferred=1, errors={"corrupt": 1}, config_hash="c0ffee", deferred_reason="the <store> was away",
    )  # fmt: skip
    night = NightlyRun(str(table), "s3://bucket/<photos>", date(2026, 1, day), label, ExitCode.DEFERRED)
    night.verify = Verification(
        str(table), 1, 2, 9, "net@0123456789ab", "c0ffee", 10, 3, 3, faults or {},
        {Check.IMAGE_WITHOUT_ROW: Finding(1, ("s3://bucket/<a>.jpg",))}, {}, 1.0,
    )  # fmt: skip
    if not faults:
        night.deleted = Deleted(3, 2, 1, "s3://bucket/deleted")
        night.vacuumed, night.compaction = 5, Compaction(4, 1, 9)
    return night


def page_of(night: NightlyRun) -> str:
    write_record(night.records, night.label.run_id, night.to_dict())
    return Path(write_nightly_page(night)).read_text()


def test_a_night_with_all_that_it_may_have(tmp_path: Path) -> None:
    night = night_of(tmp_path, 2)
    night.failed["vacuum"] = "no <space>"
    page = page_of(night)
    for text in (
        "Night of 2026-01-02",
        "images are left for the next night (exit code 4)",
        "s3://bucket/&lt;photos&gt;",
        "the &lt;store&gt; was away",
        "s3://bucket/&lt;a&gt;.jpg",
        "failed: no &lt;space&gt;",
        "4 files of this model became 1",
        "Since the last night: 2; there again: 1",
        f"read_parquet('s3://bucket/deleted') USING ({schema.IMAGE_URI})",
        "<code>corrupt</code>",
    ):
        assert text in page
    assert "<svg" not in page


def test_the_nights_before_it_are_shown_the_latest_first(tmp_path: Path) -> None:
    pages = [page_of(night_of(tmp_path, day)) for day in (1, 2, 3)]
    assert pages[2].index("<td>2026-01-03") < pages[2].index("<td>2026-01-02") < pages[2].index("<td>2026-01-01")
    assert pages[2].count("<svg") == 2
    assert "failed at -2: 1" in pages[2]


def test_a_night_without_a_speed_is_a_gap() -> None:
    speeds = [5.0, None, 7.0]
    nights = [{"label": dict.fromkeys(("ok", "failed", "deferred", "listed"), 0) | {"images_per_s_steady": speed}}
              for speed in speeds]  # fmt: skip
    *_, chart = charts(nights)
    assert chart.svg.count("<circle") == 2
    assert "at 0: 7" in chart.svg


def test_a_damaged_table_is_left_as_it_is(tmp_path: Path) -> None:
    page = page_of(night_of(tmp_path, 1, faults={Check.DUPLICATE: Finding(7, ("x",))}))
    assert page.count("not done: the table is left as it is") == 3
    assert "<td>fault</td><td><code>duplicate</code></td>" in page


def test_a_night_that_was_cut_short(tmp_path: Path) -> None:
    night = NightlyRun(
        **(vars(night_of(tmp_path, 1)) | {"verify": None, "deleted": None, "vacuumed": None, "compaction": None})
    )
    night.label.deferred_causes["not_tried"] = 1
    assert page_of(night).count("not done: the labelling ended before its time") == 4


def test_a_night_that_could_not_be_verified(tmp_path: Path) -> None:
    night = night_of(tmp_path, 1, faults={Check.DUPLICATE: Finding(7, ("x",))})
    night.verify = None
    night.failed["verify"] = "away"
    page = page_of(night)
    assert "failed: away" in page
    assert "Found by the verification" not in page


@pytest.mark.parametrize("count", [0, 1])
def test_no_charts_without_nights_to_compare(count: int) -> None:
    nights: list[dict[str, Any]] = [{"label": {}}] * count
    assert charts(nights) == []
