"""Every network keeps the contract."""

import pytest
import torch

from locray.errors import UsageError
from locray.models.architectures import build_model, default_input_size_px
from locray.models.interface import LOSS, NO_OBJECT, Targets

NETWORKS = [("small_cnn", 32), ("small_resnet", 32), ("localizer/resnet18", 64), ("localizer/mobilenet_v2", 64)]


def images(number, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def targets(boxes, label_ids):
    ids = torch.tensor(label_ids)[:, None]
    return Targets(torch.tensor(boxes, dtype=torch.float32)[:, None], ids, ids != NO_OBJECT)


@pytest.fixture(params=NETWORKS, ids=lambda network: network[0])
def network(request):
    torch.manual_seed(0)
    architecture, size = request.param
    return build_model(architecture, 3, size)


def test_predictions_have_the_promised_shapes_and_ranges(network):
    with torch.no_grad():
        boxes, scores, label_ids = network.eval().predict(images(5, network.input_size_px))
    assert boxes.shape == (5, 1, 4)
    assert boxes.dtype == torch.float32
    assert scores.shape == label_ids.shape == (5, 1)
    assert label_ids.dtype == torch.int64
    assert ((scores > 0) & (scores <= 1)).all()
    assert ((label_ids >= 0) & (label_ids < 3)).all()
    assert ((boxes >= 0) & (boxes <= network.input_size_px)).all()
    assert (boxes[..., :2] < boxes[..., 2:]).all()


def test_an_image_does_not_depend_on_its_neighbours(network):
    batch = images(6, network.input_size_px)
    neighbours = torch.cat([batch[:1], 255 - batch[1:]])
    with torch.no_grad():
        network.eval()
        alone, together, among_others = (network.predict(part) for part in (batch[:1], batch, neighbours))
    for one, two, three in zip(alone, together, among_others, strict=True):
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one[0], three[0], rtol=1e-4, atol=1e-3)


def test_memory_format_changes_nothing(network):
    batch = images(2, network.input_size_px)
    with torch.no_grad():
        network.eval()
        for one, two in zip(network.predict(batch), network.predict(batch.contiguous()), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


def test_the_loss_reaches_every_weight(network):
    size = network.input_size_px
    parts = network.loss(images(2, size), targets([[0, 0, size / 2, size / 2], [4, 4, size - 4, size]], [0, 2]))
    parts[LOSS].backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


@pytest.mark.slow
def test_images_without_objects_teach_that_nothing_is_there(network):
    batch = images(4, network.input_size_px)
    nothing = targets([[0, 0, 0, 0]] * 4, [NO_OBJECT] * 4)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    with torch.no_grad():
        before = network.eval().predict(batch).scores.mean()
    network.train()
    for _ in range(12):
        loss = network.loss(batch, nothing)[LOSS]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        logits = network(batch)[0].softmax(1)
    assert torch.isfinite(loss)
    assert logits[:, :-1].max(1).values.mean() < before
    assert (logits.argmax(1) == 3).all()


def test_a_box_that_is_not_known_does_not_count(network):
    batch = images(2, network.input_size_px)
    network.eval()
    with torch.no_grad():
        wanted = [
            Targets(torch.full((2, 1, 4), value), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1).bool())
            for value in (0.0, 1e4)
        ]
        first, second = (network.loss(batch, one)[LOSS] for one in wanted)
    torch.testing.assert_close(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["small_cnn", "small_resnet"])
def test_a_small_network_learns_eight_images_by_heart(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, 2)
    batch = torch.full((8, 3, 32, 32), 60, dtype=torch.uint8)
    corners = [(2 + 2 * place, 16 - 2 * place) for place in range(8)]
    for place, (left, top) in enumerate(corners):
        batch[place, place % 2, top : top + 12, left : left + 12] = 255
    wanted = targets([[left, top, left + 12, top + 12] for left, top in corners], [place % 2 for place in range(8)])
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        loss = model.loss(batch, wanted)[LOSS]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found = model.eval().predict(batch)
    assert (found.label_ids == wanted.label_ids).all()
    assert (found.boxes_xyxy_px - wanted.boxes_xyxy_px).abs().max() < 3


@pytest.mark.slow
def test_prediction_is_one_static_graph(network):
    exported = torch.export.export(_Predict(network.eval()), (images(2, network.input_size_px).contiguous(),))
    batch = images(2, network.input_size_px, seed=1).contiguous()
    with torch.no_grad():
        for one, two in zip(exported.module()(batch), network.predict(batch), strict=True):
            torch.testing.assert_close(one, two)


class _Predict(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return tuple(self.model.predict(batch))


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        ("localiser/resnet18", None, "did you mean 'localizer'"),
        ("localizer", None, "needs a backbone"),
        ("localizer/resnet81", None, "did you mean 'resnet18'"),
        ("localizer/resnet18", 100, "multiple of 32 pixels, found 100: use 96"),
        ("localizer/alexnet", None, "no feature maps of stride 16 and 32"),
        ("small_cnn/deep", None, "no variants"),
        ("small_cnn", 17, "at least 18"),
        ("small_resnet/deep", None, "no variants"),
        ("small_resnet", 30, "multiple of 8 pixels.*nearest one is 32"),
    ],
)
def test_a_wrong_name_or_size_is_told(architecture, size, message):
    with pytest.raises(UsageError, match=message):
        build_model(architecture, 3, size)


def test_every_family_builds_at_its_usual_size():
    assert default_input_size_px("small_cnn") == 32
    assert build_model("small_cnn", 2).input_size_px == 32
    assert build_model("localizer/mobilenet_v3_small", 2).input_size_px == default_input_size_px("localizer/resnet18")
