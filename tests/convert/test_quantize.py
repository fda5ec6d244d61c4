"""`locray quantize`: the artifact that it writes, and what it refuses."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locray.cli.main import main as cli
from locray.config import InferenceOptions, QuantizeConfig
from locray.convert.quantize import quantize
from locray.errors import UsageError
from locray.inference import int8
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import ArtifactInfo
from tests.helpers.smooth_images import smooth_images

CLASSES = ["nut", "bolt"]
SIZE = 64

needs_onednn = pytest.mark.skipif(
    "onednn" not in torch.backends.quantized.supported_engines, reason="this torch has no oneDNN"
)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures by class, in the format `folders`."""
    for number, pixels in enumerate(smooth_images(24, SIZE).permute(0, 2, 3, 1).numpy()):
        folder = tmp_path / "data" / "train" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers may overflow on this processor: tests with this fixture don't look at results."""
    monkeypatch.setattr(int8, "runs_here", lambda: True)


def saved(folder: Path, architecture: str, **described: object) -> str:
    torch.manual_seed(0)
    uri = str(folder / architecture.replace("/", "-"))
    model = build_model(architecture, len(CLASSES), SIZE if "/" in architecture else 32)
    info = ArtifactInfo(architecture=architecture, classes=CLASSES, input_size=model.input_size_px)
    save_artifact(uri, model, info.model_copy(update=described))
    return uri


def settings(folders: Path, model: str, **other: object) -> QuantizeConfig:
    given = {"data": str(folders / "data"), "format": "folders", "model": model, "output": str(folders / "int8")}
    return QuantizeConfig.model_validate(given | other)


@needs_onednn
@pytest.mark.slow
@pytest.mark.usefixtures("any_processor")
def test_a_quantized_artifact_is_another_model_that_labels_in_integers(folders: Path) -> None:
    model = saved(folders, "localizer/resnet18")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = quantize(settings(folders, model, sample=12), lambda _: None)
    assert (summary.calibrated_images, summary.compared_images) == (12, 12)
    assert min(summary.images_per_s, summary.images_per_s_before) > 0
    before, after = load_artifact(model), load_artifact(summary.output)
    assert summary.model_id == after.model_id != before.model_id
    assert after.info.int8_ranges
    state = before.model.state_dict()
    assert all(torch.equal(state[name], values) for name, values in after.model.state_dict().items())
    predictor = Predictor(ModelSpec.read(summary.output, InferenceOptions(batch_size=4)))
    layers = predictor._network._model.modules()
    assert any("quantized" in type(layer).__module__ for layer in layers)


def test_what_cannot_be_quantized_is_told(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("quantize", "--data", str(folders / "data"), "--format", "folders")
    small = saved(folders, "small_cnn")

    def refused(*options: str) -> str:
        assert cli([*common, *options]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "small_cnn, which has no backbone to quantize" in refused("--model", small, "--output", str(folders / "out"))
    assert "is the model itself" in refused("--model", small, "--output", small)
    done = saved(folders, "localizer/resnet18", int8_ranges={})
    assert "is quantized already" in refused("--model", done, "--output", str(folders / "out"))
    assert "no model at" in refused("--model", str(folders / "none"), "--output", str(folders / "out"))
    assert not (folders / "out").exists()


@pytest.mark.usefixtures("any_processor")
def test_a_split_without_images_to_compare_on_is_told(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(folders, "localizer/resnet18")
    for path in sorted((folders / "data").rglob("*.png"))[1:]:
        path.write_bytes(b"no picture")
    where = ("--data", str(folders / "data"), "--format", "folders", "--output", str(folders / "out"))
    assert cli(["quantize", "--model", model, *where]) == 2
    assert "holds 1 usable images: expected 2" in " ".join(capsys.readouterr().err.split())
    assert not (folders / "out").exists()


def test_what_would_compute_in_floats_refuses_a_quantized_model(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(folders, "localizer/resnet18", int8_ranges={})
    monkeypatch.setattr(int8, "runs_here", lambda: False)
    with pytest.raises(UsageError, match="this processor lacks it"):
        Predictor(ModelSpec.read(model, InferenceOptions(batch_size=4, device="cpu")))
    assert cli(["export-model", "--model", model, "--to", "torch-export", "--output", str(folders / "x.pt2")]) == 2
    assert "export the model that it was made from" in " ".join(capsys.readouterr().err.split())
