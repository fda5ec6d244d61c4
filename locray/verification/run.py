"""A verification, from configuration to findings."""

from dataclasses import asdict, dataclass
from typing import Any

from locray import storage
from locray.config import InferenceOptions, ResultOptions, VerifyConfig
from locray.errors import ExitCode
from locray.labelling.image_source import without_table_files
from locray.labelling.model import ModelSpec
from locray.progress import Clock, Progress, Report
from locray.sources import Source, open_source
from locray.table.key import KeySelector
from locray.table.open import holds_rows, open_table
from locray.verification.findings import Check, Finding, findings_to_dict
from locray.verification.sample import predict_again
from locray.verification.table import check_table


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification, as `--json` prints it."""

    table: str
    version: int
    files: int
    rows: int
    model_id: str | None
    config_hash: str | None
    listed: int | None
    sampled: int
    compared: int
    """Sampled rows that could be compared; the images of the others are no longer available."""
    faults: dict[Check, Finding]
    pending: dict[Check, Finding]
    notes: dict[Check, Finding]
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        found = {name: findings_to_dict(getattr(self, name)) for name in ("faults", "pending", "notes")}
        return {name: found.get(name, value) for name, value in asdict(self).items()} | {
            "wall_s": round(self.wall_s, 3)
        }

    @property
    def exit_code(self) -> ExitCode:
        """`CORRUPT` if there are faults, else `DEFERRED` if images are pending."""
        if self.faults:
            return ExitCode.CORRUPT
        return ExitCode.DEFERRED if self.pending else ExitCode.DONE


def verify(config: VerifyConfig, report: Report, source: Source | None = None) -> Verification:
    """Checks a predictions table, and compares it with the images' listing and with its model where they are given.

    Args:
        config: what to check.
        report: progress callback.
        source: the source of `config.images`, if a run has just labelled from it: the model may then have no rows.

    Raises:
        UsageError: the table, the source or the model is invalid, or the table holds no rows of the model.
        StoreError: the store does not answer.
    """
    clock = Clock()
    report(Progress("checking"))
    table_uri = storage.normalise(config.table)
    was_labelled = source is not None
    if source is None and config.images is not None:
        source = open_source(config.images, config.uri_column)
    if source is not None:
        source.check(may_be_empty=holds_rows(open_table(table_uri)))
    rows_of, model = _selected_rows(config)
    check = check_table(
        table_uri,
        None if source is None else without_table_files(source, table_uri).listing(),
        rows_of=rows_of,
        sample=config.sample if model else 0,
        seed=config.seed,
        may_lack_rows=was_labelled,
        report=report,
    )
    compared = predict_again(check.sample, model, check.findings, report) if model else 0
    return Verification(
        table=table_uri,
        version=check.version,
        files=check.num_files,
        rows=check.num_rows,
        model_id=None if check.key is None else check.key.model_id,
        config_hash=None if check.key is None else check.key.config_hash,
        listed=check.num_listed,
        sampled=len(check.sample),
        compared=compared,
        faults=check.findings.faults,
        pending=check.findings.pending,
        notes=check.findings.notes,
        wall_s=clock.wall_s,
    )


def _selected_rows(config: VerifyConfig) -> tuple[KeySelector | None, ModelSpec | None]:
    """The rows that `--model` selects, and how to predict them again where it is an artifact."""
    if config.model is None:
        return None, None
    selector = KeySelector.parse(config.model)
    if selector is not None:
        return selector, None
    # One image per batch: this shows if results depend on the batch.
    result_options = config.model_dump(include=set(ResultOptions.model_fields), by_alias=True)
    model = ModelSpec.read(config.model, InferenceOptions(**result_options, batch_size=1))
    return KeySelector.of(model.key), model
