"""Steps lower the loss, a state is resumed exactly, and metrics follow their definition."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from locray.config import LearningOptions
from locray.inference.devices import fastest_dtype
from locray.models.architectures import build_model
from locray.models.backbones import pretrained_stages
from locray.models.interface import NO_OBJECT, PredictedBoxes
from locray.training.batches import BOXES, HAS_BOX, IMAGES, LABEL_IDS, OUTCOMES
from locray.training.learner import Learner
from locray.training.metrics import image_results, summarise
from locray.training.optimizer import AveragedModel, build_optimizer, learning_rate_at, set_rates

CPU = torch.device("cpu")


def options(**changes):
    return LearningOptions(**{"learning_rate": 1e-3, "precision": "fp32"} | changes)


def batch(number=6, unusable=()):
    generator = torch.Generator().manual_seed(number)
    outcomes = torch.zeros(number, dtype=torch.int64)
    outcomes[list(unusable)] = 3
    return {
        IMAGES: torch.randint(0, 256, (number, 32, 32, 3), dtype=torch.uint8, generator=generator),
        BOXES: torch.tensor([[[4.0, 6, 20, 28]]]).repeat(number, 1, 1),
        LABEL_IDS: torch.arange(number)[:, None] % 2,
        HAS_BOX: torch.ones(number, 1, dtype=torch.bool),
        OUTCOMES: outcomes,
    }


def learner(num_steps=10, **changes):
    torch.manual_seed(0)
    return Learner(build_model("small_cnn", 2), options(**changes), num_steps, CPU)


def train(trained, images, step):
    loss = trained.compute(images)
    trained.apply(step)
    return loss


def test_steps_lower_the_loss():
    trained = learner(60)
    losses = [train(trained, batch(), step) for step in range(60)]
    assert losses[-1] < losses[0] / 2


def test_a_learner_resumes_exactly():
    whole, first = learner(), learner()
    for step in range(6):
        train(whole, batch(step + 2), step)
    for step in range(3):
        train(first, batch(step + 2), step)
    state = copy.deepcopy(first.state())
    second = learner()
    second.load_state(state)
    for step in range(3, 6):
        train(second, batch(step + 2), step)
    for name, wanted in whole.state().items():
        if name != "optimizer":
            for key, tensor in wanted.items():
                torch.testing.assert_close(second.state()[name][key], tensor)


def test_unusable_rows_are_ignored():
    one, two = learner(), learner()
    spoiled = batch(6, unusable=(1, 4))
    spoiled[IMAGES][[1, 4]] = 0
    clean = {name: values[spoiled[OUTCOMES] == 0] for name, values in batch(6).items()}
    assert train(one, spoiled, 0) == pytest.approx(train(two, clean, 0))
    assert len(one.predict(spoiled).scores) == 4
    assert one.predict(batch(2, unusable=(0, 1))) is None


def test_a_batch_without_usable_rows_only_decays_weights():
    trained = learner()
    before = copy.deepcopy(trained.state()["model"])
    assert train(trained, batch(3, unusable=(0, 1, 2)), 0) == 0
    for name, tensor in trained.state()["model"].items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-3, atol=1e-6)


def test_a_batch_without_usable_rows_keeps_running_statistics():
    trained = Learner(build_model("small_resnet", 2), options(), 10, CPU)
    train(trained, batch(), 0)
    before = copy.deepcopy(trained.state()["model"])
    train(trained, batch(3, unusable=(0, 1, 2)), 1)
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics
    for name in statistics:
        assert torch.equal(trained.state()["model"][name], before[name])
    train(trained, batch(4), 2)
    assert not torch.equal(trained.state()["model"][statistics[0]], before[statistics[0]])


def test_divergence_is_seen_before_the_step():
    trained = learner()
    with torch.no_grad():
        next(iter(trained.state()["model"].values())).fill_(float("nan"))
    assert math.isnan(trained.compute(batch()))


def test_gradients_are_clipped_to_the_given_norm():
    free, clipped = learner(clip_norm=1e9), learner(clip_norm=0.01)
    for trained in (free, clipped):
        trained.compute(batch())
    whole, part = ([parameter.grad for parameter in trained._model.parameters()] for trained in (free, clipped))
    norm = torch.cat([gradient.flatten() for gradient in whole]).norm().item()
    assert norm > 0.1
    assert free.gradient_norm == clipped.gradient_norm == pytest.approx(norm)
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(other, one * 0.01 / norm)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate_at(step, 100, options(learning_rate=2.0)) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == 2.0
    assert all(earlier >= later for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert learning_rate_at(0, 1, options(learning_rate=2.0)) == 2.0


def test_a_constant_rate_stays_after_its_warm_up():
    settings = options(schedule="constant", warm_up=0.2)
    rates = [learning_rate_at(step, 20, settings) for step in range(20)]
    assert rates[4:] == [1e-3] * 16
    assert rates[0] == pytest.approx(0.25e-3)
    assert learning_rate_at(0, 20, options(schedule="constant", warm_up=0)) == 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_one_cycle_is_the_schedule_of_torch(optimizer):
    """Compared with `torch.optim.lr_scheduler.OneCycleLR`, shifted by a step."""
    settings = options(optimizer=optimizer, schedule="one-cycle", warm_up=0.3)
    model = torch.nn.Linear(2, 2)
    ours, theirs = (build_optimizer(model, settings) for _ in range(2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 1e-3, total_steps=101, pct_start=0.31, final_div_factor=1e9)
    for step in range(100):
        rate = set_rates(ours, settings, step, 100)
        group, wanted = ours.param_groups[0], theirs.param_groups[0]
        assert rate == group["lr"] == pytest.approx(wanted["lr"], rel=0.02, abs=1e-6)
        momenta = [part["betas"][0] if "betas" in part else part["momentum"] for part in (group, wanted)]
        assert momenta[0] == pytest.approx(momenta[1], abs=2e-3)
        theirs.step()
        schedule.step()


def test_norms_and_biases_have_no_decay_and_layer_decay_applies():
    model = build_model("localizer/resnet18", 2, 64)
    stages = pretrained_stages(model)
    settings = options(weight_decay=0.1, pretrained_rate=0.2, layer_decay=0.5)
    groups = build_optimizer(model, settings, stages).param_groups
    factor_of = {id(parameter): group["factor"] for group in groups for parameter in group["params"]}
    assert len(factor_of) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        assert all(group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0) for parameter in group["params"])
    assert len(stages) > 1
    for depth, stage in enumerate(reversed(stages)):
        assert [factor_of.pop(id(parameter)) for parameter in stage] == pytest.approx([0.2 * 0.5**depth] * len(stage))
    assert set(factor_of.values()) == {1.0}


def localizer(**changes):
    torch.manual_seed(0)
    model = build_model("localizer/mobilenet_v3_small", 2, 32)
    return model, Learner(model, options(weight_decay=0.0, **changes), 1, CPU, pretrained=True)


def test_a_pretrained_backbone_moves_less():
    moved = []
    for rate in (0.25, 1.0):
        model, trained = localizer(pretrained_rate=rate)
        before = copy.deepcopy(model.state_dict())
        train(trained, batch(), 0)
        weights = [next(iter(model.backbone.named_parameters(prefix="backbone")))[0], "cell_head.weight"]
        moved.append([(model.state_dict()[name] - before[name]).abs().mean().item() for name in weights])
    assert moved[0][0] == pytest.approx(moved[1][0] * 0.25, rel=0.05)
    assert moved[0][1] == pytest.approx(moved[1][1], rel=0.05)


def test_a_frozen_backbone_is_unchanged_until_it_is_unfrozen():
    model, trained = localizer()
    before = copy.deepcopy(model.state_dict())
    trained.freeze(True)
    train(trained, batch(), 0)
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.state_dict()["cell_head.weight"], before["cell_head.weight"])
    trained.freeze(False)
    train(trained, batch(), 1)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("backbone.") and name.endswith("running_mean") for name in changed)
    assert any(name.startswith("backbone.") and name.endswith("weight") for name in changed)


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


def test_an_average_without_memory_is_the_network_itself():
    trained = learner(ema=0.0)
    for step in range(3):
        train(trained, batch(), step)
    for name, tensor in trained.state()["model"].items():
        torch.testing.assert_close(trained.average.model.state_dict()[name], tensor)


def test_metrics_count_images_that_show_an_object():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 1, 1]])[:, None]
    predicted = PredictedBoxes(boxes, torch.ones(4, 1), torch.tensor([0, 1, 1, 0])[:, None])
    wanted_ids = torch.tensor([0, 0, 1, NO_OBJECT])[:, None]
    wanted = validation_batch(torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)[:, None], wanted_ids)
    results = image_results(predicted, wanted, ["a", "b"])
    assert [result.true_labels for result in results] == [("a",), ("a",), ("b",), ()]
    metrics = summarise(results, one_object=True)
    assert metrics["class_accuracy"] == pytest.approx(2 / 3)
    assert metrics["mean_iou"] == pytest.approx((1 + 1 + 0.4) / 3)
    assert metrics["localization_accuracy"] == pytest.approx(1 / 3)
    assert metrics["score"] == pytest.approx((2 / 3 + 2.4 / 3 + 1 / 3) / 3)
    many = summarise(results, one_object=False)
    assert many["score"] == metrics["map_50_95"] > 0
    assert many["best_score_threshold"] > 0
    assert "best_score_threshold" not in metrics
    assert summarise([], one_object=True)["score"] == 0


def validation_batch(boxes, label_ids, has_box=None, outcomes=None):
    count = len(label_ids)
    return {
        BOXES: boxes,
        LABEL_IDS: label_ids,
        HAS_BOX: label_ids != NO_OBJECT if has_box is None else has_box,
        OUTCOMES: torch.zeros(count, dtype=torch.int64) if outcomes is None else torch.tensor(outcomes),
    }


def test_an_unusable_image_has_no_detections():
    predicted = PredictedBoxes(torch.tensor([[[0.0, 0, 10, 10]]]), torch.ones(1, 1), torch.tensor([[1]]))
    boxes = torch.tensor([[[0.0, 0, 10, 10]]]).repeat(2, 1, 1)
    there = validation_batch(boxes, torch.tensor([[0], [1]]), outcomes=[3, 0])
    results = image_results(predicted, there, ["a", "b"])
    assert [result.labels for result in results] == [(), ("b",)]
    assert [result.true_labels for result in results] == [("a",), ("b",)]
    assert summarise(results, one_object=True)["localization_accuracy"] == 0.5
    assert [result.labels for result in image_results(None, there, ["a", "b"])] == [(), ()]


def test_a_detection_in_a_crowd_is_no_false_positive():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 90, 90]]])
    predicted = PredictedBoxes(boxes, torch.tensor([[0.9, 0.95]]), torch.tensor([[0, 0]]))
    crowd, one = (
        summarise(image_results(predicted, validation_batch(boxes, label_ids), ["a", "b"]), one_object=False)
        for label_ids in (torch.tensor([[0, 2]]), torch.tensor([[0, NO_OBJECT]]))
    )
    assert crowd["map_50"] == 1.0
    assert one["map_50"] < 1.0


def test_without_boxes_the_class_alone_counts():
    predicted = PredictedBoxes(torch.zeros(2, 1, 4), torch.ones(2, 1), torch.tensor([[0], [1]]))
    no_boxes = torch.zeros(2, 1, dtype=torch.bool)
    wanted = validation_batch(torch.zeros(2, 1, 4), torch.tensor([[0], [0]]), no_boxes)
    metrics = summarise(image_results(predicted, wanted, ["a", "b"]), one_object=True)
    assert metrics == {"class_accuracy": 0.5, "score": 0.5}


def test_the_fastest_dtype_is_one_that_autocast_knows():
    assert fastest_dtype(CPU) in {torch.float32, torch.bfloat16}


def test_training_works_in_bfloat16():
    torch.manual_seed(0)
    model = build_model("localizer/mobilenet_v3_small", 2, 32)
    trained = Learner(model, options(precision="bf16"), 4, CPU)
    assert 0 < train(trained, batch(), 0) < 20
    found = trained.predict(batch())
    assert found.scores.dtype is torch.float32
    assert len(found.scores) == 6


def set_scale(trained, scale):
    state = trained.state()
    trained.load_state(state | {"scaler": state["scaler"] | {"scale": scale}})


def test_in_float16_a_step_whose_gradients_overflow_is_skipped_and_the_scale_halved(monkeypatch):
    # Few processors have instructions for it; torch emulates them.
    monkeypatch.setattr("locray.training.learner.dtype_for", lambda *_: torch.float16)
    trained = learner(20)
    assert trained.precision_bits == 16
    before = copy.deepcopy(trained.state())
    set_scale(trained, 2.0**40)
    assert math.isfinite(trained.compute(batch()))
    assert trained.gradients_overflowed
    trained.apply(0)
    for name, tensor in trained.state()["model"].items():
        assert torch.equal(tensor, before["model"][name])
    assert trained.state()["scaler"]["scale"] == 2.0**39
    set_scale(trained, 2.0**8)
    losses = []
    for step in range(20):
        losses.append(train(trained, batch(), step))
        assert not trained.gradients_overflowed
    assert losses[-1] < losses[0]
    resumed = learner(20)
    resumed.load_state(trained.state())
    assert resumed.state()["scaler"] == trained.state()["scaler"]


def test_gradients_that_overflow_at_the_smallest_scale_are_a_divergence(monkeypatch):
    monkeypatch.setattr("locray.training.learner.dtype_for", lambda *_: torch.float16)
    trained = learner()
    set_scale(trained, 1.0)
    trained.gradient_norm = math.inf
    assert not trained.gradients_overflowed
    monkeypatch.undo()
    in_float32 = learner(precision="fp32")
    in_float32.gradient_norm = math.inf
    assert not in_float32.gradients_overflowed
