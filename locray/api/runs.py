"""The commands as functions: keyword arguments are the options, the result is the command's summary.

Each takes either options or a configuration object, and `progress`, a callback that gets a `Progress` from time to
time. Options are named as on the command line, with underscores; paths may be `pathlib.Path`.

Ray is started at the first call that needs it, or connected to where RAY_ADDRESS names a cluster, and is left running
for the next call.
"""

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from locray import storage
from locray.config import (
    CommandConfig,
    EvaluateConfig,
    LabelConfig,
    NightlyConfig,
    PlanConfig,
    TrainConfig,
    VerifyConfig,
    load_config,
)
from locray.errors import LocrayError, UsageError
from locray.progress import Report, ignore

if TYPE_CHECKING:
    from locray.evaluation.summary import EvaluationSummary
    from locray.labelling.plan import LabelPlan
    from locray.labelling.summary import LabelSummary
    from locray.nightly.run import NightlyRun
    from locray.training.run import TrainSummary
    from locray.verification.run import Verification

Config = TypeVar("Config", bound=CommandConfig)
Function = TypeVar("Function", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


def _with_options_of(config_class: type[CommandConfig]) -> Callable[[Function], Function]:
    """Gives a function the signature that `help` and editors show: the options, instead of `**options`."""

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        parameters = [own.parameters["config"], own.parameters["progress"]]
        parameters += inspect.signature(config_class).parameters.values()
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def options_as_config(config_class: type[Config], options: Mapping[str, Any]) -> Config:
    """Validates options given as keyword arguments.

    Raises:
        UsageError: an option is unknown, missing, or out of range.
    """
    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    return load_config(config_class, flags=values)


def _config(config_class: type[Config], config: Config | None, options: Mapping[str, Any]) -> Config:
    if config is None:
        return options_as_config(config_class, options)
    if options:
        raise UsageError(f"found a configuration and {', '.join(options)}: expected either a configuration or options")
    return config


@_with_options_of(TrainConfig)
def train(config: TrainConfig | None = None, *, progress: Report | None = None, **options: Any) -> "TrainSummary":
    """Trains a model, and writes its artifact and a page about it to the output, like `locray train`.

    Raises:
        UsageError: the options, the data or the weights can't be used, or the training diverged.
        WorkersFailedError: training processes failed more often than `max_failures` tolerates.
        RunStoppedError: a signal stopped the training; it is saved, and the same call resumes it.
        StoreError: data can't be read, or the output can't be written.
    """
    from locray.training.run import train as run

    config, report = _config(TrainConfig, config, options), progress or ignore
    summary = run(config, report)
    return replace(summary, page=_training_page(config, summary, report))


def _training_page(config: TrainConfig, summary: "TrainSummary", report: Report) -> str | None:
    """Writes the page of a training unless an earlier run has. The model does not depend on it."""
    from locray.report.training import page_uri, write_training_page

    uri = page_uri(config)
    counts = {name: f"{getattr(summary, name):,}" for name in ("epochs", "best_epoch", "train_images", "val_images")}
    speeds = {name: f"{getattr(summary, name):,.1f}" for name in ("images_per_s", "wall_s")}
    facts = {name.replace("_", " "): value for name, value in (counts | speeds).items()}
    try:
        if not (summary.already_trained and storage.exists(uri)):
            write_training_page(config, summary.model_id, facts, summary.best_epoch, report)
    except LocrayError as error:
        _log.warning("The model is saved, but its page could not be made: %s", error)
        return None
    return uri


@_with_options_of(EvaluateConfig)
def evaluate(
    config: EvaluateConfig | None = None, *, progress: Report | None = None, **options: Any
) -> "EvaluationSummary":
    """Measures a model, or the rows of a predictions table, on annotated images, like `locray evaluate`.

    Raises:
        UsageError: the data set, the split, the model, the table or an output can't be used.
        StoreError: an image could not be labelled.
    """
    from locray.evaluation.run import evaluate as run

    config = _config(EvaluateConfig, config, options)
    evaluation = run(config, progress or ignore)
    if config.page is not None:
        from locray.images.decode import DecodeLimits
        from locray.report.evaluation import write_evaluation_page

        write_evaluation_page(config.page, evaluation, DecodeLimits.of(config))
    return evaluation.summary


@_with_options_of(LabelConfig)
def label(config: LabelConfig | None = None, *, progress: Report | None = None, **options: Any) -> "LabelSummary":
    """Labels every image that the table doesn't hold yet, like `locray label`.

    A failure rate over the limit and deferred images are no exception: ask `LabelSummary.exit_code`.

    Raises:
        UsageError: the images, the model or the table can't be used; nothing was written.
        FencedError: another run took over the table; what was committed stays.
        WorkersFailedError: every process that loads the model dies.
        StoreError: the store failed, and retries are exhausted; what was committed stays.
    """
    from locray.labelling.run import label as run

    return run(_config(LabelConfig, config, options), progress or ignore)


@_with_options_of(PlanConfig)
def plan(config: PlanConfig | None = None, *, progress: Report | None = None, **options: Any) -> "LabelPlan":
    """Estimates what `label` would do with the same options, like `locray plan`. Writes nothing.

    Raises:
        UsageError: the images, the model or the table can't be used.
    """
    from locray.labelling.plan import plan as run

    return run(_config(PlanConfig, config, options), progress or ignore)


@_with_options_of(NightlyConfig)
def nightly(config: NightlyConfig | None = None, *, progress: Report | None = None, **options: Any) -> "NightlyRun":
    """Labels new images, verifies and maintains the table, and writes a record and a page, like `locray nightly`.

    A step that fails after the labelling is no exception: see `NightlyRun.failed` and `NightlyRun.exit_code`.

    Raises:
        UsageError: the images, the model or the table can't be used; nothing was written.
        FencedError: another run took over the table while this one labelled; what was committed stays.
        StoreError: the store failed while this run labelled.
    """
    from locray.nightly.run import nightly as run
    from locray.report.nightly import write_nightly_page

    night = run(_config(NightlyConfig, config, options), progress or ignore)
    night.attempt("page", lambda: write_nightly_page(night))
    return night


@_with_options_of(VerifyConfig)
def verify(config: VerifyConfig | None = None, *, progress: Report | None = None, **options: Any) -> "Verification":
    """Checks that a predictions table is complete and consistent, like `locray verify`. Writes nothing to it.

    Findings raise no exception: see `Verification.faults` and `Verification.exit_code`.

    Raises:
        UsageError: there is no table, or the images or the model can't be used.
        StoreError: the store failed, and retries are exhausted.
    """
    from locray.verification.run import verify as run

    return run(_config(VerifyConfig, config, options), progress or ignore)
