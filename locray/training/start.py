"""The network that a run starts from: new, or with the weights of torchvision or of an artifact. Called by `run`."""

import torch

from locray import storage
from locray.config import TrainConfig
from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.backbones import pretrained_stages
from locray.models.interface import LabelModel
from locray.models.transfer import transfer_weights
from locray.models.weights import is_artifact
from locray.progress import Progress, Report, ignore
from locray.training.plan import TrainPlan


def initial_model(config: TrainConfig, plan: TrainPlan, report: Report = ignore) -> LabelModel:
    """The network before its first step, on the CPU. `report` is told how much of it an artifact has given.

    Raises:
        UsageError: the architecture or the weights are not what they should be, or there is nothing to freeze.
        StoreError: the weights can't be read.
    """
    torch.manual_seed(config.seed)
    from_artifact = config.weights is not None and is_artifact(config.weights)
    weights = None if from_artifact else config.weights
    model = build_model(plan.architecture, len(plan.classes), plan.input_size_px, weights)
    if from_artifact:
        uri = storage.normalise(str(config.weights))
        report(Progress(transfer_weights(model, plan.architecture, plan.classes, uri)))
    if config.freeze_epochs and not pretrained_stages(model):  # type: ignore[arg-type]
        raise UsageError(
            f"--freeze-epochs keeps the backbone as it is, and {plan.architecture} has none: all of it learns from the "
            "first step. Leave the option out, or choose localizer/<backbone> or detector/<name>"
        )
    return model
