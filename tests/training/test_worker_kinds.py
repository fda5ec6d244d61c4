"""Runs of one worker without Ray: frozen backbones, classes without boxes, detectors, bfloat16."""

import pytest
import torch
import torchvision
from PIL import Image

from locray.models.backbones import pretrained_stages
from locray.training.checkpoints import Place
from locray.training.history import PRECISION_BITS, read_history
from locray.training.metrics import BEST_SCORE_THRESHOLD
from tests.training.test_worker import Rehearsal, data, impatient, same

pytestmark = pytest.mark.slow

__all__ = ["data", "impatient"]

BACKBONE = "mobilenet_v3_small"


@pytest.fixture
def frozen(data, tmp_path):
    """Makes a run of two steps per epoch whose backbone is frozen in all epochs but the last."""
    torch.manual_seed(3)
    torch.save(torchvision.models.get_model(BACKBONE, weights=None).state_dict(), tmp_path / "weights.pth")
    options = {"model": f"localizer/{BACKBONE}", "input_size": 32, "batch_size": 12, "ema": 0.0}
    options["weights"] = str(tmp_path / "weights.pth")
    return lambda name, epochs: Rehearsal(data, tmp_path / name, epochs=epochs, freeze_epochs=epochs - 1, **options)


def backbone_of(state):
    """Weights and running statistics of the backbone."""
    return {name: tensor.clone() for name, tensor in state.items() if name.startswith("backbone.")}


def test_a_backbone_is_frozen_for_the_frozen_epochs_only(frozen):
    run = frozen("run", 3)
    first = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert run.run() == Place(3, 0)
    for weights in run.weights[:2]:
        assert same(backbone_of(weights), backbone_of(first))
        assert not torch.equal(weights["cell_head.weight"], first["cell_head.weight"])
    thawed = backbone_of(run.weights[2])
    assert all(not torch.equal(thawed[name], first[name]) for name in thawed if name.endswith("running_mean"))
    parameters = {id(parameter): name for name, parameter in run.model.named_parameters()}
    stages = [[parameters[id(parameter)] for parameter in stage] for stage in pretrained_stages(run.model)]
    assert stages
    for stage in stages:
        assert any(not torch.equal(thawed[name], first[name]) for name in stage), stage


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_run_stopped_after_unfreezing_resumes_exactly(frozen):
    whole, first, second = frozen("whole", 2), frozen("parts", 2), frozen("parts", 2)
    whole.run()
    first.batches_until_stop = 3
    first.run()
    assert second.run() == Place(2, 0)
    assert same(second.weights[-1], whole.weights[-1])


def test_classes_without_boxes_are_learned(tmp_path):
    for number, colour in enumerate(["red", "blue"] * 12):
        folder = tmp_path / ("train" if number < 16 else "val") / colour
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    run = Rehearsal(tmp_path, tmp_path / "run", format="folders", epochs=4, colour=0)
    assert run.run() == Place(4, 0)
    assert run.epochs[-1]["class_accuracy"] == run.epochs[-1]["score"] == 1
    assert run.epochs[-1]["loss"] < run.epochs[0]["loss"]
    assert not {"mean_iou", "localization_accuracy", "map_50_95"} & run.epochs[-1].keys()


def test_the_score_of_a_detector_is_its_map(data, tmp_path):
    run = Rehearsal(data, tmp_path, model=f"detector/fcos/{BACKBONE}", input_size=64, epochs=2)
    assert run.run() == Place(2, 0)
    for epoch in run.epochs:
        assert epoch["score"] == epoch["map_50_95"] <= epoch["map_50"] <= 1
        assert 0 <= epoch[BEST_SCORE_THRESHOLD] < 1
    found = [epoch["map_50"] for epoch in run.epochs]
    assert any(found)
    assert [epoch["map_50"] for epoch in read_history(str(tmp_path))] == pytest.approx(found, rel=1e-4)


def test_a_run_in_bfloat16_keeps_its_weights_in_float32(data, tmp_path):
    whole, half = (Rehearsal(data, tmp_path / precision, precision=precision) for precision in ("fp32", "bf16"))
    for run in (whole, half):
        assert run.run() == Place(3, 0)
    assert [run.epochs[-1][PRECISION_BITS] for run in (whole, half)] == [32, 16]
    losses = [[epoch["loss"] for epoch in run.epochs] for run in (whole, half)]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1][-1] < losses[1][0]
    assert {tensor.dtype for tensor in half.weights[-1].values()} == {torch.float32}
