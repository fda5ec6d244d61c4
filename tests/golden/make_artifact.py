"""Makes the golden artifact again: `python -m tests.golden.make_artifact`. Only if old artifacts may stop working.

A `small_cnn` with its smallest input, trained to distinguish coloured squares, so that its predictions are meaningful.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import ArtifactInfo
from locray.models.interface import LOSS, PredictedBoxes, Targets

ARTIFACT = Path(__file__).parent / "artifact"
EXPECTED = Path(__file__).parent / "artifact_predictions.json"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230)}
SIZE_PX = 18
NUM_PICTURES = 60
_STEPS = 300


def pictures() -> tuple[Tensor, Targets]:
    """Returns pictures (N, 3, S, S) uint8 of one square each, on grey, and their targets. No random numbers."""
    images = torch.empty(NUM_PICTURES, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    boxes, labels = [], []
    for number, image in enumerate(images):
        label = number % len(COLOURS)
        side = 5 + number % 4
        left, top = (number * 5) % (SIZE_PX - side + 1), (number * 7) % (SIZE_PX - side + 1)
        image.fill_(90 + number)
        image[:, top : top + side, left : left + side] = torch.tensor(list(COLOURS.values())[label])[:, None, None]
        boxes.append([left, top, left + side, top + side])
        labels.append(label)
    label_ids = torch.tensor(labels)[:, None]
    return images, Targets(torch.tensor(boxes, dtype=torch.float32)[:, None], label_ids, torch.ones_like(label_ids) > 0)


def predicted() -> PredictedBoxes:
    """Returns the golden artifact's predictions for the pictures."""
    with torch.no_grad():
        return load_artifact(str(ARTIFACT)).model.predict(pictures()[0])


def main() -> None:
    """Trains the network, and writes the artifact and its predictions."""
    torch.manual_seed(0)
    model = build_model("small_cnn", len(COLOURS), SIZE_PX)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)  # type: ignore[attr-defined]
    images, targets = pictures()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        model.loss(images, targets)[LOSS].backward()
        optimizer.step()
    info = ArtifactInfo(
        architecture="small_cnn",
        classes=list(COLOURS),
        input_size=SIZE_PX,
        score_threshold=0.25,
        provenance={"data": "coloured squares", "epochs": _STEPS, "weights": None},
        metrics={"mean_iou": 0.9},
    )
    model_id = save_artifact(str(ARTIFACT), model, info).model_id
    found = {name: values.tolist() for name, values in predicted()._asdict().items()}
    EXPECTED.write_text(json.dumps({"model_id": model_id, **found}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
