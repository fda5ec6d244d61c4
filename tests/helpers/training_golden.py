"""The loss curves of small fixed runs. `PYTHONPATH=tests python tests/helpers/training_golden.py` makes them again.

A refactoring keeps the curves. Whoever changes what is learned on purpose makes the file again and says why.
"""

import json
import tempfile
from pathlib import Path

import torch

from locray.config import TrainConfig
from locray.demo.images import write_dataset
from locray.training.learner import Learner, LearnerSettings
from locray.training.plan import make_plan
from locray.training.start import initial_model

GOLDEN = Path(__file__).with_name("training_golden.json")
# At its usual rate the last digits of a sum, which hang on the number of threads, make another curve in ten steps.
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
    """The loss of each step of a run: data, augmentation, network, schedule and optimiser have their part in it."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), {"train": 24, "val": 4}, seed=0)
        options = {"batch_size": 8, "epochs": 4, "ema": 0.0, **RUNS[name]}
        config = TrainConfig(data=folder, format="csv", output=f"{folder}/model", **options)
        plan = make_plan(config)
        model = initial_model(config, plan)
        learner = Learner(model, LearnerSettings(plan.optimiser, plan.num_steps, 1, torch.float32), torch.device("cpu"))
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
