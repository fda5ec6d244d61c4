"""A network takes over the weights of an artifact, and nothing else."""

import copy

import pytest
import torch

from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import WEIGHTS_FILE, ArtifactInfo
from locray.models.transfer import transfer_weights

pytestmark = pytest.mark.slow

CLASSES = ["Bolt", "Nut"]
NETWORKS = {
    "small_cnn": ("class_head.weight", "class_head.bias"),
    "small_resnet": ("class_head.weight",),
    "localizer/mobilenet_v3_small": ("class_head.1.weight", "class_head.1.bias"),
    "detector/fcos/mobilenet_v3_small": tuple(
        f"torchvision_model.head.classification_head.cls_logits.{name}" for name in ("weight", "bias")
    ),
    "detector/faster_rcnn/mobilenet_v3_small": tuple(
        f"roi_heads.box_predictor.head.{name}"
        for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias")
    ),
}
"""Tensors of the class head, by architecture."""


def artifact_of(folder, architecture, size=64, classes=CLASSES):
    """Returns an artifact with random weights."""
    torch.manual_seed(1)
    model = build_model(architecture, len(classes), size)
    save_artifact(str(folder), model, ArtifactInfo(architecture=architecture, classes=classes, input_size=size))
    return model.state_dict()


def taken(folder, architecture, classes, size=64):
    """Returns a new network before and after it takes over the artifact, and the messages."""
    torch.manual_seed(2)
    model = build_model(architecture, len(classes), size)
    before = copy.deepcopy(model.state_dict())
    told = transfer_weights(model, architecture, classes, str(folder))
    assert model.training
    return before, model.state_dict(), told


@pytest.mark.parametrize("architecture", NETWORKS)
def test_of_the_same_classes_everything_is_taken(architecture, tmp_path):
    theirs = artifact_of(tmp_path, architecture)
    _, after, told = taken(tmp_path, architecture, CLASSES)
    assert all(torch.equal(after[name], tensor) for name, tensor in theirs.items())
    assert told == f"all weights come from {tmp_path}"


@pytest.mark.parametrize("classes", [["Nut", "Bolt"], ["Bolt", "Nut", "Screw"]])
@pytest.mark.parametrize("architecture", NETWORKS)
def test_for_other_classes_the_class_head_starts_anew(architecture, classes, tmp_path):
    theirs = artifact_of(tmp_path, architecture)
    before, after, told = taken(tmp_path, architecture, classes)
    for name, tensor in after.items():
        assert torch.equal(tensor, (before if name in NETWORKS[architecture] else theirs)[name]), name
    of = len(after)
    assert told.startswith(f"{of - len(NETWORKS[architecture])} of {of} tensors come from {tmp_path} ({architecture})")
    assert f"new are {NETWORKS[architecture][0]}" in told


def test_layers_of_another_input_size_start_anew(tmp_path):
    theirs = artifact_of(tmp_path, "small_cnn", 64)
    before, after, told = taken(tmp_path, "small_cnn", CLASSES, 32)
    new = "dense.0.weight"
    for name, tensor in after.items():
        assert torch.equal(tensor, (before if name == new else theirs)[name]), name
    assert told == f"11 of 12 tensors come from {tmp_path} (small_cnn); new are dense.0.weight"


@pytest.mark.parametrize(
    ("origin", "architecture", "size"),
    [
        ("localizer/resnet18", "detector/fcos/resnet18", 64),
        ("detector/ssdlite320/mobilenet_v3_small", "localizer/mobilenet_v3_small", 64),
        pytest.param("localizer/resnet50", "detector/retinanet", 128, marks=pytest.mark.slow),
    ],
)
def test_of_another_model_with_the_same_backbone_the_backbone_is_taken(origin, architecture, size, tmp_path):
    artifact_of(tmp_path, origin)
    torch.manual_seed(2)
    model = build_model(architecture, 3, size)
    before = copy.deepcopy(model.state_dict())
    told = transfer_weights(model, architecture, ["a", "b", "c"], str(tmp_path))
    assert f"come from {tmp_path} ({origin}); new are " in told
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (one.eval().backbone(images)[-1] for one in (model, load_artifact(str(tmp_path)).model))
    torch.testing.assert_close(ours, theirs)
    for name, tensor in model.state_dict().items():
        assert name.startswith("backbone.") or torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("origin", "architecture"),
    [
        ("small_cnn", "small_resnet"),
        ("small_cnn", "localizer/resnet18"),
        ("localizer/resnet18", "small_cnn"),
        ("localizer/resnet18", "localizer/mobilenet_v3_small"),
    ],
)
def test_a_model_without_the_same_backbone_is_refused_and_both_are_named(origin, architecture, tmp_path):
    artifact_of(tmp_path, origin)
    with pytest.raises(UsageError, match=f"is a {origin}, and --model is {architecture}: .*Use --model {origin}"):
        taken(tmp_path, architecture, CLASSES)


def test_a_damaged_artifact_is_refused(tmp_path):
    artifact_of(tmp_path, "small_cnn")
    weights = tmp_path / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match="truncated, changed or taken from another artifact"):
        taken(tmp_path, "small_cnn", CLASSES)
