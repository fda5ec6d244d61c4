"""Any convolutional network of torchvision becomes a trunk, with its weights."""

import pytest
import safetensors.torch
import torch
import torchvision

from locray.errors import UsageError
from locray.models.trunks import build_trunk

NAMES = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_cut_at_strides_16_and_32(name):
    trunk = build_trunk(name, None).eval()
    with torch.no_grad():
        fine, coarse = trunk(torch.zeros(1, 3, 96, 64))
    assert fine.shape == (1, trunk.fine_channels, 6, 4)
    assert coarse.shape == (1, trunk.coarse_channels, 3, 2)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_whole_network_reach_the_trunk(name, suffix, tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.get_model(name, weights=None).eval()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), file)
    else:
        safetensors.torch.save_file(whole.state_dict(), file)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        coarse = build_trunk(name, str(file)).eval()(images)[1]
        pooled = coarse.mean(dim=(2, 3))
        head = whole.fc if name == "resnet18" else whole.classifier
        torch.testing.assert_close(head(pooled), whole(images))


def test_weights_trained_for_other_classes_are_welcome(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), file)
    build_trunk("resnet18", str(file))


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), file)
    with pytest.raises(UsageError, match="not those of torchvision's resnet18"):
        build_trunk("resnet18", str(file))


def test_a_pickle_that_runs_code_is_refused_unread(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    file = tmp_path / "weights.pth"
    torch.save({"weight": Attack()}, file)
    with pytest.raises(UsageError, match="can be read safely"):
        build_trunk("resnet18", str(file))
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}q\x00."])
def test_a_file_of_something_else_is_refused(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"weights\.pth"):
        build_trunk("resnet18", str(file))


def test_an_unknown_name_of_weights_lists_the_known_ones():
    with pytest.raises(UsageError, match="it has IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build_trunk("mobilenet_v2", "IMAGENET")


@pytest.mark.parametrize("name", ["vit_b_32", "alexnet", "squeezenet1_1"])
def test_a_network_without_both_maps_is_refused(name):
    with pytest.raises(UsageError, match="no feature maps of stride 16 and 32"):
        build_trunk(name, None)


def test_splitting_moves_no_statistics_and_leaves_training_mode():
    trunk = build_trunk("mobilenet_v2", None)
    assert trunk.training
    assert all(
        int(layer.num_batches_tracked) == 0 for layer in trunk.modules() if isinstance(layer, torch.nn.BatchNorm2d)
    )
