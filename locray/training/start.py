"""The network that a run starts from: new, or with the weights of torchvision or of an artifact. Called by `run`."""

from locray import storage
from locray.config import TrainConfig
from locray.errors import UsageError
from locray.models.contract import LabelModel
from locray.models.pretrained import pretrained_stages
from locray.models.transfer import take_over
from locray.models.weights import is_artifact
from locray.progress import Progress, Report
from locray.training.plan import TrainPlan, initial_model


def starting_model(config: TrainConfig, plan: TrainPlan, report: Report) -> LabelModel:
    """The network before its first step, on the CPU. `report` is told how much of it an artifact has given.

    Raises:
        UsageError: the architecture or the weights are not what they should be, or there is nothing to freeze.
        StoreError: the weights can't be read.
    """
    if config.weights is not None and is_artifact(config.weights):
        model = initial_model(config.model_copy(update={"weights": None}), plan)
        uri = storage.normalise(config.weights)
        report(Progress(take_over(model, plan.architecture, plan.classes, uri)))
    else:
        model = initial_model(config, plan)
    if config.freeze_epochs and not pretrained_stages(model):  # type: ignore[arg-type]
        raise UsageError(
            f"--freeze-epochs keeps the trunk as it is, and {plan.architecture} has none: all of it learns from the "
            "first step. Leave the option out, or choose localizer/<trunk> or detector/<name>"
        )
    return model
