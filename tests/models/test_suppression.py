"""Non-maximum suppression, on processors and in the form for GPUs, agrees with torchvision's."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms

from locray.models.detections import Candidates, clipped_candidates, decode_boxes, top_scores
from locray.models.suppression import select_in_turn, suppress

NUM_PLACES = 100


def test_suppression_is_greedy_within_an_image_and_a_class():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [0, 0, 10, 10], [0, 0, 0, 0]]).float()
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.0], [0.1, 0.8, 0.7, 0.6, 0.0]])
    label_ids = torch.tensor([[0, 0, 0, 1, 0]] * 2)
    found = suppress(Candidates(boxes.expand(2, -1, -1), scores, label_ids), 0.7, 6, 32)
    # A shift of one pixel gives an IoU of 0.82, of two pixels 0.67.
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.7, 0.6, 0, 0, 0], [0.8, 0.6, 0, 0, 0, 0]]))
    assert found.label_ids.tolist() == [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert found.boxes_xyxy_px[0, :3].tolist() == boxes[[0, 2, 3]].tolist()
    assert not found.boxes_xyxy_px[1, 2:].any()


def test_suppression_agrees_with_one_image_at_a_time_over_many_images():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 500, 2, generator=generator) * 200
    boxes = torch.cat([corners, corners + 20 + torch.rand(40, 500, 2, generator=generator) * 60], dim=2)
    scores = torch.rand(40, 500, generator=generator)
    found = Candidates(boxes, scores, torch.randint(0, 5, (40, 500), generator=generator))
    together = suppress(found, 0.5, 100, 320)
    for image in (0, 17, 39):
        alone = suppress(Candidates(*(values[image : image + 1] for values in found)), 0.5, 100, 320)
        assert all(torch.equal(one[0], two[image]) for one, two in zip(alone, together, strict=True))


def test_more_objects_than_places_leave_the_best():
    boxes = torch.tensor([[x, 0, x + 1, 2] for x in range(30)]).float()[None]
    found = suppress(Candidates(boxes, torch.linspace(0.1, 0.9, 30)[None], torch.zeros(1, 30).long()), 0.5, 7, 32)
    assert found.boxes_xyxy_px[0, :, 0].tolist() == [29, 28, 27, 26, 25, 24, 23]


def candidates(num_images, num_candidates, size_px, num_labels, seed=0):
    """Boxes of 2 to 30 % of the side in clusters, so that many overlap; a tenth of the places is unused."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(num_images, num_candidates, *shape, generator=generator)

    clusters = torch.rand(num_images, 12, 2, generator=generator) * 0.8
    which = torch.randint(0, 12, (num_images, num_candidates, 1), generator=generator).expand(-1, -1, 2)
    corners = clusters.gather(1, which) + rand(2) * 0.05
    boxes = torch.cat([corners, corners + 0.02 + rand(2) * 0.28], dim=2) * size_px
    scores = torch.where(rand() < 0.1, 0, rand())
    label_ids = torch.randint(0, num_labels, (num_images, num_candidates), generator=generator)
    return clipped_candidates(boxes, scores, label_ids, size_px)


@pytest.mark.parametrize(("size_px", "num_labels"), [(32, 1), (640, 90), (8192, 3), (100_000, 90)])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.6])
def test_both_forms_keep_what_torchvision_keeps_of_each_image(size_px, num_labels, iou_threshold):
    found = candidates(5, 400, size_px, num_labels)
    scores, places = select_in_turn(found, iou_threshold, NUM_PLACES)
    on_cpu = suppress(found, iou_threshold, NUM_PLACES, size_px)
    for image in range(5):
        used = found.scores[image].nonzero()[:, 0]
        boxes, own, labels = (values[image][used] for values in found)
        expected = used[batched_nms(boxes.double(), own.double(), labels, iou_threshold)][:NUM_PLACES]
        num_kept = len(expected)
        assert num_kept > 20
        assert places[image][:num_kept].tolist() == expected.tolist()
        assert torch.equal(scores[image], on_cpu.scores[image])
        assert torch.equal(on_cpu.boxes_xyxy_px[image][:num_kept], found.boxes_xyxy_px[image][expected])
        assert not scores[image][num_kept:].any()


def test_the_form_for_gpus_gives_an_image_the_same_alone_and_in_a_batch():
    found = candidates(7, 300, 640, 20)
    together = select_in_turn(found, 0.5, NUM_PLACES)
    for image in range(7):
        alone = select_in_turn(Candidates(*(values[image : image + 1] for values in found)), 0.5, NUM_PLACES)
        assert all(torch.equal(one[0], two[image]) for one, two in zip(alone, together, strict=True))


@pytest.mark.parametrize("num_used", [0, 1, 3])
def test_the_form_for_gpus_leaves_places_empty_where_nothing_remains(num_used):
    boxes = torch.tensor([[x, 0, x + 1, 2] for x in range(10)]).float()[None]
    scores = torch.linspace(0.9, 0.1, 10)[None] * (torch.arange(10) < num_used)
    left, _ = select_in_turn(Candidates(boxes, scores, torch.zeros(1, 10).long()), 0.5, 6)
    assert torch.equal(left, scores[:, :6])


@pytest.mark.parametrize("select", [suppress, None], ids=["on processors", "on GPUs"])
def test_a_score_that_is_not_a_number_stays_to_be_told(select):
    raw = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0))
    raw[1, 7, 1] = float("nan")
    best = top_scores(raw, 0.05)
    boxes = torch.tensor([0.0, 0.0, 9.0, 9.0]).expand(3, len(best.scores[0]), 4)
    found = clipped_candidates(boxes, best.scores, best.label_ids, 32)
    scores = suppress(found, 0.5, 5, 32).scores if select else select_in_turn(found, 0.5, 5)[0]
    assert scores.isnan().any(dim=1).tolist() == [False, True, False]


def test_boxes_are_decoded_as_by_torchvision():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 200, 2, generator=generator) * 500
    anchors = torch.cat([corners, corners + torch.rand(3, 200, 2, generator=generator) * 90], dim=2)
    offsets = torch.randn(3, 200, 4, generator=generator) * 3
    for weights in [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]:
        coder = BoxCoder(weights)
        expected = coder.decode_single(offsets.flatten(0, 1), anchors.flatten(0, 1)).view_as(offsets)
        assert torch.equal(decode_boxes(coder, offsets, anchors), expected)
