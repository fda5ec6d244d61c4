"""Page of a nightly run: its steps, its findings, and earlier runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from locray import schema, storage
from locray.errors import ExitCode
from locray.nightly.records import page_uri, read_records
from locray.nightly.run import NightlyRun
from locray.report.charts import Chart, Line, line_chart
from locray.report.page import render_template
from locray.verification.findings import MEANING, Finding

MAX_RUNS_IN_CHARTS = 60
MAX_RUNS_IN_TABLE = 14

_OUTCOMES = {
    ExitCode.DONE: "no problems",
    ExitCode.UNEXPECTED: "a step failed",
    ExitCode.USAGE: "a step was refused",
    ExitCode.FAILURE_RATE: "too many images failed",
    ExitCode.DEFERRED: "images are left for the next run",
    ExitCode.FENCED: "another run has taken over",
    ExitCode.CORRUPT: "the table is damaged",
}
_CHARTS = (
    ("Images labelled", (("ok", "c2"), ("failed", "c4"), ("deferred", "c6"))),
    ("Images listed", (("listed", "c0"),)),
    ("Images per second in steady state", (("images_per_s_steady", "c0"),)),
)


def write_nightly_page(run: NightlyRun) -> str:
    """Writes the page beside the record of the run. Returns its URI.

    Raises:
        StoreError: the store failed.
    """
    uri = page_uri(run.records, run.label.run_id)
    records = read_records(run.records, MAX_RUNS_IN_CHARTS)
    page = render_template(
        "nightly.html",
        title=f"Nightly run of {run.run_date}",
        summary=f"{run.images}, labelled by {run.label.model_id} into {run.table}.",
        outcome=f"{_OUTCOMES[run.exit_code]} (exit code {int(run.exit_code)})",
        facts=_facts(run),
        steps=_steps(run),
        errors=sorted(run.label.errors.items(), key=lambda item: -item[1]),
        findings=_findings(run),
        deleted=run.deleted,
        uri_column=schema.IMAGE_URI,
        charts=charts(records),
        runs=[_row(record) for record in reversed(records[-MAX_RUNS_IN_TABLE:])],
    )
    storage.write_bytes(uri, page.encode())
    return uri


def charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Charts over the runs, the latest one at 0; none for fewer than two runs.

    A missing value, such as the speed of a run that labelled nothing, leaves a gap.
    """
    if len(records) < 2:  # noqa: PLR2004 (a curve needs two points)
        return []
    labelled = [(index + 1.0 - len(records), record["label"]) for index, record in enumerate(records)]
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
                    x_label="runs; 0 is this one",
                    y_limits=(0.0, max(values)),
                    x_limits=(labelled[0][0], 0.0),
                    whole_x=True,
                )
            )
    return found


def _facts(run: NightlyRun) -> dict[str, str]:
    label = run.label
    counts = {
        "listed": label.listed,
        "labelled before": label.already_labelled,
        "ok": label.ok,
        "failed": label.failed,
        "deferred": label.deferred,
    }
    if run.deleted is not None:
        counts["deleted"] = run.deleted.images
    speed = label.images_per_s_steady
    return {name: f"{count:,}" for name, count in counts.items()} | {
        "images/s": "none" if speed is None else f"{speed:,.1f}",
        "minutes": f"{run.wall_s / 60:,.1f}",
    }


def _steps(run: NightlyRun) -> dict[str, str]:
    """Outcome of each step."""
    label = run.label
    done = {"label": f"{label.ok + label.failed:,} of {label.planned:,} images in {label.commits:,} commits"}
    if label.deferred_reason:
        done["label"] += f". {label.deferred:,} are left for the next run: {label.deferred_reason}"
    if run.verify is not None:
        done["verify"] = (
            f"{run.verify.rows:,} rows in {run.verify.files:,} files; {run.verify.compared:,} of "
            f"{run.verify.sampled:,} sampled rows predicted again, one image at a time"
        )
    if run.deleted is not None:
        done["deleted"] = (
            f"{run.deleted.images:,} images with rows are not listed. Since the previous run: "
            f"{run.deleted.since_last_night:,} new, {run.deleted.returned:,} returned"
        )
    if run.vacuumed is not None:
        done["vacuum"] = f"{run.vacuumed:,} files of older versions deleted"
    if run.compaction is not None:
        before, after = run.compaction.files_before, run.compaction.files_after
        done["compact"] = f"{before:,} files of this model became {after:,}" if before > after else "nothing to do"
    skipped = "skipped: labelling ended early" if run.was_cut_short else "skipped: the table has faults"
    return {
        step: f"failed: {run.failed[step]}" if step in run.failed else done.get(step, skipped)
        for step in ("label", "verify", "deleted", "vacuum", "compact")
    }


def _findings(run: NightlyRun) -> list[tuple[str, str, str, Finding]]:
    """Kind, name, meaning and examples of the verification's findings."""
    if run.verify is None:
        return []
    kinds = {"fault": run.verify.faults, "pending": run.verify.pending, "note": run.verify.notes}
    return [
        (kind, str(check), MEANING[check], finding) for kind, found in kinds.items() for check, finding in found.items()
    ]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the table of runs."""
    label, deleted = record["label"], record["deleted"]
    return {
        "date": record[schema.RUN_DATE],
        "id": record[schema.RUN_ID],
        "outcome": _OUTCOMES[ExitCode(record["exit_code"])],
        "counts": [label[name] for name in ("listed", "ok", "failed", "deferred")]
        + [deleted["images"] if deleted else None],
        "minutes": record["wall_s"] / 60,
    }
