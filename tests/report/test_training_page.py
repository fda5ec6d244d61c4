"""The page of a training run, from a real artifact and its history: offline and complete."""

import re
from pathlib import Path

import pytest
import torch

from locray.config import TrainConfig
from locray.datasets import read_dataset
from locray.demo.images import write_dataset
from locray.labelling.model import ModelSpec
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactInfo
from locray.progress import ignore
from locray.report.training import write_training_page
from locray.training.history import write_history
from tests.helpers.in_process import InProcess, without_ray
from tests.helpers.one_thread import one_thread
from tests.report.test_evaluation import Page

__all__ = ["one_thread", "without_ray"]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A finished training run: data, artifact, history."""
    write_dataset(tmp_path, {"train": 8, "val": 8}, seed=0)
    classes = list(read_dataset(str(tmp_path), "csv", "train").classes)
    output = str(tmp_path / "model")
    torch.manual_seed(0)
    info = ArtifactInfo(architecture="small_cnn", classes=classes, input_size=32)
    save_artifact(output, build_model("small_cnn", len(classes)), info)
    steady = {"learning_rate": 1e-3}
    write_history(output, [{"epoch": n, "loss": 3 / n, "score": n / 10, "mean_iou": n / 8} | steady for n in (1, 2, 3)])
    return TrainConfig(data=str(tmp_path), format="csv", output=output, model="small_cnn")


@pytest.mark.usefixtures("without_ray")
def test_the_page_of_a_training_is_complete_and_offline(config: TrainConfig) -> None:
    write_training_page(config, "small_cnn@0123456789ab", {"epochs": "3", "<b>": "&"}, 3, ignore)
    text = (Path(config.output) / "report.html").read_text()
    page = Page(text)
    assert page.headings == [
        "Curves",
        "Loss",
        "On the validation split",
        "Learning rate",
        "Validation",
        "Precision, recall and calibration",
        "Precision and recall at IoU 0.5",
        "Calibration of scores",
        "Classes",
        "Confusion matrix",
        "Worst images",
    ]
    assert "The new model on 8 images of split &#39;val&#39;." in text
    assert text.count("best epoch: 3") == 3
    assert "loss at 2: 1.5" in text
    assert "mean iou at 3: 0.375" in text
    assert_offline(text, page)
    assert_confusions(text, sorted(read_dataset(config.data, "csv", "val").classes))
    assert text.count("<figure>") == len(page.links) > 0
    assert "&lt;b&gt;" in text


def assert_offline(text: str, page: Page) -> None:
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?://|url\(|@import|<script|<link|<iframe", text)


def assert_confusions(text: str, classes: list[str]) -> None:
    """Checks that the confusion matrix counts every image of the validation split."""
    cells = re.findall(r'title="(\S+) predicted as (\S+): (\d+) of \d+"', text)
    assert len(cells) == (len(classes) + 1) ** 2
    assert {true for true, _, _ in cells} == {*classes, "nothing"}
    assert sum(int(count) for _, _, count in cells) == 8


def test_the_page_is_computed_on_the_device_of_the_training(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Noting(InProcess):
        def __init__(self, model: ModelSpec) -> None:
            asked.append(model.options.device)
            super().__init__(model)

    monkeypatch.setattr("locray.evaluation.run.Pipeline", Noting)
    write_training_page(config.model_copy(update={"device": "cpu"}), "m", {}, 3, ignore)
    assert asked == ["cpu"]
