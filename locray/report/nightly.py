"""The page of a night: what was done, what was found, and the nights before it. Called by cli/commands.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from locray import schema, storage
from locray.errors import ExitCode
from locray.nightly.records import page_uri, read_records
from locray.nightly.run import NightlyRun
from locray.report.charts import Chart, Line, line_chart
from locray.report.page import render_template
from locray.verification.findings import MEANING, Finding

MAX_NIGHTS = 60
MAX_NIGHTS_SHOWN = 14

_OUTCOMES = {
    ExitCode.DONE: "all is well",
    ExitCode.UNEXPECTED: "a step failed",
    ExitCode.USAGE: "a step was refused",
    ExitCode.FAILURE_RATE: "too many images failed",
    ExitCode.DEFERRED: "images are left for the next night",
    ExitCode.FENCED: "another run has taken over",
    ExitCode.CORRUPT: "the table is damaged",
}
_CHARTS = (
    ("Images labelled", (("ok", "c2"), ("failed", "c4"), ("deferred", "c6"))),
    ("Images listed", (("listed", "c0"),)),
    ("Images a second, in the steady state", (("images_per_s_steady", "c0"),)),
)


def write_nightly_page(night: NightlyRun) -> str:
    """Writes the page beside the record of the night and says where.

    Raises:
        StoreError: the store failed.
    """
    uri = page_uri(night.records, night.label.run_id)
    nights = read_records(night.records, MAX_NIGHTS)
    page = render_template(
        "nightly.html",
        title=f"Night of {night.run_date}",
        summary=f"{night.images}, labelled by {night.label.model_id} into {night.table}.",
        outcome=f"{_OUTCOMES[night.exit_code]} (exit code {int(night.exit_code)})",
        facts=_facts(night),
        steps=_steps(night),
        errors=sorted(night.label.errors.items(), key=lambda item: -item[1]),
        findings=_findings(night),
        deleted=night.deleted,
        uri_column=schema.IMAGE_URI,
        charts=charts(nights),
        nights=[_row(one) for one in reversed(nights[-MAX_NIGHTS_SHOWN:])],
    )
    storage.write_bytes(uri, page.encode())
    return uri


def charts(nights: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The nights beside each other, by how many nights ago they were; none where there is but one.

    A figure that a night has not, such as the speed where nothing was labelled, leaves a gap.
    """
    if len(nights) < 2:  # noqa: PLR2004 (a curve has two ends)
        return []
    labelled = [(index + 1.0 - len(nights), night["label"]) for index, night in enumerate(nights)]
    found = []
    for title, names in _CHARTS:
        lines = [
            Line(name, [(ago, float(facts[name])) for ago, facts in labelled if facts[name] is not None], colour)
            for name, colour in names
        ]
        values = [value for line in lines for _, value in line.points]
        if values:
            found.append(
                line_chart(
                    title,
                    lines,
                    x_label="nights, 0 is this one",
                    y_limits=(0.0, max(values)),
                    x_limits=(labelled[0][0], 0.0),
                    whole_x=True,
                )
            )
    return found


def _facts(night: NightlyRun) -> dict[str, str]:
    labelled = night.label
    facts = {
        "listed": labelled.listed,
        "labelled before": labelled.already_labelled,
        "ok": labelled.ok,
        "failed": labelled.failed,
        "deferred": labelled.deferred,
    }
    shown = {name: f"{value:,}" for name, value in facts.items()}
    if night.deleted is not None:
        shown["deleted"] = f"{night.deleted.images:,}"
    steady = labelled.images_per_s_steady
    return shown | {
        "images/s": "none" if steady is None else f"{steady:,.1f}",
        "minutes": f"{night.wall_s / 60:,.1f}",
    }


def _steps(night: NightlyRun) -> dict[str, str]:
    """What became of each step."""
    labelled, verified = night.label, night.verify
    done = {
        "label": f"{labelled.ok + labelled.failed:,} of {labelled.planned:,} images in {labelled.commits:,} commits"
    }
    if labelled.deferred_reason:
        done["label"] += f". {labelled.deferred:,} are left for the next night: {labelled.deferred_reason}"
    if verified is not None:
        done["verify"] = (
            f"{verified.rows:,} rows in {verified.files:,} files; {verified.compared:,} of {verified.sampled:,} drawn "
            "ones predicted again, one at a time"
        )
    if night.deleted is not None:
        done["deleted"] = (
            f"images with rows that are not listed: {night.deleted.images:,}. Since the last night: "
            f"{night.deleted.since_last_night:,}; there again: {night.deleted.returned:,}"
        )
    if night.vacuumed is not None:
        done["vacuum"] = f"{night.vacuumed:,} files of older versions deleted"
    if night.compaction is not None:
        before, after = night.compaction.files_before, night.compaction.files_after
        done["compact"] = f"{before:,} files of this model became {after:,}" if before > after else "nothing to do"
    skipped = (
        "not done: the labelling ended before its time"
        if night.was_cut_short
        else "not done: the table is left as it is"
    )
    return {
        step: f"failed: {night.failed[step]}" if step in night.failed else done.get(step, skipped)
        for step in ("label", "verify", "deleted", "vacuum", "compact")
    }


def _findings(night: NightlyRun) -> list[tuple[str, str, str, Finding]]:
    """Kind, name, meaning and place of what the verification has found."""
    if night.verify is None:
        return []
    kinds = {"fault": night.verify.faults, "pending": night.verify.pending, "note": night.verify.notes}
    return [
        (kind, str(check), MEANING[check], finding) for kind, found in kinds.items() for check, finding in found.items()
    ]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A night in the table of nights."""
    labelled, deleted = record["label"], record["deleted"]
    return {
        "date": record[schema.RUN_DATE],
        "run": record[schema.RUN_ID],
        "outcome": _OUTCOMES[ExitCode(record["exit_code"])],
        "figures": [labelled[name] for name in ("listed", "ok", "failed", "deferred")]
        + [deleted["images"] if deleted else None],
        "minutes": record["wall_s"] / 60,
    }
