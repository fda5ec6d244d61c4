"""Backbones in 8-bit integers beside the same backbones in floats."""

import pytest
import torch

from locray.convert.int8 import quantized_backbone
from locray.inference.onnx import OnnxModule
from locray.models.architectures import build_model
from tests.helpers.smooth_images import smooth_images

SIZE = 64
NETWORKS = ["localizer/resnet18", "detector/faster_rcnn/resnet18"]


def network_with_statistics(architecture: str) -> torch.nn.Module:
    """A network whose batch norms have statistics: without them a deep network outputs next to nothing."""
    torch.manual_seed(0)
    model = build_model(architecture, 2, SIZE)
    with torch.no_grad():
        for _ in range(30):
            model.backbone(model.normalise(smooth_images(24, SIZE)))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NETWORKS)
def test_integers_give_the_maps_that_floats_give(architecture: str) -> None:
    model = network_with_statistics(architecture)
    images = smooth_images(24, SIZE)
    data = quantized_backbone(model, images[:16].permute(0, 2, 3, 1).split(8))
    run = OnnxModule(data, 1)
    with torch.no_grad():
        inputs = model.normalise(images).contiguous()
        expected, found = model.backbone(inputs), run(inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.float32
        assert 0 < (one - other).norm() < 0.2 * other.norm()
    for values, *alone in zip(found, *(run(image[None]) for image in inputs), strict=True):
        torch.testing.assert_close(torch.cat(alone), values)
    assert len(data) < 0.35 * sum(values.numel() * 4 for values in model.backbone.state_dict().values())
