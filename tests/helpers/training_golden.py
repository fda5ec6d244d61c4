"""Loss curves of small fixed runs. `python -m tests.helpers.training_golden` writes the file again.

A refactoring keeps the curves. Write the file again only after an intended change, and say why in the commit.
"""

import json
import tempfile
from pathlib import Path

import torch

from locray.config import TrainConfig
from locray.demo.images import write_dataset
from locray.training.learner import Learner
from locray.training.plan import make_plan
from locray.training.run import initial_model

GOLDEN = Path(__file__).with_name("training_golden.json")
# At the default rate, rounding differences between numbers of threads change the curve within ten steps.
CAUTIOUS_SGD = {"optimizer": "sgd", "learning_rate": 2e-3, "weight_decay": 0.05}
RUNS = {
    "small_cnn": {"model": "small_cnn"},
    "localizer": {
        "model": "localizer/resnet18",
        "input_size": 64,
        "schedule": "one-cycle",
        **CAUTIOUS_SGD,
        "learning_rate": 5e-4,
    },
    "detector": {"model": "detector/fcos/resnet18", "input_size": 96, "mosaic": 0.5, **CAUTIOUS_SGD},
}
STEPS = 12


def losses(name: str) -> list[float]:
    """Returns the loss of each step of a run: depends on data, augmentation, network, schedule and optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), {"train": 24, "val": 4}, seed=0)
        options = {"batch_size": 8, "epochs": 4, "ema": 0.0, "precision": "fp32", **RUNS[name]}
        config = TrainConfig(data=folder, format="csv", output=f"{folder}/model", **options)
        plan = make_plan(config)
        model = initial_model(plan)
        learner = Learner(model, config, plan.num_steps, torch.device("cpu"))
        curve = []
        for step in range(STEPS):
            epoch, step_of_epoch = divmod(step, plan.train.order.num_steps)
            batch = {name: torch.from_numpy(part) for name, part in plan.train(epoch, step_of_epoch, 0).items()}
            torch.manual_seed(step)
            curve.append(learner.compute(batch))
            learner.apply(step)
        return curve


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: [round(loss, 5) for loss in losses(name)] for name in RUNS}, indent=1) + "\n")
