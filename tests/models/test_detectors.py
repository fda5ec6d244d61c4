"""Every detector keeps the contract, learns, and predicts what torchvision's own network predicts."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import detection

from locray.errors import UsageError
from locray.models.architectures import build_model, default_input_size_px
from locray.models.backbones import freeze_backbone, pretrained_stages, training_mode
from locray.models.detections import target_lists
from locray.models.detector import DETECTORS
from locray.models.interface import LOSS, NO_OBJECT, Targets

SMALL = [f"detector/{name}/resnet18" for name in DETECTORS]
SIZE = 64
LAST_LAYER = re.compile(
    r"((?P<box>bbox_reg|bbox_pred|regression_head\.module_list\.\d\.1)"
    r"|cls_logits|cls_score|classification_head\.module_list\.\d\.1)$"
)


def images(number, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def squares():
    """Four images with two bright squares each, one of them green; the last image is empty."""
    batch = torch.full((4, 3, SIZE, SIZE), 40, dtype=torch.uint8)
    boxes, label_ids = torch.zeros(4, 3, 4), torch.full((4, 3), NO_OBJECT)
    for image in range(3):
        for place, (left, top) in enumerate([(2 + 6 * image, 4), (34, 26 + 4 * image)]):
            batch[image, place, top : top + 24, left : left + 24] = 250
            boxes[image, place] = torch.tensor([left, top, left + 24, top + 24])
            label_ids[image, place] = place
    return batch, Targets(boxes, label_ids, label_ids != NO_OBJECT)


@torch.no_grad()
def make_lively(model, forward):
    """Makes outputs of random weights as varied as those of trained ones.

    Without this, activations grow or vanish from layer to layer, and thousands of anchors share one score.
    """
    torch.manual_seed(1)
    for name, layer in model.eval().named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.train()
        elif last_layer := LAST_LAYER.search(name):
            nn.init.normal_(layer.weight)
            if last_layer["box"]:
                nn.init.uniform_(layer.bias)
            spread = 0.3 if last_layer["box"] else 2.0
            layer.register_forward_hook(partial(_rescale, spread=spread))
    forward(model)
    model.eval()


def _rescale(layer, _, answers, spread):
    """Rescales a layer once: a head that several maps share is rescaled for the finest map."""
    layer.weight.mul_(spread / answers.std())
    layer._forward_hooks.clear()


def lively(model):
    make_lively(model, lambda own: own.predict(images(4)))


@pytest.fixture(params=SMALL)
def detector(request):
    torch.manual_seed(0)
    return build_model(request.param, 3, SIZE)


def test_predictions_have_the_promised_shapes_and_ranges(detector):
    lively(detector)
    with torch.no_grad():
        boxes, scores, label_ids = detector.predict(images(3))
    assert (boxes.shape, boxes.dtype) == ((3, detector.max_detections, 4), torch.float32)
    assert (scores.shape, scores.dtype) == ((3, detector.max_detections), torch.float32)
    assert (label_ids.shape, label_ids.dtype) == ((3, detector.max_detections), torch.int64)
    used = scores > 0
    assert used.any(dim=1).all()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert (scores <= 1).all()
    assert ((label_ids >= 0) & (label_ids < 3)).all()
    assert ((boxes >= 0) & (boxes <= SIZE)).all()
    assert (boxes[used][:, :2] < boxes[used][:, 2:]).all()


def test_an_image_does_not_depend_on_its_neighbours(detector):
    lively(detector)
    batch = images(3)
    with torch.no_grad():
        alone = detector.predict(batch[:1])
        together = detector.predict(batch)
        last = detector.predict(batch[[2, 1, 0]])
        padded = detector.predict(torch.cat([batch[:1], torch.zeros_like(batch)]))
    for one, two, three, four in zip(alone, together, last, padded, strict=True):
        for place, other in ((0, two), (2, three), (0, four)):
            torch.testing.assert_close(one[0], other[place], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_the_loss_falls_and_reaches_every_weight(detector):
    batch, targets = squares()
    optimiser = torch.optim.AdamW(detector.parameters(), 2e-3)
    losses = []
    for _ in range(10):
        parts = detector.loss(batch, targets)
        optimiser.zero_grad()
        parts[LOSS].backward()
        optimiser.step()
        losses.append(parts[LOSS].item())
    torch.testing.assert_close(parts[LOSS], sum(part for name, part in parts.items() if name != LOSS))
    assert [name for name, weight in detector.named_parameters() if weight.grad is None] == []
    assert min(losses[-3:]) < 0.75 * losses[0], losses


def test_images_without_objects_teach_background_and_reach_every_weight(detector):
    nothing = Targets(torch.zeros(2, 1, 4), torch.full((2, 1), NO_OBJECT), torch.zeros(2, 1).bool())
    loss = detector.loss(images(2), nothing)[LOSS]
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, weight in detector.named_parameters() if weight.grad is None] == []


@pytest.mark.slow
def test_in_bfloat16_the_loss_is_close_and_in_float32(detector):
    batch, targets = squares()
    detector.eval()
    whole = _loss(detector, batch, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = _loss(detector, batch, targets)
    assert all(part.dtype == torch.float32 for part in half.values())
    torch.testing.assert_close(half[LOSS], whole[LOSS], rtol=0.05, atol=0.05)


def _loss(model, batch, targets):
    """Returns the loss in training mode, with frozen statistics and fixed random samples."""
    training_mode(model, backbone_statistics=False)
    torch.manual_seed(0)
    with torch.no_grad():
        return model.loss(batch, targets)


@pytest.mark.slow
def test_what_leads_to_the_candidates_is_one_static_graph(detector):
    exported = torch.export.export(_StaticPart(detector.eval()), (images(2).contiguous(),))
    batch = images(2, seed=1).contiguous()
    with torch.no_grad():
        for one, two in zip(exported.module()(batch), detector.network(batch), strict=True):
            torch.testing.assert_close(one, two)


class _StaticPart(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return tuple(self.model.network(batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_torchvisions_own_network_gives_the_same(name, tmp_path):
    chosen, size = DETECTORS[name], 320 if name == "ssdlite320" else 128
    torch.manual_seed(0)
    sides = {} if name == "ssdlite320" else {"min_size": size, "max_size": size}
    num_labels = 3 + chosen.has_background
    build = detection.__dict__[chosen.torchvision_name]
    own = build(weights=None, weights_backbone=None, num_classes=num_labels, **sides)
    batch = images(2, size).contiguous()
    make_lively(own, lambda whole: whole(list(batch.float() / 255)))
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    ours = build_model(f"detector/{name}", 3, size, str(tmp_path / "weights.pth")).eval()
    with torch.no_grad():
        # A minimum score that leaves fewer detections than either limit: each truncates in its own way.
        outputs = ours.network(batch)
        last = ours.second_stage(outputs) if name == "faster_rcnn" else outputs
        ours.score_floor = floor = float(last.scores.sort(descending=True).values[:, 250].max())
        rules = own.roi_heads if name == "faster_rcnn" else own
        rules.score_thresh, rules.detections_per_img = floor, ours.max_detections
        wanted = own(list(batch.float() / 255))
        found = ours.predict(batch)
    for image, one in enumerate(wanted):
        # Some of torchvision's boxes lie entirely outside the image.
        seen = (one["boxes"][:, 2:] - one["boxes"][:, :2]).amin(dim=1) >= 0.01
        used = found.scores[image] > 0
        assert min(int(used.sum()), int(seen.sum())) > 10
        its = torch.cat([one["boxes"], 1000 * one["scores"][:, None], 1000 * one["labels"][:, None]], dim=1)[seen]
        labels = 1000 * (found.label_ids[image] + chosen.has_background)
        mine = torch.cat([found.boxes_xyxy_px[image], 1000 * found.scores[image][:, None], labels[:, None]], dim=1)
        apart = torch.cdist(its, mine[used], p=torch.inf, compute_mode="donot_use_mm_for_euclid_dist")
        # Pixels and thousandths of a score: rounding over fifty layers and two stages. Detections with the
        # lowest scores may be replaced by others of nearly the same score.
        tolerance = 0.5 if name == "faster_rcnn" else 0.2
        assert apart.amin(dim=1)[:-5].max() < tolerance
        assert apart.amin(dim=0)[: len(its) - 5].max() < tolerance


def test_only_objects_with_a_box_that_can_be_seen_are_targets():
    boxes = torch.tensor([[1, 1, 9, 9], [0, 0, 0, 0], [5, 5, 5.5, 9], [2, 2, 8, 8]]).float()[None]
    targets = Targets(boxes, torch.tensor([[0, 1, 2, NO_OBJECT]]), torch.tensor([[True, False, True, False]]))
    (lists,) = target_lists(targets, first_label=1)
    assert lists["boxes"].tolist() == [[1, 1, 9, 9]]
    assert lists["labels"].tolist() == [1]


@pytest.mark.parametrize("architecture", ["localizer/resnet18", "detector/fcos/resnet18", "small_cnn"])
def test_pretrained_stages_are_the_backbone_from_the_image_on(architecture):
    model = build_model(architecture, 3)
    stages = pretrained_stages(model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [names[id(weight)] for stage in stages for weight in stage]
    assert found == [name for name in names.values() if name.startswith("backbone.")]
    assert len(stages) == (0 if architecture == "small_cnn" else 5)
    assert model.max_detections == (100 if architecture.startswith("detector") else 1)


def test_the_whole_networks_have_stages_as_well():
    assert [len(pretrained_stages(build_model(f"detector/{name}", 2))) for name in ("fcos", "ssdlite320")] == [5, 5]


def test_a_frozen_backbone_keeps_weights_and_statistics_and_the_rest_learns():
    model = build_model("detector/fcos/resnet18", 3, SIZE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_backbone(model, frozen=True)
    training_mode(model, backbone_statistics=False)
    model.loss(*squares())[LOSS].backward()
    torch.optim.SGD([weight for weight in model.parameters() if weight.grad is not None], 0.1).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("backbone.") for name in changed)
    freeze_backbone(model, frozen=False)
    training_mode(model, backbone_statistics=True)
    model.loss(*squares())[LOSS].backward()
    assert all(weight.grad is not None for weight in model.backbone.parameters())
    assert not torch.equal(model.backbone.stages[0][1].running_mean, before["backbone.stages.0.1.running_mean"])


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        ("detector", None, "no detector named ''.* Known: fcos, retinanet, ssdlite320, faster_rcnn"),
        ("detector/fcoss", None, "did you mean 'fcos'"),
        ("detector/fcos/resnet81", None, "did you mean 'resnet18'"),
        ("detector/fcos/vit_b_16", None, "no feature maps of stride 8, 16 and 32"),
        ("detector/fcos/resnet18", 300, "multiple of 32 pixels, found 300: use 288"),
        ("detector/fcos", 320, "multiple of 128 pixels, found 320: use 256"),
        ("detector/faster_rcnn", 416, "multiple of 64 pixels, found 416: use 384"),
        ("detector/ssdlite320", 300, "multiple of 32 pixels, found 300: use 288"),
    ],
)
def test_a_wrong_name_or_size_is_told(architecture, size, message):
    with pytest.raises(UsageError, match=message):
        build_model(architecture, 3, size)


def test_usual_sizes_fit():
    for name in DETECTORS:
        assert default_input_size_px(f"detector/{name}/resnet18") == 320
        assert default_input_size_px(f"detector/{name}") == (320 if name == "ssdlite320" else 512)
