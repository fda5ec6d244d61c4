"""Summary of a labelling run."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from locray.errors import DeferralCause, ExitCode
from locray.labelling.committer import FEW_FAILURES, Committer
from locray.labelling.worklist import Counts
from locray.progress import Clock
from locray.table.key import PredictionKey


@dataclass
class LabelSummary:
    """Result of a run, as `--json` prints it. Every planned image is `ok`, `failed` or `deferred`."""

    run_id: str
    model_id: str
    table: str
    listed: int
    already_labelled: int
    planned: int
    ok: int = 0
    failed: int = 0
    deferred: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    deferred_causes: dict[str, int] = field(default_factory=dict)
    """Number of deferred images by `DeferralCause`, or by the `ErrorCode` of a failure not blamed on them."""
    deferred_examples: dict[str, str] = field(default_factory=dict)
    """Reasons by URI, for some of the images that were tried."""
    deferred_list: str | None = None
    """File with all of them (`DEFERRED_SCHEMA`), if requested and no error stopped the run."""
    wall_s: float = 0.0
    startup_s: float = 0.0
    images_per_s: float = 0.0
    images_per_s_steady: float | None = None
    commits: int = 0
    deferred_reason: str | None = None
    """Why images were deferred, if there is one reason for all."""
    config_hash: str = ""
    transaction: int = 0
    """Transaction number of the last commit; see `TableWriter.resume`."""

    @classmethod
    def started(cls, run_id: str, key: PredictionKey, table_uri: str, counts: Counts, planned: int) -> "LabelSummary":
        """Summary of a run that has labelled nothing yet."""
        return cls(
            run_id=run_id,
            model_id=key.model_id,
            config_hash=key.config_hash,
            table=table_uri,
            listed=counts.listed,
            already_labelled=counts.already_labelled,
            planned=planned,
        )

    def completed(self, committer: Committer, clock: Clock) -> "LabelSummary":
        """A copy with the outcomes of the images. Those that are not done are deferred."""
        num_not_tried = self.planned - committer.done
        causes = committer.deferred_causes + Counter({str(DeferralCause.NOT_TRIED): num_not_tried})
        return replace(
            self,
            ok=committer.ok,
            failed=committer.failed,
            deferred=committer.deferred + num_not_tried,
            errors=dict(committer.errors),
            deferred_causes=dict(causes),
            deferred_examples=committer.deferred_examples,
            wall_s=clock.wall_s,
            startup_s=clock.startup_s,
            images_per_s=committer.done / clock.wall_s,
            images_per_s_steady=clock.images_per_s_steady,
            commits=committer.commits,
            transaction=committer.writer.transaction,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def failure_rate(self) -> float:
        """Share of failed images among those that have a row."""
        return self.failed / max(1, self.ok + self.failed)

    def exit_code(self, max_failure_rate: float) -> ExitCode:
        """Exit code of the command. A failure rate over the limit outweighs deferred images.

        A few failures are ignored except in a table's first run: the only new image of a night may be a broken one.
        """
        counts_failures = self.failed >= FEW_FAILURES or not self.already_labelled
        if counts_failures and self.failure_rate() > max_failure_rate:
            return ExitCode.FAILURE_RATE
        return ExitCode.DEFERRED if self.deferred else ExitCode.DONE
