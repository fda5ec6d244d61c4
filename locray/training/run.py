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
from locray.models.files import ArtifactDescription, ArtifactInfo, has_artifact, read_artifact_info
from locray.models.interface import LabelModel
from locray.models.transfer import transfer_weights
from locray.models.weights import is_artifact
from locray.progress import Progress, Report, ignore
from locray.ray_runtime.node_check import check_nodes
from locray.training.history import read_history, repair_history
from locray.training.loop import TrainedWeights, fit
from locray.training.metrics import BEST_SCORE_THRESHOLD, METRICS
from locray.training.plan import TrainPlan, make_plan

_RUN_NAME, _IDENTITY, _BEST_EPOCH = "run_name", "run_identity", "best_epoch"


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
    finished = _finished_artifact(plan)
    if finished is not None:
        return _summary(plan, finished, already_trained=True, unusable={}, started=started)
    check_nodes(partial(list_splits, storage.normalise(config.data), config.format), verbose=config.verbose)
    model = initial_model(plan, report)
    _claim_run_name(plan)
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


def _finished_artifact(plan: TrainPlan) -> ArtifactDescription | None:
    """The artifact in the output, if this run has written it."""
    if not has_artifact(plan.output_uri):
        return None
    found = read_artifact_info(plan.output_uri)
    provenance = found.info.provenance
    same_run = provenance.get(_RUN_NAME) == plan.run_name and provenance.get(_IDENTITY) == plan.identity
    # Another threshold changes the description, but not the weights.
    same_threshold = plan.config.score_threshold in (None, found.info.score_threshold)
    return found if same_run and same_threshold else None


def _claim_run_name(plan: TrainPlan) -> None:
    """Checks that a run of this name had the same options and data, and that the output can be written."""
    uri = storage.join(plan.checkpoints_uri, f"{plan.run_name}.json")
    if storage.exists(uri):
        if json.loads(storage.read_bytes(uri))[_IDENTITY] != plan.identity:
            raise UsageError(
                f"{plan.output_uri} holds checkpoints of a run named {plan.run_name!r} with other options or other "
                "data. Choose another --run-name, or leave it out"
            )
        return
    storage.write_bytes(uri, json.dumps({_IDENTITY: plan.identity}).encode())


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
            _RUN_NAME: plan.run_name,
            _IDENTITY: plan.identity,
            _BEST_EPOCH: int(trained.best["epoch"]),
            "epochs": config.epochs,
            "data": config.data,
            "train_split": config.train_split,
            "train_images": len(plan.train.packed),
            "val_images": len(plan.val.packed),
            "weights": config.weights,
            "seed": config.seed,
            "locray": __version__,
            "torch": str(torch.__version__),
        },
        metrics={name: round(trained.best[name], 6) for name in METRICS if name in trained.best},
    )


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
