"""A labelling run, from configuration to summary."""

import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime

from locray import schema, storage
from locray.config import LabelConfig
from locray.errors import StoreError
from locray.inference.packages import log_packages
from locray.labelling.abort_policy import AbortPolicy, CanaryImages, why_none_is_labelled
from locray.labelling.committer import Committer
from locray.labelling.image_source import open_image_source
from locray.labelling.model import ModelSpec
from locray.labelling.outcomes import create_deferred_list, write_deferred_list
from locray.labelling.pipeline import Pipeline
from locray.labelling.summary import LabelSummary
from locray.labelling.worklist import PendingImages, Worklist, unit_size_for
from locray.progress import Clock, Progress, Report
from locray.signals import stop_requests
from locray.sources import Source
from locray.table.writer import TableWriter


def label(
    config: LabelConfig,
    report: Report,
    on_error: Callable[[LabelSummary], None] = lambda _: None,
    source: Source | None = None,
) -> LabelSummary:
    """Labels each image of the source that has no row in the table. Every image gets exactly one row.

    Ends early, with everything that is done committed, on SIGTERM, Ctrl-C, and when no further image could be labelled.

    Args:
        config: What to label, with which model, into which table.
        report: Progress callback.
        on_error: Called with the summary so far, before an error that stops the run is raised.
        source: The opened `config.images`. Default: opens it.

    Raises:
        UsageError: the source, the model or the table is not as expected; nothing was written.
        FencedError: another run took over the table; commits before that stay.
    """
    clock = Clock()
    report(Progress("checking"))
    table_uri = storage.normalise(config.table)
    source = open_image_source(config, table_uri, source)
    model = ModelSpec.read(config.model, config)
    log_packages(model.packages, model.key.model_id)
    if config.deferred_list is not None:
        create_deferred_list(config.deferred_list, source, table_uri)

    pipeline = Pipeline(model)
    pipeline.check(source)

    report(Progress("listing"))
    writer = TableWriter.claim(table_uri, model.key.model_id, replaces=bool(config.retry_failed))
    writer.clean_up()
    run_id = _new_run_id()
    with PendingImages.find(
        source, writer.table, table_uri, model.key, retry=config.retry_failed, report=report
    ) as pending:
        counts = pending.counts()
        if counts.pending:
            pipeline.start()
        planned = min(counts.pending, config.limit or counts.pending)
        unit_size = unit_size_for(planned, config.unit_size)
        worklist = pending.write(storage.join(writer.work_uri, run_id), unit_size, config.limit)
    with writer.raise_if_fenced():
        canaries = CanaryImages.fetch(worklist, config.max_bytes)

    committer = Committer(
        writer,
        worklist.num_images,
        stamp={schema.CONFIG_HASH: model.key.config_hash, schema.RUN_ID: run_id},
        run_date=config.run_date,
        commit_rows=config.commit_rows,
        replace=bool(config.retry_failed),
        has_previous_rows=counts.already_labelled > 0,
        check_store=canaries.failure,
    )
    summary = LabelSummary.started(run_id, model.key, table_uri, counts, worklist.num_images)
    try:
        if worklist.num_images:
            summary.deferred_reason = _label_worklist(worklist, pipeline, committer, config, clock, report)
        if worklist.num_images and config.deferred_list is not None:
            write_deferred_list(config.deferred_list, worklist, committer.outcomes, run_id)
    except BaseException as error:
        summary.deferred_reason = f"the run was stopped by an error: {type(error).__name__}"
        on_error(summary.completed(committer, clock))
        raise
    summary.deferred_list = config.deferred_list and storage.normalise(config.deferred_list)
    with suppress(StoreError):  # the next run of the model deletes it
        storage.delete_folder(worklist.uri)
    return summary.completed(committer, clock)


def _new_run_id() -> str:
    """Sorts by time, to the millisecond: a run without new images takes less than a second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + f"-{uuid.uuid4().hex[:8]}"


def _label_worklist(
    worklist: Worklist, pipeline: Pipeline, committer: Committer, config: LabelConfig, clock: Clock, report: Report
) -> str | None:
    """Commits the rows of the pipeline, also those that came before an error.

    Returns why images were deferred, if there is one reason for all.
    """
    report(Progress("starting", planned=worklist.num_images))
    policy, abort_reason = AbortPolicy(), None
    with stop_requests() as stop, closing(pipeline.rows(worklist)) as units:
        try:
            with committer.writer.raise_if_fenced(), committer.commit_every(config.commit_interval_s):
                for rows in stop.until_requested(units):
                    committer.add(rows)
                    clock.tick(committer.done)
                    facts = {"failed": committer.failed, **clock.speed()}
                    report(Progress("labelling", committer.done, worklist.num_images, facts))
                    abort_reason = policy.abort_reason(committer, time.monotonic())
                    if abort_reason is not None:
                        break
        finally:
            committer.close()
    if stop.signal_name is not None:
        return f"the run was asked to stop ({stop.signal_name})"
    return abort_reason or (why_none_is_labelled(committer) if committer.deferred and not committer.ok else None)
