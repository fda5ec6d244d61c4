"""A night, from configuration to record: the whole story in one function. Called by the command line.

A step that fails is written down and the steps that don't depend on it are done; only what stops the labelling
stops the night.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

from locray import schema
from locray.config import NightlyConfig, VerifyConfig
from locray.errors import DeferralCause, ExitCode, LocrayError
from locray.labelling.run import label
from locray.labelling.summary import Clock, LabelSummary
from locray.nightly.compaction import Compaction, compact
from locray.nightly.deleted import Deleted, list_deleted
from locray.nightly.records import deleted_uri, records_uri, write_record
from locray.nightly.vacuum import vacuum
from locray.progress import Progress, Report
from locray.sources import open_source
from locray.sources.wrappers import CachedSource
from locray.storage import temporary_folder
from locray.table.key import PredictionKey
from locray.table.writer import TableWriter
from locray.verification.run import Verification, verify

Result = TypeVar("Result")

LABELLING = "label"
"""The step that the others depend on: its error is written down, and raised."""

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
    """What to tell the shell of several steps: damage before failures before what the next night takes up."""
    return min(codes, key=_WORST_FIRST.index)


@dataclass
class NightlyRun:
    """What a night did, as `--json` prints it. A step that was not done, or failed, is None."""

    table: str
    images: str
    run_date: date
    label: LabelSummary
    exit_code: ExitCode
    """The worst of the steps'."""
    verify: Verification | None = None
    deleted: Deleted | None = None
    vacuumed: int | None = None
    """Files of older versions that were deleted."""
    compaction: Compaction | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """What the steps that failed said."""
    wall_s: float = 0.0

    @property
    def records(self) -> str:
        """The folder of the records of this model and configuration."""
        return records_uri(self.table, self.key)

    @property
    def key(self) -> PredictionKey:
        """The model and configuration that labelled."""
        return PredictionKey(self.label.model_id, self.label.config_hash)

    @property
    def was_cut_short(self) -> bool:
        """Whether the labelling ended before its worklist: it was asked to stop, given up, or stopped by an error."""
        return LABELLING in self.failed or bool(self.label.deferred_causes.get(DeferralCause.NOT_TRIED))

    @property
    def is_sound(self) -> bool:
        """Whether the table was verified and nothing is wrong with it."""
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

    def attempt(self, step: str, run: Callable[[], Result]) -> Result | None:
        """What a step gives, or None where it fails, in whatever way: that is written down."""
        try:
            return run()
        except Exception as error:  # noqa: BLE001 - the steps after it are done all the same
            self.failed[step] = _told(error)
            self.exit_code = worst(self.exit_code, _exit_code_of(error))
            return None


def nightly(
    config: NightlyConfig, report: Report, on_error: Callable[[NightlyRun], None] = lambda _: None
) -> NightlyRun:
    """Labels what is new or changed, verifies the table against the same listing, tidies it up, writes the night down.

    A table in which the verification finds faults is left as it is: old files may be needed to mend it. Where the
    labelling ended before its worklist, the night ends, too.

    Args:
        config: What to label, and how to tidy up.
        report: Is told how far the night is.
        on_error: Is told what was written down of it, before an error that stopped the labelling is raised.

    Raises:
        UsageError: the source, the model or the table is not what it should be; nothing was written.
        FencedError: another run took over while this one labelled; what was committed stays.
    """
    clock = Clock()
    with temporary_folder() as folder:
        source = CachedSource(open_source(config.images, config.uri_column), folder)
        night = _labelled(config, report, source, clock, on_error)
        if not night.was_cut_short:
            night.verify = night.attempt("verify", lambda: verify(_verification(config), report, source))
        if night.verify is not None:
            night.exit_code = worst(night.exit_code, night.verify.exit_code)
        if night.is_sound:
            report(Progress("listing deleted images"))
            night.deleted = night.attempt("deleted", lambda: _deleted(night, source))
            report(Progress("vacuuming"))
            night.vacuumed = night.attempt("vacuum", lambda: vacuum(_writer_of(night), config.retention_hours))
            report(Progress("compacting"))
            night.compaction = night.attempt(
                "compact", lambda: compact(_writer_of(night), config.target_file_bytes, report)
            )
    _write_down(night, clock)
    return night


def _labelled(
    config: NightlyConfig, report: Report, source: CachedSource, clock: Clock, on_error: Callable[[NightlyRun], None]
) -> NightlyRun:
    """A night of which the labelling is done. One that an error stopped, once it had begun, is written down, too."""
    so_far: list[LabelSummary] = []
    try:
        labelled = label(config, report, so_far.append, source)
    except Exception as error:
        for summary in so_far:
            night = NightlyRun(summary.table, config.images, config.run_date, summary, _exit_code_of(error))
            night.failed[LABELLING] = _told(error)
            _write_down(night, clock)
            on_error(night)
        raise
    exit_code = labelled.exit_code(config.max_failure_rate)
    return NightlyRun(labelled.table, config.images, config.run_date, labelled, exit_code)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, LocrayError) else f"{type(error).__name__}: {error}"


def _exit_code_of(error: Exception) -> ExitCode:
    return error.exit_code if isinstance(error, LocrayError) else ExitCode.UNEXPECTED


def _write_down(night: NightlyRun, clock: Clock) -> None:
    night.wall_s = clock.wall_s
    night.attempt("record", lambda: write_record(night.records, night.label.run_id, night.to_dict()))


def _verification(config: NightlyConfig) -> VerifyConfig:
    """The verification of the rows of this model and configuration; each date draws a sample of its own."""
    shared = config.model_dump(include=set(VerifyConfig.model_fields) & set(NightlyConfig.model_fields), by_alias=True)
    return VerifyConfig(**shared, seed=config.run_date.toordinal())


def _deleted(night: NightlyRun, source: CachedSource) -> Deleted:
    return list_deleted(night.table, night.key, source.listing(), deleted_uri(night.records), night.run_date)


def _writer_of(night: NightlyRun) -> TableWriter:
    """Under the number of the labelling: a run that has claimed the table since then goes first."""
    return TableWriter.resume(night.table, night.label.model_id, night.label.transaction)
