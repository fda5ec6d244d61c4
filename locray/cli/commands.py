"""One function per verb, named like it: runs the command, shows its result, and returns the exit code.

Each imports what it runs when it is called, so that the command line answers at once.
"""

import logging
from typing import TYPE_CHECKING

from locray.cli import results
from locray.cli.console import Console, format_value, format_values
from locray.config import (
    CompileConfig,
    ConvertConfig,
    DemoConfig,
    EvaluateConfig,
    ExportModelConfig,
    LabelConfig,
    NightlyConfig,
    PlanConfig,
    PreviewConfig,
    QuantizeConfig,
    StatusConfig,
    SubmitConfig,
    TrainConfig,
    VerifyConfig,
)
from locray.errors import ExitCode

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from locray.labelling.summary import LabelSummary
    from locray.nightly.run import NightlyRun


def demo(config: DemoConfig, console: Console) -> ExitCode:
    """`locray demo`."""
    from locray.demo.run import demo as run

    summary = run(config, console.report)
    console.result(summary.to_dict(), results.demo_lines(summary))
    _log.info(f"Query the table from Python:\n\n{summary.query}\n")
    return ExitCode.DONE


def preview(config: PreviewConfig, console: Console) -> ExitCode:
    """`locray preview`."""
    from locray.report.preview import preview as run

    console.result(run(config, console.report).to_dict())
    return ExitCode.DONE


def convert(config: ConvertConfig, console: Console) -> ExitCode:
    """`locray convert`."""
    from locray.datasets.conversion import convert as run

    console.result(run(config, console.report).to_dict())
    return ExitCode.DONE


def train(config: TrainConfig, console: Console) -> ExitCode:
    """`locray train`."""
    from locray.api.runs import train as run

    console.result(run(config, progress=console.report).to_dict())
    return ExitCode.DONE


def evaluate(config: EvaluateConfig, console: Console) -> ExitCode:
    """`locray evaluate`."""
    from locray.api.runs import evaluate as run

    facts = run(config, progress=console.report).to_dict()
    console.result(facts, results.evaluation_lines(facts))
    return ExitCode.DONE


def export_model(config: ExportModelConfig, console: Console) -> ExitCode:
    """`locray export-model`."""
    from locray.convert.export import export as run

    facts = run(config, console.report).to_dict()
    console.result(facts, {name: format_value("any" if value is None else value) for name, value in facts.items()})
    return ExitCode.DONE


def quantize(config: QuantizeConfig, console: Console) -> ExitCode:
    """`locray quantize`."""
    from locray.convert.quantize import quantize as run

    console.result(run(config, console.report).to_dict())
    return ExitCode.DONE


def compile(config: CompileConfig, console: Console) -> ExitCode:  # noqa: A001 (named after its verb)
    """`locray compile`."""
    from locray.convert.compile import compile_model

    summary = compile_model(config, console.report)
    console.result(summary.to_dict())
    if summary.package is None:
        log = _log.info if summary.diff.agrees else _log.error
        log(f"Nothing was written: {summary.reason}")
    return ExitCode.DONE if summary.diff.agrees else ExitCode.UNEXPECTED


def label(config: LabelConfig, console: Console) -> ExitCode:
    """`locray label`."""
    from locray.labelling.run import label as run

    def show(summary: "LabelSummary") -> None:
        hidden = {"deferred_examples", "deferred_reason", "transaction"}
        facts = summary.to_dict()
        console.result(facts, format_values({name: value for name, value in facts.items() if name not in hidden}))
        results.explain_labelling(config, summary)

    summary = run(config, console.report, show)
    show(summary)
    return summary.exit_code(config.max_failure_rate)


def plan(config: PlanConfig, console: Console) -> ExitCode:
    """`locray plan`."""
    from locray.labelling.plan import plan as run

    found = run(config, console.report)
    console.result(found.to_dict())
    results.explain_empty_listing(config.images, found.listed)
    results.explain_plan(found)
    return ExitCode.DONE


def nightly(config: NightlyConfig, console: Console) -> ExitCode:
    """`locray nightly`."""
    from locray.nightly.run import LABELLING
    from locray.nightly.run import nightly as run
    from locray.report.nightly import write_nightly_page

    def show(night: "NightlyRun") -> None:
        page = night.attempt("page", lambda: write_nightly_page(night))
        facts = night.to_dict() | {"page": page}
        console.result(facts, results.nightly_lines(facts))
        results.explain_labelling(config, night.label)
        if night.verify is not None:
            results.explain_findings(night.verify)
        for step, message in night.failed.items():
            if step != LABELLING:  # its error is raised, and shown at the end
                _log.error(f"{step}: {message}")
        results.log_nightly_verdict(night)

    night = run(config, console.report, show)
    show(night)
    return night.exit_code


def status(config: StatusConfig, console: Console) -> ExitCode:
    """`locray status`."""
    from locray.nightly.status import status as run

    found = run(config)
    console.result(found.to_dict(), results.status_lines(found))
    return ExitCode.DONE


def verify(config: VerifyConfig, console: Console) -> ExitCode:
    """`locray verify`."""
    from locray.verification.run import verify as run

    found = run(config, console.report)
    console.result(found.to_dict(), results.verification_lines(found))
    results.explain_findings(found)
    results.log_verification_verdict(found)
    return found.exit_code


def submit(config: SubmitConfig, console: Console) -> int:
    """`locray submit`."""
    from locray.cli.submit import submit as run

    return run(config, console)
