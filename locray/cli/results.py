"""Results of commands for people: as lines of name and value, and as explanations of what needs attention."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from locray import schema
from locray.cli.console import format_value, format_values
from locray.config import LabelConfig
from locray.errors import ExitCode

_log = logging.getLogger(__name__)

_BOTTLENECKS = {
    "fetching": "fetching limits the speed: more bandwidth, or nodes nearer to the store, bring most",
    "decoding": "decoding limits the speed: more CPUs bring most",
    "predicting": "predicting limits the speed: more or faster GPUs bring most, then `locray compile`",
}
"""What would make a planned run faster, by its slowest stage."""

if TYPE_CHECKING:
    from locray.demo.run import DemoSummary
    from locray.labelling.plan import LabelPlan
    from locray.labelling.summary import LabelSummary
    from locray.nightly.run import NightlyRun
    from locray.nightly.status import TableStatus
    from locray.verification.run import Verification


_NIGHTLY_VERDICTS = {
    ExitCode.DONE: "every listed image has its row, and the table is correct",
    ExitCode.UNEXPECTED: "a step failed unexpectedly",
    ExitCode.USAGE: "a step was refused",
    ExitCode.FAILURE_RATE: "the table is up to date, but more images failed than --max-failure-rate allows",
    ExitCode.DEFERRED: "some images have no row yet; the next night labels them",
    ExitCode.FENCED: "another run took over the table",
    ExitCode.CORRUPT: "the table is damaged or inconsistent; see docs/verify.md",
}


def demo_lines(summary: "DemoSummary") -> dict[str, str]:
    """Returns the metrics of the demo's model, and the outcome of its labelling."""
    metrics = {
        name: summary.evaluation[name] for name in ("class_accuracy", "mean_iou", "localization_accuracy", "map_50_95")
    }
    labelling = {name: summary.labelling[name] for name in ("ok", "failed", "errors", "images_per_s_steady")}
    return format_values(metrics) | format_values(labelling) | {"page": summary.page}


def evaluation_lines(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metrics of an evaluation, those of each class below them."""
    long = {"calibration", "classes", "confusion"}
    per_class = {}
    for row in facts["classes"]:
        known = {name: value for name, value in row.items() if name != "label" and value is not None}
        per_class[f"  {row['label']}"] = format_value(known)
    lines = format_values({name: value for name, value in facts.items() if name not in long})
    return lines | {"calibration_error": format_value(facts["calibration"]["error"])} | per_class


def nightly_lines(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns the figures of a nightly run that a person looks for."""
    labelled, deleted, compaction = facts["label"], facts["deleted"], facts["compaction"]
    names = (schema.RUN_ID, "listed", "already_labelled", "planned", "ok", "failed", "deferred", "images_per_s")
    lines = {name: labelled[name] for name in names}
    if labelled["errors"]:
        lines["errors"] = labelled["errors"]
    if deleted:
        lines |= {"deleted images": deleted["images"], "their list": deleted["list_uri"]}
    if facts["vacuumed"] is not None:
        lines["old files deleted"] = facts["vacuumed"]
    if compaction:
        lines["files of the model"] = f"{compaction['files_after']:,}, before {compaction['files_before']:,}"
    lines |= {"wall_s": facts["wall_s"], "page": facts["page"] or "none", "exit code": facts["exit_code"]}
    return format_values(lines)


def status_lines(found: "TableStatus") -> dict[str, str]:
    """Returns what a table holds, then one line per run date, model and configuration, then the last nights."""
    lines = {
        "table": found.table,
        "version": str(found.version),
        "files": f"{found.files:,}, {found.size_bytes / 2**20:,.1f} MiB; {found.small_files:,} of them to be compacted",
        "rows": f"{found.rows:,}",
    }
    for run in found.runs:
        errors = f" ({format_value(run.errors)})" if run.errors else ""
        counts = f"{run.ok:,} ok, {run.failed:,} failed{errors}, {run.detections:,} detections"
        lines[f"{run.run_date}  {run.model_id}/{run.config_hash}"] = f"{counts}, last at {run.last_labelled_at}"
    for night in found.nights:
        owner = f"{night[schema.MODEL_ID]}/{night[schema.CONFIG_HASH]}"
        lines[f"last night  {owner}"] = f"{night[schema.RUN_ID]}, exit code {night['exit_code']}"
    return lines


def verification_lines(found: "Verification") -> dict[str, str]:
    """Returns what was verified, then the number of each finding."""
    kinds = {"faults", "pending", "notes"}
    lines = format_values({name: value for name, value in found.to_dict().items() if name not in kinds})
    findings = found.faults | found.pending | found.notes
    return lines | {check: format_value(finding.count) for check, finding in findings.items()}


def explain_labelling(config: LabelConfig, summary: "LabelSummary") -> None:
    """Explains an empty listing, a failure rate over the limit, and images that the run has deferred."""
    explain_empty_listing(config.images, summary.listed)
    if summary.exit_code(config.max_failure_rate) is ExitCode.FAILURE_RATE:
        _log.error(
            f"{summary.failed} of {summary.ok + summary.failed} images failed ({format_value(summary.errors)}), more "
            f"than --max-failure-rate {config.max_failure_rate:g} allows. See the column {schema.ERROR_MESSAGE} for "
            "the reasons.",
        )
    if not summary.deferred:
        return
    reason = f" Reason: {summary.deferred_reason}." if summary.deferred_reason else ""
    _log.error(
        f"{summary.deferred} images were deferred ({format_value(summary.deferred_causes)}): the next run will retry "
        f"them.{reason}",
    )
    for uri, why in summary.deferred_examples.items():
        _log.info(f"  {uri}: {why}")
    if summary.deferred_list is not None:
        _log.info(f"All of them are listed in {summary.deferred_list}")
    elif config.deferred_list is None and summary.deferred > len(summary.deferred_examples):
        _log.info("To list all of them, give --deferred-list FILE.")


def explain_empty_listing(images: str, num_listed: int) -> None:
    """Reports that there was nothing to label, if so."""
    if not num_listed:
        _log.info(f"There is no image in {images}: nothing to label. Rows that the table holds stay.")


def explain_findings(found: "Verification") -> None:
    """Explains each finding of a verification, with its first examples."""
    from locray.verification.findings import MEANING

    for check, finding in (found.faults | found.pending | found.notes).items():
        more = finding.count - len(finding.first)
        rest = [f"and {more:,} more"] if more else []
        _log.info("\n  ".join([f"{check}: {MEANING[check]}", *finding.first, *rest]))


def log_verification_verdict(found: "Verification") -> None:
    """Says in one line whether the table is correct and complete."""
    if found.faults:
        _log.error(f"Verdict: {found.table} is damaged or inconsistent: {', '.join(found.faults)}. See docs/verify.md")
    elif found.pending:
        counts = format_value({check: finding.count for check, finding in found.pending.items()})
        _log.warning(f"Verdict: {found.table} is correct but not complete ({counts}): the next run labels the rest")
    else:
        complete = "" if found.listed is None else f", and complete for the {found.listed:,} listed images"
        _log.info(f"Verdict: {found.table} is correct{complete}")


def log_nightly_verdict(night: "NightlyRun") -> None:
    """Says in one line what the night's exit code means."""
    text = f"Verdict: {_NIGHTLY_VERDICTS[night.exit_code]} (exit code {int(night.exit_code)})"
    failed = f". Steps that failed: {', '.join(night.failed)}" if night.failed else ""
    _log.log(logging.INFO if night.exit_code is ExitCode.DONE else logging.ERROR, f"{text}{failed}")


def explain_plan(found: "LabelPlan") -> None:
    """Explains which images of the sample the estimate does not count, and what limits the speed."""
    if found.bottleneck is not None:
        _log.info(_BOTTLENECKS[found.bottleneck])
    num_failed = sum(found.sampled_errors.values())
    if not num_failed:
        return
    counted = "The estimate counts the others" if found.images_per_s else "So there is no estimate"
    _log.warning(
        f"{num_failed} of {found.sampled} sampled images can't be labelled ({format_value(found.sampled_errors)}). "
        f"{counted}."
    )
