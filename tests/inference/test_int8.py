"""Backbones in 8-bit integers beside the same backbones in floats."""

import sys

import pytest
import torch

from locray.errors import UsageError
from locray.inference import int8
from locray.inference.network import static_part
from locray.models.architectures import build_model
from tests.helpers.smooth_images import smooth_images

CPU = torch.device("cpu")
SIZE = 64
NETWORKS = ["localizer/resnet18", "localizer/mobilenet_v2", "localizer/efficientnet_b0", "detector/fcos/resnet18"]

needs_vnni = pytest.mark.skipif(not int8.runs_here(), reason="this processor can't multiply 8-bit integers")


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("architecture", NETWORKS)
def test_integers_give_the_maps_that_floats_give(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, 2, SIZE)
    images = smooth_images(24, SIZE)
    with torch.no_grad():
        for _ in range(30):  # batch norms need statistics: without them a deep network outputs next to nothing
            model.backbone(model.normalise(images))
        model.eval()
        expected = model.backbone(model.normalise(images))
        ranges = int8.calibrate(model, images[:16].split(8))
        assert torch.equal(model.backbone(model.normalise(images))[0], expected[0])  # the original backbone is back
        static_part(model, CPU, torch.float32, ranges)
        found = model.backbone(model.normalise(images))
    assert any("quantized" in type(layer).__module__ for layer in model.backbone.modules())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.float32
        assert 0 < (one - other).norm() < 0.15 * other.norm()


def test_machines_without_the_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="this worker has a GPU"):
        int8.check_runs_on(torch.device("cuda"))
    monkeypatch.setattr(int8, "runs_here", lambda: False)
    with pytest.raises(UsageError, match=r"needs a processor .* this processor lacks it"):
        int8.check_runs_on(CPU)


def test_a_torch_without_torch_ao_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "runs_here", lambda: True)
    int8.check_runs_on(CPU)
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.quantize_fx", None)
    with pytest.raises(UsageError, match=r"it has no torch.ao.quantization. Install an older torch"):
        int8.check_runs_on(CPU)
