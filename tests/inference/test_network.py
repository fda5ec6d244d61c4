"""A network that was prepared for its device predicts like the network that was trained."""

import numpy as np
import pytest
import torch

from locray.boxes import Letterbox
from locray.demo.drawing import SHAPES, draw_sample
from locray.images.letterbox import letterbox_image
from locray.inference.network import Network
from locray.models.architectures import build_model
from locray.models.interface import LOSS, Targets

CPU = torch.device("cpu")
SIZE = 32
BATCH = 16
NETWORKS = ["localizer/mobilenet_v3_small", "detector/fcos/resnet18", "detector/faster_rcnn/resnet18"]


def drawn(count):
    """Images (N, S, S, 3) of the demo, and their targets."""
    images = torch.zeros(count, SIZE, SIZE, 3, dtype=torch.uint8)
    label_ids, boxes = [], []
    for number in range(count):
        label_ids.append(number % len(SHAPES))
        image, box = draw_sample(np.random.default_rng(number), list(SHAPES)[label_ids[-1]])
        letterbox = Letterbox.fit(image.shape[1], image.shape[0], SIZE)
        letterbox_image(image, letterbox, out=images[number].numpy())
        boxes.append(letterbox.to_input(np.array(box)))
    ids = torch.tensor(label_ids)[:, None]
    return images, Targets(torch.tensor(np.array(boxes)).float()[:, None], ids, torch.ones_like(ids).bool())


@pytest.fixture(scope="module")
def trained():
    """Drawn images, and a function that builds a network trained on them."""
    torch.manual_seed(0)
    images, targets = drawn(2 * BATCH)
    model = build_model("small_cnn", len(SHAPES))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(70):
        loss = model.loss(images.permute(0, 3, 1, 2), targets)[LOSS]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    state = model.state_dict()

    def build():
        again = build_model("small_cnn", len(SHAPES))
        again.load_state_dict(state)
        return again.eval()

    return images, build


def overlaps(one, other):
    top_left, bottom_right = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    areas = [(boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (one, other)]
    common = sides[..., 0] * sides[..., 1]
    return common / (sum(areas) - common)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "least_iou"), [(torch.float32, 0.999), (torch.bfloat16, 0.9)])
def test_the_answers_are_those_of_the_plain_network(trained, dtype, least_iou):
    images, build = trained
    with torch.no_grad():
        plain = build().predict(images.permute(0, 3, 1, 2))
    network = Network(build(), CPU, dtype)
    batches = [part.numpy() for part in images.split(BATCH)]
    found = [network.predict(batch) for batch in network.upload(batches)]
    boxes, scores, label_ids = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert boxes.dtype == scores.dtype == torch.float32
    assert (label_ids == plain.label_ids).float().mean() >= 0.99
    assert (overlaps(boxes, plain.boxes_xyxy_px) >= least_iou).float().mean() >= 0.99
    if dtype is torch.float32:
        torch.testing.assert_close(scores, plain.scores, rtol=1e-4, atol=1e-4)
    else:
        assert not torch.equal(scores, plain.scores)
        assert (scores - plain.scores).abs().mean() < 0.02


@pytest.mark.parametrize("architecture", NETWORKS)
def test_weights_are_stored_in_the_format_of_the_arithmetic(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, 3, 64).eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        plain = model.predict(images.permute(0, 3, 1, 2))
    found = Network(model, CPU, torch.bfloat16).predict(images)
    weights = [layer.weight.dtype for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    assert set(weights) == {torch.bfloat16}
    assert (found.boxes_xyxy_px.dtype, found.scores.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found.scores, plain.scores, rtol=0.05, atol=0.05)


def test_the_compiled_form_takes_whole_batches_and_leaves_the_eager_one_alone():
    torch.manual_seed(0)
    eager = Network(build_model("small_cnn", 2).eval(), CPU, torch.float32)
    batch = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    expected = eager.predict(batch)
    calls = []

    def compiled_form(images):
        calls.append(len(images))
        return eager.static_part(images)

    compiled = eager.with_compiled(compiled_form)
    assert [compiled.padded_size(count, 4) for count in (1, 3, 4)] == [4, 4, 4]
    assert all(map(torch.equal, compiled.predict(batch), expected))
    assert calls == [4]
    eager.predict(batch)
    assert calls == [4]


def test_few_images_make_a_small_batch():
    network = Network(build_model("small_cnn", 2).eval(), CPU, torch.float32)
    assert [network.padded_size(count, 32) for count in (1, 2, 3, 8, 9, 31, 32)] == [1, 2, 4, 8, 16, 32, 32]
    assert network.padded_size(17, 24) == 24
