"""Folding batch norms into convolutions changes no result, and only norms that belong to one are folded."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from locray.inference.folding import fold_batch_norms
from locray.models.architectures import build_model

NETWORKS = [
    ("small_cnn", 32, 0),
    ("small_resnet", 32, 3),  # a pooling lies between convolution and norm
    ("localizer/resnet18", 64, 0),
    ("localizer/mobilenet_v3_small", 64, 0),
    ("detector/fcos/resnet18", 64, 0),
    ("detector/ssdlite320", 128, 0),
    ("detector/faster_rcnn/resnet18", 64, 0),
]


def norms(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def give_statistics(network):
    """Gives batch norms statistics whose loss would change the result."""
    with torch.no_grad():
        for norm in norms(network):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)


@pytest.mark.parametrize(("architecture", "size", "left"), NETWORKS)
def test_a_folded_network_gives_the_same(architecture, size, left):
    torch.manual_seed(0)
    model = build_model(architecture, 3, size).eval()
    give_statistics(model)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    run = model._maps if "faster_rcnn" in architecture else model.forward  # before candidates are ranked
    with torch.no_grad():
        before = run(images)
        folded = fold_batch_norms(model, lambda: model.predict(images[:1]))
        after = run(images)
    assert len(norms(model)) == left
    assert folded > 0 or architecture == "small_cnn"
    assert_close(after, before, rtol=1e-4, atol=1e-3 if size == 32 else 1e-4 * size)


class Shared(nn.Module):
    """Convolutions that share a batch norm, or whose output is also read elsewhere."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.one, self.other, self.of_both = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.at_times, self.then = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.on_its_own = nn.BatchNorm2d(3)
        self.of_batches = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
        convolution, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.usual = nn.Sequential(convolution, norm, nn.ReLU(inplace=True))

    def forward(self, images):
        first = self.read_twice(images)
        outputs = [self.norm(first) + first, self.of_both(self.one(images)), self.of_both(self.other(images))]
        outputs += [self.then(self.at_times(images)), self.at_times(images), self.of_batches(images)]
        return torch.cat([*outputs, self.usual(self.on_its_own(images))], dim=1)


def test_only_what_belongs_together_is_folded():
    torch.manual_seed(0)
    network = Shared().eval()
    with torch.no_grad():
        for norm in norms(network):
            if norm.running_mean is not None:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        images = torch.randn(2, 3, 8, 8)
        before = network(images)
        assert fold_batch_norms(network, lambda: network(images)) == 1
        assert isinstance(network.usual[1], nn.Identity)
        assert_close(network(images), before, rtol=1e-4, atol=1e-4)
