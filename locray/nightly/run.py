"""A nightly run, from configuration to record.

A step that fails is recorded, and the steps that don't depend on it still run. Only an error in labelling ends the
run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, TypeVar

from locray import schema
from locray.config import NightlyConfig, VerifyConfig
from locray.errors import DeferralCause, ExitCode, LocrayError
from locray.labelling.run import label
from locray.labelling.summary import LabelSummary
from locray.nightly.deleted import DeletedImages, list_deleted
from locray.nightly.maintenance import Compaction, compact, vacuum
from locray.nightly.records import deleted_uri, records_uri, write_record
from locray.progress import Clock, Progress, Report
from locray.sources import open_source
from locray.sources.wrappers import CachedSource
from locray.storage import temporary_folder
from locray.table.key import PredictionKey
from locray.table.writer import TableWriter
from locray.verification.run import Verification, verify

Result = TypeVar("Result")

LABELLING = "label"
"""The step that all others depend on: its error is recorded and raised."""

_WORST_FIRST = (
    ExitCode.CORRUPT,
    ExitCode.USAGE,
    ExitCode.UNEXPECTED,
    ExitCode.FENCED,
    ExitCode.FAILURE_RATE,
    ExitCode.DEFERRED,
    ExitCode.DONE,
)


def worst(*codes: ExitCode) -> ExitCode:
    """The exit code of several steps: damage before failures before images that the next run will label."""
    return min(codes, key=_WORST_FIRST.index)


@dataclass
class NightlyRun:
    """Result of a nightly run, as `--json` prints it. A step that failed or was skipped is None."""

    table: str
    images: str
    run_date: date
    label: LabelSummary
    exit_code: ExitCode
    """The worst of all steps."""
    verify: Verification | None = None
    deleted: DeletedImages | None = None
    vacuumed: int | None = None
    """Number of files of older versions that were deleted."""
    compaction: Compaction | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """Error messages of the steps that failed."""
    wall_s: float = 0.0

    @property
    def key(self) -> PredictionKey:
        """The model and configuration that labelled."""
        return PredictionKey(self.label.model_id, self.label.config_hash)

    @property
    def records(self) -> str:
        """The folder for the records of this model and configuration."""
        return records_uri(self.table, self.key)

    @property
    def was_cut_short(self) -> bool:
        """Whether labelling ended before the end of its worklist: interrupted, aborted, or stopped by an error."""
        return LABELLING in self.failed or bool(self.label.deferred_causes.get(DeferralCause.NOT_TRIED))

    @property
    def is_table_correct(self) -> bool:
        """Whether the table was verified and has no faults."""
        return self.verify is not None and not self.verify.faults

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {
            "table": self.table,
            "images": self.images,
            schema.RUN_ID: self.label.run_id,
            schema.RUN_DATE: str(self.run_date),
            schema.MODEL_ID: self.label.model_id,
            schema.CONFIG_HASH: self.label.config_hash,
            "exit_code": int(self.exit_code),
            "label": self.label.to_dict(),
            "verify": self.verify and self.verify.to_dict(),
            "deleted": self.deleted and self.deleted.to_dict(),
            "vacuumed": self.vacuumed,
            "compaction": self.compaction and self.compaction.to_dict(),
            "failed": self.failed,
            "wall_s": round(self.wall_s, 3),
        }

    def attempt(self, step: str, act: Callable[[], Result]) -> Result | None:
        """The result of a step, or None if it fails: the error is recorded, and the exit code adapted."""
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - the later steps still run
            self.failed[step] = _message(error)
            self.exit_code = worst(self.exit_code, _exit_code(error))
            return None


def nightly(
    config: NightlyConfig, report: Report, on_error: Callable[[NightlyRun], None] = lambda _: None
) -> NightlyRun:
    """Labels new and changed images, verifies the table against the same listing, and maintains its files.

    A table with faults is left as it is, since its old files may be needed to repair it. If labelling ends before its
    worklist, the other steps are skipped.

    Args:
        config: what to label, and how to maintain the table.
        report: progress callback.
        on_error: called with the recorded result, before an error that stopped labelling is raised.

    Raises:
        UsageError: the source, the model or the table is invalid; nothing was written.
        FencedError: another run claimed the table during labelling; earlier commits stay.
    """
    clock = Clock()
    with temporary_folder() as folder:
        source = CachedSource(open_source(config.images, config.uri_column), folder)
        run = _label(config, report, source, clock, on_error)
        if not run.was_cut_short:
            of_verify: Report = lambda step: report(replace(step, stage=f"verify, {step.stage}"))  # noqa: E731
            run.verify = run.attempt("verify", lambda: verify(_verify_config(config), of_verify, source))
        if run.verify is not None:
            run.exit_code = worst(run.exit_code, run.verify.exit_code)
        if run.is_table_correct:
            report(Progress("listing deleted images"))
            run.deleted = run.attempt("deleted", lambda: _list_deleted(run, source))
            report(Progress("vacuuming"))
            run.vacuumed = run.attempt("vacuum", lambda: vacuum(_writer(run), config.retention_hours))
            report(Progress("compacting"))
            run.compaction = run.attempt("compact", lambda: compact(_writer(run), config.target_file_bytes, report))
    _record(run, clock)
    return run


def _label(
    config: NightlyConfig, report: Report, source: CachedSource, clock: Clock, on_error: Callable[[NightlyRun], None]
) -> NightlyRun:
    """The run after its labelling. If an error stops labelling that has begun, the run is recorded too."""
    so_far: list[LabelSummary] = []
    try:
        labelled = label(config, report, so_far.append, source)
    except Exception as error:
        for summary in so_far:
            run = NightlyRun(summary.table, config.images, config.run_date, summary, _exit_code(error))
            run.failed[LABELLING] = _message(error)
            _record(run, clock)
            on_error(run)
        raise
    exit_code = labelled.exit_code(config.max_failure_rate)
    return NightlyRun(labelled.table, config.images, config.run_date, labelled, exit_code)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, LocrayError) else f"{type(error).__name__}: {error}"


def _exit_code(error: Exception) -> ExitCode:
    return error.exit_code if isinstance(error, LocrayError) else ExitCode.UNEXPECTED


def _record(run: NightlyRun, clock: Clock) -> None:
    run.wall_s = clock.wall_s
    run.attempt("record", lambda: write_record(run.records, run.label.run_id, run.to_dict()))


def _verify_config(config: NightlyConfig) -> VerifyConfig:
    """Verifies the rows of this model and configuration. Each date draws another sample."""
    shared = config.model_dump(include=set(VerifyConfig.model_fields) & set(NightlyConfig.model_fields), by_alias=True)
    return VerifyConfig(**shared, seed=config.run_date.toordinal())


def _list_deleted(run: NightlyRun, source: CachedSource) -> DeletedImages:
    return list_deleted(run.table, run.key, source.listing(), deleted_uri(run.records), run.run_date)


def _writer(run: NightlyRun) -> TableWriter:
    """A writer that continues the labelling's claim: it is fenced if another run has claimed the table since."""
    return TableWriter.resume(run.table, run.label.model_id, run.label.transaction)
