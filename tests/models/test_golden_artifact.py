"""An artifact written by this format's first version: this version reads it, and predicts the same.

A change that breaks this test breaks the models of users: see the upgrade policy before making the artifact again.
"""

import json

import pytest
import torch

from locray.models.artifact import load_artifact
from tests.golden.make_artifact import ARTIFACT, COLOURS, EXPECTED, SIZE_PX, pictures, predicted

EXPECTED_BY_NAME = json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_the_golden_artifact_is_read_as_it_was_written() -> None:
    artifact = load_artifact(str(ARTIFACT))
    assert artifact.model_id == EXPECTED_BY_NAME["model_id"]
    info = artifact.info
    assert (info.architecture, info.classes, info.input_size) == ("small_cnn", list(COLOURS), SIZE_PX)
    assert (info.score_threshold, info.provenance["weights"], info.metrics) == (0.25, None, {"mean_iou": 0.9})


@pytest.mark.parametrize(("name", "tolerance"), [("boxes_xyxy_px", 0.02), ("scores", 1e-3), ("label_ids", 0)])
def test_the_golden_artifact_predicts_what_it_did(name: str, tolerance: float) -> None:
    found = getattr(predicted(), name)
    expected = torch.tensor(EXPECTED_BY_NAME[name], dtype=found.dtype)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_the_golden_predictions_tell_pictures_apart() -> None:
    """Otherwise the comparison above could not fail."""
    targets = pictures()[1]
    found = predicted()
    assert (found.label_ids == targets.label_ids).all()
    assert (found.boxes_xyxy_px - targets.boxes_xyxy_px).abs().mean() < 1
    assert found.boxes_xyxy_px.std(dim=0).amin() > 2
