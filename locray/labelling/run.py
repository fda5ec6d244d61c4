"""A labelling run, from configuration to summary: the whole story in one function. Called by the command line."""

import uuid
from datetime import UTC, datetime

from locray import schema, storage
from locray.config import LabelConfig
from locray.errors import StoreError
from locray.labelling.committer import Committer
from locray.labelling.identity import Identity
from locray.labelling.pipeline import Pipeline
from locray.labelling.stopping import stop_requests
from locray.labelling.summary import Clock, LabelSummary
from locray.labelling.table import TableWriter, check_apart, holds_rows, open_table
from locray.labelling.worklist import Difference, Worklist
from locray.progress import Progress, Report
from locray.sources import Source, open_source

PROBATION_IMAGES = 200
"""Images to try before a run is given up because not one of them can be labelled."""


def label(config: LabelConfig, report: Report, source: Source | None = None) -> LabelSummary:
    """Labels every image of the source that the table doesn't hold yet; each image gets exactly one row.

    Args:
        config: the run's.
        report: is told how far the run is.
        source: what `config.images` names, where it is open already.

    Raises:
        UsageError: the source, the model or the table is not what it should be; nothing was written.
        FencedError: another run took over; what was committed stays.
    """
    clock = Clock()
    report(Progress("checking"))
    source = source or open_source(config.images, config.uri_column)
    table_uri = storage.normalise(config.table)
    check_apart(source, table_uri)
    source.check(may_be_empty=holds_rows(open_table(table_uri)))
    identity = Identity.of(config.model, config)

    report(Progress("listing"))
    writer = TableWriter.claim(table_uri, identity.model_id)
    writer.clean_up()
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    with Difference.open(
        source, writer.table, identity.model_id, identity.config_hash, redo_failed=config.retry_failed, report=report
    ) as difference:
        counts = difference.counts()
        worklist = difference.write(storage.join(writer.scratch_uri, run_id), config.unit_size, config.limit)

    committer = Committer(
        writer,
        worklist.num_images,
        stamp={schema.CONFIG_HASH: identity.config_hash, schema.RUN_ID: run_id},
        run_date=config.run_date,
        commit_rows=config.commit_rows,
        commit_interval_s=config.commit_interval_s,
        replace=config.retry_failed,
    )
    ended: str | None = None
    if worklist.num_images:
        report(Progress("starting", planned=worklist.num_images))
        pipeline = Pipeline(identity.decode, identity.predict, config.predictors, config.verbose)
        try:
            ended = _label_worklist(worklist, pipeline, committer, clock, report)
        except StoreError:
            writer.check_claim()  # the run that took over has deleted this one's worklist
            raise
    untried = worklist.num_images - committer.answered
    storage.delete_folder(worklist.uri)
    return LabelSummary(
        run_id=run_id,
        model_id=identity.model_id,
        table=table_uri,
        listed=counts.listed,
        already_labelled=counts.already_labelled,
        planned=worklist.num_images,
        ok=committer.ok,
        failed=committer.failed,
        deferred=committer.deferred + untried,
        errors=dict(committer.errors),
        wall_s=clock.wall_s,
        startup_s=clock.startup_s,
        images_per_s=committer.answered / clock.wall_s,
        images_per_s_steady=clock.images_per_s_steady,
        commits=committer.commits,
        deferred_reason=ended or committer.deferred_reason,
        config_hash=identity.config_hash,
        transaction=writer.number,
    )


def _given_up(committer: Committer) -> str:
    reason = f" ({committer.deferred_reason})" if committer.deferred_reason else ""
    return f"the run was given up, since none of the first {committer.answered:,} images could be labelled{reason}"


def _label_worklist(
    worklist: Worklist, pipeline: Pipeline, committer: Committer, clock: Clock, report: Report
) -> str | None:
    """Runs the stages and commits what they give, also what came before an error.

    Returns:
        Why it ended before its time, or None.
    """
    with stop_requests() as stop:
        try:
            for rows in stop.until_asked(pipeline.rows(worklist)):
                committer.add(rows)
                clock.tick(committer.answered)
                facts = {"failed": committer.failed, **clock.speed()}
                report(Progress("labelling", committer.answered, worklist.num_images, facts))
                if committer.ok == 0 and PROBATION_IMAGES <= committer.answered < worklist.num_images:
                    return _given_up(committer)
        finally:
            committer.flush()
    return f"the run was asked to stop ({stop.asked_by})" if stop.asked_by else None
