"""Images to compare networks on, and the measure of their agreement."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locray.convert.comparison import OutputDiff, decode_images
from locray.images.decode import DecodeLimits
from locray.images.letterbox import PAD_VALUE
from locray.models.interface import PredictedBoxes

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1 << 20)


def found(*best: tuple[float, int, float]) -> PredictedBoxes:
    """One detection per image: score, label id and left side of a box 10 pixels wide and high."""
    boxes = torch.tensor([[[left, 0.0, left + 10, 10.0]] for _, _, left in best])
    scores = torch.tensor([[score] for score, _, _ in best])
    return PredictedBoxes(boxes, scores, torch.tensor([[label] for _, label, _ in best]))


def test_best_detections_are_compared_by_class_and_box() -> None:
    expected = found((0.9, 0, 0.0), (0.8, 1, 0.0), (0.0, 0, 0.0), (0.7, 1, 0.0))
    assert OutputDiff.of(expected, expected) == (1.0, 1.0, 0.0)
    diff = OutputDiff.of(expected, found((0.9, 1, 0.4), (0.8, 1, 3.0), (0.0, 1, 9.0), (0.6, 1, 0.0)))
    assert (diff.same_class, diff.same_box) == (0.75, 0.75)
    assert diff.score_difference == pytest.approx(0.1)
    assert OutputDiff.of(expected, found(*[(0.0, 0, 0.0)] * 4))[:2] == (0.25, 0.25)
    assert math.isnan(OutputDiff.of(expected, found(*[(math.nan, 0, 0.0)] * 4)).score_difference)


def test_rounding_agrees_and_other_results_do_not() -> None:
    expected = found(*[(0.5, 0, 0.0)] * 4)
    assert OutputDiff.of(expected, found(*[(0.51, 0, 0.1)] * 4)).agrees
    assert OutputDiff.of(found(*[(0.0, 0, 0.0)] * 4), found(*[(0.0, 1, 0.0)] * 4)).agrees
    for score, label, left in [(0.5, 1, 0.0), (0.5, 0, 2.0), (0.6, 0, 0.0), (math.nan, 0, 0.0)]:
        assert not OutputDiff.of(expected, found((score, label, left), *[(0.5, 0, 0.0)] * 3)).agrees


def test_images_are_letterboxed_in_order_without_those_that_fail(tmp_path: Path) -> None:
    uris = []
    for number, colour in enumerate([(200, 0, 0), (0, 200, 0)]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 80, 3), colour, np.uint8)).save(path)
        uris.append(str(path))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = decode_images([uris[1], str(tmp_path / "broken.png"), uris[0], str(tmp_path / "none.png")], 32, LIMITS)
    assert images.shape == (2, 32, 32, 3)
    assert images[:, 16, 16].tolist() == [[0, 200, 0], [200, 0, 0]]
    assert (images[:, 0] == PAD_VALUE).all()
