"""A training, from configuration to artifact. Called by the command line and by `demo`."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from locray import __version__, storage
from locray.config import TrainConfig
from locray.datasets.records import SkipReason
from locray.errors import UsageError
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactDescription, ArtifactInfo, has_artifact, read_artifact_info
from locray.progress import Progress, Report
from locray.training.history import read_history, settle_history
from locray.training.loop import Fitted, fit
from locray.training.metrics import BEST_CUT, METRICS
from locray.training.plan import TrainPlan, make_plan
from locray.training.start import initial_model

_RUN_NAME, _IDENTITY, _BEST_EPOCH = "run_name", "run_identity", "best_epoch"


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training came to, as `--json` prints it. Metrics are those of the best epoch on the validation split."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def train(config: TrainConfig, report: Report) -> TrainSummary:
    """Trains a model and writes it, as an artifact, to the output. The same command again goes on where it stopped.

    Raises:
        UsageError: the options, the data or the weights are not what they should be, or the training diverged.
        StoreError: data can't be read, or the output can't be written.
    """
    started = time.monotonic()
    report(Progress("checking"))
    plan = make_plan(config)
    finished = _finished(config, plan)
    if finished is not None:
        return _summary(plan, finished, already_trained=True, unusable={}, started=started)
    model = initial_model(config, plan, report)
    _claim_run_name(plan)
    fitted = fit(plan, model, report)
    report(Progress("saving"))
    settle_history(plan.output_uri, fitted.history)
    model.load_state_dict(fitted.weights)  # type: ignore[attr-defined]
    saved = save_artifact(plan.output_uri, model, _info(config, plan, fitted))
    return _summary(plan, saved, already_trained=False, unusable=fitted.unusable, started=started)


def _finished(config: TrainConfig, plan: TrainPlan) -> ArtifactDescription | None:
    """The artifact in the output, where this very run has written it."""
    if not has_artifact(plan.output_uri):
        return None
    found = read_artifact_info(plan.output_uri)
    provenance = found.info.provenance
    same = provenance.get(_RUN_NAME) == plan.run_name and provenance.get(_IDENTITY) == plan.identity
    # Another threshold needs another description, but no other weights.
    fits = config.score_threshold in (None, found.info.score_threshold)
    return found if same and fits else None


def _claim_run_name(plan: TrainPlan) -> None:
    """Makes sure that a run is only taken up with what it began with, and that the output can be written."""
    uri = storage.join(plan.checkpoints_uri, f"{plan.run_name}.json")
    if storage.exists(uri):
        if json.loads(storage.read_bytes(uri))[_IDENTITY] != plan.identity:
            raise UsageError(
                f"a run named {plan.run_name!r} with other options or other data was begun in {plan.output_uri}, "
                "so its checkpoints don't fit. Choose another --run-name, or leave it out"
            )
        return
    storage.write_bytes(uri, json.dumps({_IDENTITY: plan.identity}).encode())


def _info(config: TrainConfig, plan: TrainPlan, fitted: Fitted) -> ArtifactInfo:
    import torch

    threshold = config.score_threshold
    if threshold is None:
        # A detector finds something weak in every corner; a localizer's one object is never too weak to be told.
        threshold = fitted.best.get(BEST_CUT, 0.0)
    return ArtifactInfo(
        architecture=plan.architecture,
        classes=list(plan.classes),
        input_size=plan.input_size_px,
        score_threshold=threshold,
        provenance={
            _RUN_NAME: plan.run_name,
            _IDENTITY: plan.identity,
            _BEST_EPOCH: int(fitted.best["epoch"]),
            "epochs": plan.epochs,
            "data": config.data,
            "train_split": config.train_split,
            "train_images": len(plan.train.packed),
            "val_images": len(plan.val.packed),
            "weights": config.weights,
            "seed": config.seed,
            "locray": __version__,
            "torch": str(torch.__version__),
        },
        metrics={name: round(fitted.best[name], 6) for name in METRICS if name in fitted.best},
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
