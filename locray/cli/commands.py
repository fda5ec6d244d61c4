"""One function a verb: run it, show its result, give the exit code. Called by the command line."""

from typing import TYPE_CHECKING, Any

from locray import schema, storage
from locray.cli.console import Console
from locray.config import (
    DemoConfig,
    EvaluateConfig,
    ExportModelConfig,
    LabelConfig,
    NightlyConfig,
    PlanConfig,
    PreviewConfig,
    QuantizeConfig,
    StatusConfig,
    TrainConfig,
    VerifyConfig,
)
from locray.errors import ExitCode, LocrayError

if TYPE_CHECKING:
    from locray.labelling.summary import LabelSummary
    from locray.nightly.run import NightlyRun
    from locray.training.run import TrainSummary
    from locray.verification.run import Verification


def train(config: TrainConfig, console: Console) -> ExitCode:
    """`locray train`."""
    from locray.training.run import train as run

    summary = run(config, console.report)
    facts = summary.to_dict()
    page = _training_page(config, summary, console)
    console.result(facts | {"page": page}, {name: shown(value) for name, value in facts.items()} | {"page": page or ""})
    return ExitCode.DONE


def _training_page(config: TrainConfig, summary: "TrainSummary", console: Console) -> str | None:
    """Writes the page of a training, where it isn't there from before. Without it, the model is as good."""
    from locray.report.training import page_uri, write_training_page

    uri = page_uri(config)
    names = ("epochs", "best_epoch", "train_images", "val_images", "images_per_s", "wall_s")
    facts = {name.replace("_", " "): shown(getattr(summary, name)) for name in names}
    try:
        if not (summary.already_trained and storage.exists(uri)):
            write_training_page(config, summary.model_id, facts, summary.best_epoch, console.report)
    except LocrayError as error:
        console.say(f"The model is there, but its page could not be made: {error}")
        return None
    return uri


def preview(config: PreviewConfig, console: Console) -> ExitCode:
    """`locray preview`."""
    from locray.report.preview import preview as run

    facts = run(config, console.report).to_dict()
    console.result(facts, {name: shown(value) for name, value in facts.items()})
    return ExitCode.DONE


def evaluate(config: EvaluateConfig, console: Console) -> ExitCode:
    """`locray evaluate`."""
    from locray.evaluation.run import evaluate as run

    evaluation = run(config, console.report)
    if config.page is not None:
        from locray.images.decode import DecodeLimits
        from locray.report.evaluation import write_evaluation_page

        write_evaluation_page(config.page, evaluation, DecodeLimits.of(config))
    facts = evaluation.summary.to_dict()
    long = {"calibration", "classes", "confusion"}
    lines = {name: shown(value) for name, value in facts.items() if value is not None and name not in long}
    each = {
        f"  {row['label']}": shown({name: item for name, item in row.items() if item is not None and name != "label"})
        for row in facts["classes"]
    }
    console.result(facts, lines | {"calibration_error": shown(facts["calibration"]["error"])} | each)
    return ExitCode.DONE


def export_model(config: ExportModelConfig, console: Console) -> ExitCode:
    """`locray export-model`."""
    from locray.convert.export import export as run

    facts = run(config, console.report).to_dict()
    console.result(facts, {name: shown("any" if value is None else value) for name, value in facts.items()})
    return ExitCode.DONE


def quantize(config: QuantizeConfig, console: Console) -> ExitCode:
    """`locray quantize`."""
    from locray.convert.quantize import quantize as run

    facts = run(config, console.report).to_dict()
    console.result(facts, {name: shown(value) for name, value in facts.items()})
    return ExitCode.DONE


def label(config: LabelConfig, console: Console) -> ExitCode:
    """`locray label`."""
    from locray.labelling.run import label as run

    summary = run(config, console.report, lambda so_far: _show_labelling(config, so_far, console))
    _show_labelling(config, summary, console)
    return summary.exit_code(config.max_failure_rate)


def _show_labelling(config: LabelConfig, summary: "LabelSummary", console: Console) -> None:
    facts = summary.to_dict()
    not_shown = {"deferred_examples", "deferred_reason", "transaction"}
    lines = {name: shown(value) for name, value in facts.items() if value is not None and name not in not_shown}
    console.result(facts, lines)
    _say_what_is_left(config, summary, console)


def _say_what_is_left(config: LabelConfig, summary: "LabelSummary", console: Console) -> None:
    _say_if_nothing_is_listed(config, summary.listed, console)
    if summary.exit_code(config.max_failure_rate) is ExitCode.FAILURE_RATE:
        console.error(
            f"{summary.failed} of {summary.ok + summary.failed} images failed ({shown(summary.errors)}), more than "
            f"--max-failure-rate {config.max_failure_rate:g} allows. The column {schema.ERROR_MESSAGE} says why."
        )
    if summary.deferred:
        reason = f" The reason: {summary.deferred_reason}." if summary.deferred_reason else ""
        console.error(
            f"{summary.deferred} images were deferred ({shown(summary.deferred_causes)}): the next run takes them up "
            f"again.{reason}"
        )
        for uri, why in summary.deferred_examples.items():
            console.say(f"  {uri}: {why}")
        if summary.deferred_list is not None:
            console.say(f"All of them are listed in {summary.deferred_list}")
        elif config.deferred_list is None and summary.deferred > len(summary.deferred_examples):
            console.say("To have all of them listed, give --deferred-list FILE.")


def nightly(config: NightlyConfig, console: Console) -> ExitCode:
    """`locray nightly`."""
    from locray.nightly.run import nightly as run

    night = run(config, console.report, lambda so_far: _show_nightly_run(config, so_far, console))
    _show_nightly_run(config, night, console)
    return night.exit_code


def _show_nightly_run(config: NightlyConfig, night: "NightlyRun", console: Console) -> None:
    from locray.nightly.run import LABELLING
    from locray.report.nightly import write_nightly_page

    page = night.attempt("page", lambda: write_nightly_page(night))
    facts = night.to_dict() | {"page": page}
    console.result(facts, _lines_of_a_night(facts))
    _say_what_is_left(config, night.label, console)
    if night.verify is not None:
        _say_what_was_found(night.verify, console)
    for step, message in night.failed.items():
        if step != LABELLING:  # its error is raised, and told at the end
            console.error(f"{step}: {message}")


def _lines_of_a_night(facts: dict[str, Any]) -> dict[str, str]:
    """The figures that a person looks for."""
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
    return {name: shown(value) for name, value in lines.items()}


def plan(config: PlanConfig, console: Console) -> ExitCode:
    """`locray plan`."""
    from locray.labelling.plan import plan as run

    facts = run(config, console.report).to_dict()
    console.result(facts, {name: shown(value) for name, value in facts.items() if value is not None})
    _say_if_nothing_is_listed(config, facts["listed"], console)
    return ExitCode.DONE


def _say_if_nothing_is_listed(config: LabelConfig, listed: int, console: Console) -> None:
    if not listed:
        console.say(f"There is no image in {config.images}: nothing to label. Rows that the table holds stay.")


def status(config: StatusConfig, console: Console) -> ExitCode:
    """`locray status`."""
    from locray.nightly.status import status as run

    found = run(config)
    lines = {
        "table": found.table,
        "version": str(found.version),
        "files": f"{found.files:,}, {found.size_bytes / 2**20:,.1f} MiB; {found.small_files:,} of them to be compacted",
        "rows": f"{found.rows:,}",
    }
    for one in found.runs:
        errors = f" ({shown(one.errors)})" if one.errors else ""
        counts = f"{one.ok:,} ok, {one.failed:,} failed{errors}, {one.detections:,} detections"
        lines[f"{one.run_date}  {one.model_id}/{one.config_hash}"] = f"{counts}, last at {one.last_labelled_at}"
    for night in found.nights:
        owner = f"{night[schema.MODEL_ID]}/{night[schema.CONFIG_HASH]}"
        lines[f"last night  {owner}"] = f"{night[schema.RUN_ID]}, exit code {night['exit_code']}"
    console.result(found.to_dict(), lines)
    return ExitCode.DONE


def verify(config: VerifyConfig, console: Console) -> ExitCode:
    """`locray verify`."""
    from locray.verification.run import verify as run

    found = run(config, console.report)
    facts = found.to_dict()
    kinds = ("faults", "pending", "notes")
    lines = {name: shown(value) for name, value in facts.items() if name not in kinds and value is not None}
    each = found.faults | found.pending | found.notes
    console.result(facts, lines | {check: shown(finding.count) for check, finding in each.items()})
    _say_what_was_found(found, console)
    return found.exit_code


def _say_what_was_found(found: "Verification", console: Console) -> None:
    from locray.verification.findings import MEANING

    for check, finding in (found.faults | found.pending | found.notes).items():
        more = finding.count - len(finding.first)
        rest = [f"and {more:,} more"] if more else []
        console.say("\n  ".join([f"{check}: {MEANING[check]}", *finding.first, *rest]))
    if found.faults:
        console.error(f"{found.table} is not what it should be: {', '.join(found.faults)}. See docs/verify.md")


def shown(value: Any) -> str:
    """A figure as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(item)}" for name, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"  # noqa: PLR2004
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def demo(config: DemoConfig, console: Console) -> ExitCode:
    """`locray demo`."""
    from locray.demo.run import demo as run

    summary = run(config, console.report)
    names = ("class_accuracy", "mean_iou", "localization_accuracy", "map_50_95")
    evaluation = {name: shown(summary.evaluation[name]) for name in names}
    names = ("ok", "failed", "errors", "images_per_s_steady")
    labelling = {name: shown(summary.labelling[name]) for name in names if summary.labelling[name] is not None}
    console.result(summary.to_dict(), evaluation | labelling | {"page": summary.page})
    console.say(f"\nQuery the table from Python:\n\n{summary.query}\n")
    return ExitCode.DONE
