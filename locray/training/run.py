"""A training, from configuration to artifact."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from locray import __version__, storage
from locray.config import TrainConfig
from locray.datasets import list_splits
from locray.datasets.records import SkipReason
from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.backbones import pretrained_stages
from locray.models.files import ArtifactDescription, ArtifactInfo
from locray.models.interface import LabelModel
from locray.models.transfer import transfer_weights
from locray.models.weights import is_artifact
from locray.progress import Progress, Report, ignore
from locray.ray_runtime.node_check import check_nodes
from locray.training.history import read_history, repair_history
from locray.training.loop import TrainedWeights, fit
from locray.training.metrics import BEST_SCORE_THRESHOLD, METRICS
from locray.training.output import IDENTITY, RUN_NAME, claim_output, finished_artifact, settings_of
from locray.training.plan import TrainPlan, make_plan

_BEST_EPOCH = "best_epoch"


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """Result of a training, as `--json` prints it. Metrics are those of the best epoch on the validation split."""

    model_id: str
    model: str
    run_name: str
    already_trained: bool
    epochs: int
    best_epoch: int
    metrics: dict[str, float]
    train_images: int
    val_images: int
    errors: dict[str, int]
    skipped: dict[str, int]
    images_per_s: float
    wall_s: float
    page: str | None = None
    """HTML page of curves and metrics; None where it was not made."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def train(config: TrainConfig, report: Report) -> TrainSummary:
    """Trains a model and writes its artifact to the output. The same command again resumes where it stopped.

    Raises:
        UsageError: options, data or weights are invalid, or the training diverged.
        StoreError: data can't be read, or the output can't be written.
        RunStoppedError: the run was asked to stop (SIGTERM, Ctrl-C); it is saved.
        WorkersFailedError: workers failed more often than `--max-failures` tolerates.
    """
    started = time.monotonic()
    report(Progress("checking"))
    plan = make_plan(config)
    finished = finished_artifact(plan)
    if finished is not None:
        return _summary(plan, finished, already_trained=True, unusable={}, started=started)
    check_nodes(partial(list_splits, storage.normalise(config.data), config.format), verbose=config.verbose)
    model = initial_model(plan, report)
    claim_output(plan)
    trained = fit(plan, model, report)
    report(Progress("saving"))
    repair_history(plan.output_uri, trained.history)
    model.load_state_dict(trained.weights)  # type: ignore[attr-defined]
    saved = save_artifact(plan.output_uri, model, _info(plan, trained))
    return _summary(plan, saved, already_trained=False, unusable=trained.unusable, started=started)


def initial_model(plan: TrainPlan, report: Report = ignore) -> LabelModel:
    """The network before its first step, on the CPU: new, or with the weights of torchvision or of an artifact.

    Args:
        plan: The run.
        report: Progress callback; reports how much of an artifact was used.

    Raises:
        UsageError: unknown architecture, unusable weights, or there is nothing to freeze.
        StoreError: the weights can't be read.
    """
    import torch

    config = plan.config
    torch.manual_seed(config.seed)
    from_artifact = config.weights is not None and is_artifact(config.weights)
    weights = None if from_artifact else config.weights
    model = build_model(config.model, len(plan.classes), plan.input_size_px, weights)
    if from_artifact:
        uri = storage.normalise(str(config.weights))
        report(Progress(transfer_weights(model, config.model, plan.classes, uri)))
    if config.freeze_epochs and not pretrained_stages(model):  # type: ignore[arg-type]
        raise UsageError(
            f"--freeze-epochs freezes the backbone, and {config.model} has none. Leave the option out, or choose "
            "localizer/<backbone> or detector/<name>"
        )
    return model


def _info(plan: TrainPlan, trained: TrainedWeights) -> ArtifactInfo:
    import torch

    config = plan.config
    threshold = config.score_threshold
    if threshold is None:
        # A detector has weak detections everywhere; a localizer has one per image, which is always kept.
        threshold = trained.best.get(BEST_SCORE_THRESHOLD, 0.0)
    return ArtifactInfo(
        architecture=config.model,
        classes=list(plan.classes),
        input_size=plan.input_size_px,
        score_threshold=threshold,
        provenance={
            **{name: _plain(value) for name, value in settings_of(config).items()},
            RUN_NAME: plan.run_name,
            IDENTITY: plan.identity,
            _BEST_EPOCH: int(trained.best["epoch"]),
            "train_images": len(plan.train.packed),
            "val_images": len(plan.val.packed),
            "locray": __version__,
            "torch": str(torch.__version__),
        },
        metrics={name: round(trained.best[name], 6) for name in METRICS if name in trained.best},
    )


def _plain(value: object) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def _summary(
    plan: TrainPlan, artifact: ArtifactDescription, *, already_trained: bool, unusable: dict[str, int], started: float
) -> TrainSummary:
    history = read_history(plan.output_uri)
    speeds = [epoch["images_per_s"] for epoch in history]
    skipped, errors = Counter(plan.skipped), dict(unusable)
    skipped.update({reason: errors.pop(reason) for reason in map(str, SkipReason) if reason in errors})
    return TrainSummary(
        model_id=artifact.model_id,
        model=plan.output_uri,
        run_name=plan.run_name,
        already_trained=already_trained,
        epochs=len(history),
        best_epoch=int(artifact.info.provenance[_BEST_EPOCH] or 0),
        metrics=dict(artifact.info.metrics),
        train_images=len(plan.train.packed),
        val_images=len(plan.val.packed),
        errors=errors,
        skipped=dict(skipped),
        images_per_s=sum(speeds) / len(speeds) if speeds else 0.0,
        wall_s=time.monotonic() - started,
    )
