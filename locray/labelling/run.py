"""A labelling run, from configuration to summary: the whole story in one function. Called by the command line."""

import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime

from locray import schema, storage
from locray.config import LabelConfig
from locray.errors import DeferralCause, StoreError
from locray.inference.packages import log_packages
from locray.labelling.abort_policy import AbortPolicy, why_none
from locray.labelling.canary import CanaryImages
from locray.labelling.committer import Committer
from locray.labelling.deferred_list import begin_deferred, write_deferred
from locray.labelling.identity import Identity
from locray.labelling.image_source import check_apart, without_table_files
from locray.labelling.pipeline import Pipeline
from locray.labelling.stopping import stop_requests
from locray.labelling.summary import Clock, LabelSummary
from locray.labelling.worklist import Difference, Worklist
from locray.progress import Progress, Report
from locray.sources import Source, open_source
from locray.table.open import holds_rows, open_table
from locray.table.writer import TableWriter


def label(
    config: LabelConfig,
    report: Report,
    on_error: Callable[[LabelSummary], None] = lambda _: None,
    source: Source | None = None,
) -> LabelSummary:
    """Labels every image of the source that the table doesn't hold yet; each image gets exactly one row.

    SIGTERM, Ctrl-C and a cause that no further image changes end it early: what is done is committed.

    Args:
        config: What to label, with what, into which table.
        report: Is told how far the run is.
        on_error: Is told how far the run came, before an error that stopped it is raised.
        source: What `config.images` names, where it is open already.

    Raises:
        UsageError: the source, the model or the table is not what it should be; nothing was written.
        FencedError: another run took over; what was committed stays.
    """
    clock = Clock()
    report(Progress("checking"))
    table_uri = storage.normalise(config.table)
    source = without_table_files(source or open_source(config.images, config.uri_column), table_uri)
    check_apart(source, table_uri)
    source.check(may_be_empty=holds_rows(open_table(table_uri)))
    identity = Identity.of(config.model, config)
    log_packages(identity.predict.packages, identity.model_id)
    if config.deferred_list is not None:
        begin_deferred(config.deferred_list, source, table_uri)

    report(Progress("listing"))
    pipeline = Pipeline(identity.decode, identity.predict, config.predictors, config.verbose)
    writer = TableWriter.claim(table_uri, identity.model_id)
    writer.clean_up()
    # By their ids runs are put in order; to the millisecond, as a night with nothing to do takes less than a second.
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + f"-{uuid.uuid4().hex[:8]}"
    with Difference.open(
        source, writer.table, identity.model_id, identity.config_hash, retry=config.retry_failed, report=report
    ) as difference:
        counts = difference.counts()
        if counts.to_do:
            pipeline.start()
        worklist = difference.write(storage.join(writer.work_uri, run_id), config.unit_size, config.limit)

    with writer.raise_if_fenced():
        control = CanaryImages.of(worklist, config.max_bytes)
    committer = Committer(
        writer,
        worklist.num_images,
        stamp={schema.CONFIG_HASH: identity.config_hash, schema.RUN_ID: run_id},
        run_date=config.run_date,
        commit_rows=config.commit_rows,
        replace=bool(config.retry_failed),
        has_previous_rows=counts.already_labelled > 0,
        check_store=control.lost,
    )
    summary = LabelSummary(
        run_id=run_id,
        model_id=identity.model_id,
        config_hash=identity.config_hash,
        table=table_uri,
        listed=counts.listed,
        already_labelled=counts.already_labelled,
        planned=worklist.num_images,
    )
    if worklist.num_images:
        report(Progress("starting", planned=worklist.num_images))
        try:
            summary.deferred_reason = _label_worklist(
                worklist, pipeline, committer, config.commit_interval_s, clock, report
            )
            if config.deferred_list is not None:
                write_deferred(config.deferred_list, worklist, committer.outcomes, run_id)
        except BaseException as error:
            summary.deferred_reason = f"the run was stopped by an error: {type(error).__name__}"
            on_error(_completed(summary, committer, clock))
            raise
    summary.deferred_list = config.deferred_list and storage.normalise(config.deferred_list)
    with suppress(StoreError):  # all is committed; the next run of the model deletes what is left
        storage.delete_folder(worklist.uri)
    return _completed(summary, committer, clock)


def _label_worklist(
    worklist: Worklist,
    pipeline: Pipeline,
    committer: Committer,
    commit_interval_s: float,
    clock: Clock,
    report: Report,
) -> str | None:
    """Runs the stages and commits what they give, also what came before an error.

    Returns why images were deferred, where there is one reason for it.
    """
    judge, abort_reason = AbortPolicy(), None
    with stop_requests() as stop, closing(pipeline.rows(worklist)) as units:
        try:
            with committer.writer.raise_if_fenced(), committer.also_every(commit_interval_s):
                for rows in stop.until_asked(units):
                    committer.add(rows)
                    clock.tick(committer.answered)
                    facts = {"failed": committer.failed, **clock.speed()}
                    report(Progress("labelling", committer.answered, worklist.num_images, facts))
                    abort_reason = judge.abort_reason(committer, time.monotonic())
                    if abort_reason is not None:
                        break
        finally:
            committer.close()
    if stop.asked_by is not None:
        return f"the run was asked to stop ({stop.asked_by})"
    return abort_reason or (why_none(committer) if committer.deferred and not committer.ok else None)


def _completed(summary: LabelSummary, committer: Committer, clock: Clock) -> LabelSummary:
    """The summary with what came of the images. Those that nothing came of are deferred."""
    untried = summary.planned - committer.answered
    causes = committer.deferred_causes + Counter({str(DeferralCause.NOT_TRIED): untried})
    return replace(
        summary,
        ok=committer.ok,
        failed=committer.failed,
        deferred=committer.deferred + untried,
        errors=dict(committer.errors),
        deferred_causes=dict(causes),
        deferred_examples=committer.deferred_examples,
        wall_s=clock.wall_s,
        startup_s=clock.startup_s,
        images_per_s=committer.answered / clock.wall_s,
        images_per_s_steady=clock.images_per_s_steady,
        commits=committer.commits,
        transaction=committer.writer.transaction,
    )
