"""Detectors take the weights of torchvision's detectors and of its classification networks."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import detection

from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.interface import BACKBONE

pytestmark = pytest.mark.slow


def saved(model, tmp_path, name="weights.pth"):
    file = tmp_path / name
    torch.save(model.state_dict(), file)
    return str(file)


def backbone_values(model):
    return [value for value in getattr(model, BACKBONE).state_dict().values() if value.is_floating_point()]


def ssdlite(num_classes):
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)


def test_weights_for_other_classes_fill_all_but_the_class_head(tmp_path):
    whole = ssdlite(91)
    model = build_model("detector/ssdlite320", 3, 320, saved(whole, tmp_path))
    theirs = [value for value in whole.backbone.features.state_dict().values() if value.is_floating_point()]
    assert all(torch.equal(one, two) for one, two in zip(backbone_values(model), theirs, strict=True))
    boxes = model.torchvision_model.head.regression_head.state_dict()
    assert all(torch.equal(value, boxes[name]) for name, value in whole.head.regression_head.state_dict().items())
    assert model.torchvision_model.head.classification_head.module_list[0][1].out_channels == 4 * 6


@pytest.mark.parametrize(
    "architecture", ["detector/fcos/mobilenet_v3_small", "detector/faster_rcnn/mobilenet_v3_small"]
)
def test_weights_of_the_classification_network_fill_a_small_backbone(architecture, tmp_path):
    whole = torchvision.models.mobilenet_v3_small()
    model = build_model(architecture, 3, 64, saved(whole, tmp_path))
    theirs = [value for value in whole.features.state_dict().values() if value.is_floating_point()]
    assert all(torch.equal(one, two) for one, two in zip(backbone_values(model), theirs, strict=True))


def test_classification_weights_fill_the_backbone_of_a_detector(tmp_path):
    whole = torchvision.models.resnet50()
    model = build_model("detector/retinanet", 3, 128, saved(whole, tmp_path))
    assert torch.equal(model.backbone.stages[-1][-1].conv3.weight, whole.layer4[-1].conv3.weight)


def test_networks_without_a_batch_norm_epsilon_compute_the_same(tmp_path):
    whole = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    with torch.no_grad():
        for layer in whole.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.uniform_(2e-5, 1e-4)
                layer.weight.mul_(0.005)
    file = saved(whole, tmp_path, "retinanet_resnet50_fpn_coco-eeacb38b.pth")
    model = build_model("detector/retinanet", 3, 128, file).eval()
    for layer in whole.eval().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        wanted = list(whole.backbone.body(images).values())
        for one, two in zip(model.backbone(images), wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_older_names_of_tensors_are_understood(tmp_path):
    whole = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    old = {}
    for name, value in whole.state_dict().items():
        parts = name.split(".")
        if "conv" in parts and parts[0] == "head":
            at = parts.index("conv")
            parts = [*parts[: at + 1], str(2 * int(parts[at + 1])), parts[-1]]
        old[".".join(parts)] = value
    assert old.keys() != whole.state_dict().keys()
    torch.save(old, tmp_path / "weights.pth")
    model = build_model("detector/retinanet", 3, 128, str(tmp_path / "weights.pth"))
    assert torch.equal(
        model.torchvision_model.head.regression_head.conv[3][0].weight, whole.head.regression_head.conv[3][0].weight
    )


@pytest.mark.parametrize(
    ("architecture", "make", "message"),
    [
        ("detector/ssdlite320", torchvision.models.mobilenet_v3_large, "Use --model detector/ssdlite320/mobilenet_v3"),
        ("detector/fcos/resnet18", lambda: ssdlite(3), "not those of torchvision's resnet18"),
        ("detector/fcos", lambda: ssdlite(3), "not those of torchvision's fcos_resnet50_fpn"),
        ("detector/fcos", torchvision.models.resnet18, "not those of torchvision's resnet50"),
    ],
)
def test_weights_of_another_network_are_refused(architecture, make, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        build_model(architecture, 3, None, saved(make(), tmp_path))


def test_an_unknown_name_of_weights_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"no weights 'COCO' for fcos_resnet50_fpn; it has .*COCO_V1"):
        build_model("detector/fcos", 3, None, "COCO")
    with pytest.raises(UsageError, match="no weights 'COCO_V1' for resnet18; it has IMAGENET1K_V1, DEFAULT"):
        build_model("detector/fcos/resnet18", 3, None, "COCO_V1")
