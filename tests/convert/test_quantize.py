"""`locray quantize`: the artifact that it writes, and what it refuses."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locray.api.model import load_model
from locray.cli.main import main as cli
from locray.config import InferenceOptions, QuantizeConfig
from locray.convert.quantize import quantize
from locray.errors import UsageError
from locray.inference.onnx import OnnxModule
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import INT8_FILE, ArtifactInfo
from tests.helpers.smooth_images import smooth_images

CLASSES = ["nut", "bolt"]
SIZE = 64


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures by class, in the format `folders`."""
    for number, pixels in enumerate(smooth_images(24, SIZE).permute(0, 2, 3, 1).numpy()):
        folder = tmp_path / "data" / "train" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number}.png")
    return tmp_path


def saved(folder: Path, architecture: str, int8_graph: bytes | None = None) -> str:
    torch.manual_seed(0)
    uri = str(folder / architecture.replace("/", "-"))
    model = build_model(architecture, len(CLASSES), SIZE if "/" in architecture else 32)
    info = ArtifactInfo(architecture=architecture, classes=CLASSES, input_size=model.input_size_px)
    save_artifact(uri, model, info, int8_graph)
    return uri


def settings(folders: Path, model: str, **other: object) -> QuantizeConfig:
    given = {"data": str(folders / "data"), "format": "folders", "model": model, "output": str(folders / "int8")}
    return QuantizeConfig.model_validate(given | other)


@pytest.mark.slow
def test_a_quantized_artifact_is_another_model_that_labels_in_integers(folders: Path) -> None:
    model = saved(folders, "localizer/resnet18")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = quantize(settings(folders, model, sample=12), lambda _: None)
    assert (summary.calibrated_images, summary.compared_images) == (12, 12)
    assert min(summary.images_per_s, summary.images_per_s_before) > 0
    before, after = load_artifact(model), load_artifact(summary.output)
    assert summary.model_id == after.model_id != before.model_id
    assert after.info.int8_sha256
    state = before.model.state_dict()
    assert all(torch.equal(state[name], values) for name, values in after.model.state_dict().items())
    predictor = Predictor(ModelSpec.read(summary.output, InferenceOptions(batch_size=4)))
    assert isinstance(predictor._network.static_part.model.backbone, OnnxModule)
    pixels = smooth_images(6, SIZE).permute(0, 2, 3, 1).numpy()
    in_batch, alone = load_model(summary.output).predict(list(pixels)), load_model(summary.output, batch_size=1)
    for one, other in zip(in_batch, alone.predict(list(pixels)), strict=True):
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes_xyxy_px, other.boxes_xyxy_px, atol=0.01)


def test_what_cannot_be_quantized_is_told(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("quantize", "--data", str(folders / "data"), "--format", "folders")
    small = saved(folders, "small_cnn")

    def refused(*options: str) -> str:
        assert cli([*common, *options]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "small_cnn, which has no backbone to quantize" in refused("--model", small, "--output", str(folders / "out"))
    assert "is the model itself" in refused("--model", small, "--output", small)
    done = saved(folders, "localizer/resnet18", int8_graph=b"graph")
    assert "is quantized already" in refused("--model", done, "--output", str(folders / "out"))
    assert "no model at" in refused("--model", str(folders / "none"), "--output", str(folders / "out"))
    assert not (folders / "out").exists()


def test_a_split_without_images_to_compare_on_is_told(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(folders, "localizer/resnet18")
    for path in sorted((folders / "data").rglob("*.png"))[1:]:
        path.write_bytes(b"no picture")
    where = ("--data", str(folders / "data"), "--format", "folders", "--output", str(folders / "out"))
    assert cli(["quantize", "--model", model, *where]) == 2
    assert "holds 1 usable images: expected 2" in " ".join(capsys.readouterr().err.split())
    assert not (folders / "out").exists()


def test_a_quantized_model_is_refused_where_it_would_not_run(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(folders, "localizer/resnet18", int8_graph=b"graph")
    assert cli(["export-model", "--model", model, "--to", "torch-export", "--output", str(folders / "x.pt2")]) == 2
    assert "export the model that it was made from" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match=r"--device gpu: .* 8-bit integers, which need a processor"):
        ModelSpec.read(model, InferenceOptions(device="gpu"))
    assert ModelSpec.read(model, InferenceOptions()).options.device == "cpu"


def test_a_changed_or_missing_graph_is_found_before_a_run(folders: Path) -> None:
    model = saved(folders, "localizer/resnet18", int8_graph=b"graph")
    (Path(model) / INT8_FILE).write_bytes(b"another")
    with pytest.raises(UsageError, match=r"int8\.onnx is not the file that model\.json was written with"):
        ModelSpec.read(model, InferenceOptions())
    (Path(model) / INT8_FILE).unlink()
    with pytest.raises(UsageError, match=r"int8\.onnx"):
        ModelSpec.read(model, InferenceOptions())
