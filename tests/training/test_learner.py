"""A step learns, the state goes on exactly, and metrics are those of the definition."""

import copy
from itertools import pairwise

import pytest
import torch

from locray.errors import UsageError
from locray.models import build_model
from locray.models.contract import NO_OBJECT, PredictedBoxes, Targets
from locray.training.learner import Learner, LearnerSettings, TrainingStep
from locray.training.metrics import Counts
from locray.training.optimise import PRETRAINED_FACTOR, AveragedModel, build_optimiser, learning_rate_at
from locray.training.precision import fastest_dtype
from locray.training.samples import BOXES, IMAGES, LABEL_IDS, OUTCOMES


def batch(number=6, unusable=()):
    generator = torch.Generator().manual_seed(number)
    outcomes = torch.zeros(number, dtype=torch.int64)
    outcomes[list(unusable)] = 3
    return {
        IMAGES: torch.randint(0, 256, (number, 32, 32, 3), dtype=torch.uint8, generator=generator),
        BOXES: torch.tensor([[[4.0, 6, 20, 28]]]).repeat(number, 1, 1),
        LABEL_IDS: torch.arange(number)[:, None] % 2,
        OUTCOMES: outcomes,
    }


def learner(num_steps=10, learning_rate=1e-3):
    torch.manual_seed(0)
    model = build_model("small_cnn", 2)
    settings = LearnerSettings(learning_rate, 0.05, False, num_steps, torch.float32)
    return Learner(model, TrainingStep(model), settings, torch.device("cpu"))


def test_steps_lower_the_loss():
    trained = learner(60)
    losses = [trained.train_on(batch(), step) for step in range(60)]
    assert losses[-1] < losses[0] / 2


def test_a_learner_that_was_stopped_goes_on_exactly():
    whole, first = learner(), learner()
    for step in range(6):
        whole.train_on(batch(step + 2), step)
    for step in range(3):
        first.train_on(batch(step + 2), step)
    state = copy.deepcopy(first.state())
    second = learner()
    second.load_state(state)
    for step in range(3, 6):
        second.train_on(batch(step + 2), step)
    for name, wanted in whole.state().items():
        if name != "optimiser":
            for key, tensor in wanted.items():
                torch.testing.assert_close(second.state()[name][key], tensor)


def test_unusable_rows_are_neither_learned_from_nor_counted():
    one, two = learner(), learner()
    spoiled = batch(6, unusable=(1, 4))
    spoiled[IMAGES][[1, 4]] = 0
    clean = {name: values[spoiled[OUTCOMES] == 0] for name, values in batch(6).items()}
    assert one.train_on(spoiled, 0) == pytest.approx(two.train_on(clean, 0))
    counts = Counts.zero()
    one.evaluate_on(spoiled, counts)
    assert counts.sums[0] == 4


def test_a_batch_without_a_usable_row_moves_only_by_decay():
    trained = learner()
    before = copy.deepcopy(trained.state()["model"])
    assert trained.train_on(batch(3, unusable=(0, 1, 2)), 0) == 0
    for name, tensor in trained.state()["model"].items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-3, atol=1e-6)


def test_a_diverged_training_is_told():
    trained = learner()
    with torch.no_grad():
        next(iter(trained.state()["model"].values())).fill_(float("nan"))
    with pytest.raises(UsageError, match=r"loss became nan at step 4.*--learning-rate"):
        trained.train_on(batch(), 4)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate_at(step, 100, 2.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == 2.0
    assert all(earlier >= later for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert learning_rate_at(0, 1, 2.0) == 2.0


def test_norms_and_biases_are_not_decayed_and_the_trunk_learns_slower():
    model = build_model("localizer/resnet18", 2, 64)
    groups = build_optimiser(model, 1e-3, 0.1, 0.2).param_groups
    trunk = {id(parameter) for parameter in model.trunk.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            assert group["factor"] == (0.2 if id(parameter) in trunk else 1.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_pretrained_trunk_moves_less():
    def moved(pretrained):
        torch.manual_seed(0)
        model = build_model("localizer/mobilenet_v3_small", 2, 32)
        before = copy.deepcopy(model.state_dict())
        settings = LearnerSettings(1e-3, 0.0, pretrained, 1, torch.float32)
        Learner(model, TrainingStep(model), settings, torch.device("cpu")).train_on(batch(), 0)
        weights = ["trunk.stages.0.0.0.weight", "cell_head.weight"]
        return [(model.state_dict()[name] - before[name]).abs().mean().item() for name in weights]

    (slow_trunk, head), (trunk, same_head) = moved(True), moved(False)
    assert slow_trunk == pytest.approx(trunk * PRETRAINED_FACTOR, rel=0.05)
    assert head == pytest.approx(same_head, rel=0.05)


def test_the_average_forgets_its_start_and_follows():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = AveragedModel(model, 1000)
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(model, 0)
    assert average.model.weight.item() == pytest.approx(0.9)
    for step in range(1, 400):
        average.update(model, step)
    assert average.model.weight.item() == pytest.approx(1.0, abs=1e-3)


def test_metrics_count_images_that_show_an_object():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 1, 1]])[:, None]
    predicted = PredictedBoxes(boxes, torch.ones(4, 1), torch.tensor([0, 1, 1, 0])[:, None])
    wanted_ids = torch.tensor([0, 0, 1, NO_OBJECT])[:, None]
    wanted = Targets(torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)[:, None], wanted_ids, wanted_ids != NO_OBJECT)
    counts = Counts.zero()
    counts.add(predicted, wanted)
    metrics = counts.metrics()
    assert metrics["class_accuracy"] == pytest.approx(2 / 3)
    assert metrics["mean_iou"] == pytest.approx((1 + 1 + 0.4) / 3)
    assert metrics["localization_accuracy"] == pytest.approx(1 / 3)
    assert Counts.zero().metrics()["score"] == 0


def test_the_number_format_is_one_that_autocast_knows():
    assert fastest_dtype(torch.device("cpu")) in {torch.float32, torch.bfloat16}


def test_training_works_in_bfloat16():
    torch.manual_seed(0)
    model = build_model("localizer/mobilenet_v3_small", 2, 32)
    settings = LearnerSettings(1e-3, 0.05, True, 4, torch.bfloat16)
    trained = Learner(model, TrainingStep(model), settings, torch.device("cpu"))
    assert 0 < trained.train_on(batch(), 0) < 20
    counts = Counts.zero()
    trained.evaluate_on(batch(), counts)
    assert counts.sums[0] == 6
