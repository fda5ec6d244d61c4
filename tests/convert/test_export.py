"""Exported networks in their own runtimes: they give the artifact's results, or no file is written."""

import contextlib
import io
import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from locray.cli.main import main
from locray.config import ExportModelConfig
from locray.convert.comparison import check_images
from locray.convert.export import export
from locray.convert.export_check import DetectionDiff, compare_with_artifact, detection_diff
from locray.convert.export_formats import FORMATS, ExportFormat, export_network
from locray.errors import ExportError, UsageError
from locray.models.architectures import build_model
from locray.models.artifact import LoadedArtifact, load_artifact, save_artifact
from locray.models.files import ArtifactInfo
from locray.models.interface import PredictedBoxes
from tests.helpers.s3_server import S3Bucket
from tests.models.test_detectors import make_lively

pytestmark = pytest.mark.slow

CLASSES = ["bolt", "Mutter", "螺丝"]
NETWORKS = [("small_cnn", 32), ("small_resnet", 32), ("localizer/resnet18", 32)]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network[0])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    architecture, size = request.param
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("trained"))
    info = ArtifactInfo(architecture=architecture, classes=CLASSES, input_size=size, score_threshold=0.25)
    save_artifact(folder, build_model(architecture, len(CLASSES), size), info)
    return folder


def export_model(model: str, to: str, output: object, *options: str) -> tuple[int, str, str]:
    arguments = ["export-model", "--model", model, "--to", to, "--output", str(output), "--json", *options]
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        exit_code = main(arguments)
    return exit_code, stdout.getvalue(), " ".join(stderr.getvalue().split())


def random_images(count: int, size: int) -> Tensor:
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def expected_of(model: str, images: Tensor) -> PredictedBoxes:
    with torch.inference_mode():
        return load_artifact(model).model.predict(images.permute(0, 3, 1, 2))


def assert_the_same(found: dict[str, Tensor], expected: PredictedBoxes) -> None:
    torch.testing.assert_close(found["boxes_xyxy_px"], expected.boxes_xyxy_px, atol=0.05, rtol=0)
    torch.testing.assert_close(found["scores"], expected.scores, atol=1e-3, rtol=0)
    assert torch.equal(found["label_ids"], expected.label_ids)


def test_onnx_runtime_gives_the_artifacts_answers_for_any_batch(trained: str, tmp_path: Path) -> None:
    exit_code, stdout, _ = export_model(trained, "onnx", tmp_path / "deep" / "model.onnx")
    assert exit_code == 0
    facts = json.loads(stdout)  # and no output of the exporter itself
    assert (facts["batch_size"], facts["compared_detections"]) == (None, facts["compared_images"])
    session = onnxruntime.InferenceSession((tmp_path / "deep" / "model.onnx").read_bytes())
    described = session.get_modelmeta().custom_metadata_map
    artifact = load_artifact(trained)
    assert described["model_id"] == artifact.model_id == facts["model_id"]
    assert json.loads(described["classes"]) == CLASSES
    assert (described["input_size"], described["score_threshold"]) == (str(artifact.info.input_size), "0.25")
    size = artifact.info.input_size
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", size, size, 3])
    ]
    names = [one.name for one in session.get_outputs()]
    for count in (1, 3):
        images = random_images(count, size)
        found = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        assert_the_same(dict(zip(names, found, strict=True)), expected_of(trained, images))


def test_torch_gives_the_artifacts_answers_for_any_number_of_images(trained: str, tmp_path: Path) -> None:
    exit_code, stdout, _ = export_model(trained, "torch-export", tmp_path / "model.pt2")
    assert (exit_code, json.loads(stdout)["batch_size"]) == (0, None)
    extra = {"locray.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    described = json.loads(extra["locray.json"])
    artifact = load_artifact(trained)
    assert (described["model_id"], described["classes"]) == (artifact.model_id, CLASSES)
    for count in (1, 3):
        images = random_images(count, artifact.info.input_size)
        assert_the_same(program(images), expected_of(trained, images))


@pytest.mark.parametrize("to", FORMATS)
def test_a_batch_size_that_was_asked_for_is_fixed(artifact: str, tmp_path: Path, to: str) -> None:
    exit_code, stdout, _ = export_model(artifact, to, tmp_path / "model", "--batch-size", "3")
    assert (exit_code, json.loads(stdout)["batch_size"]) == (0, 3)
    run = FORMATS[to].open((tmp_path / "model").read_bytes())
    assert run(random_images(3, 32)).scores.shape == (3, 1)
    with pytest.raises(Exception, match="3"):
        run(random_images(2, 32))


@pytest.fixture(scope="module", params=["detector/fcos/resnet18", "detector/ssdlite320"])
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact that finds a hundred objects in every image, all with different scores."""
    torch.manual_seed(0)
    folder, size = str(tmp_path_factory.mktemp("detector")), 64
    model = build_model(request.param, len(CLASSES), size)
    make_lively(model, lambda own: own.predict(check_images(size).permute(0, 3, 1, 2)))
    save_artifact(folder, model, ArtifactInfo(architecture=request.param, classes=CLASSES, input_size=size))
    return folder


@pytest.mark.parametrize("to", FORMATS)
def test_a_detector_finds_the_same_objects_in_every_form(detector: str, tmp_path: Path, to: str) -> None:
    exit_code, stdout, stderr = export_model(detector, to, tmp_path / "model", "--batch-size", "1")
    assert exit_code == 0, stderr
    facts = json.loads(stdout)
    assert (facts["batch_size"], facts["compared_images"]) == (1, 8)
    assert facts["compared_detections"] > 700


class Blobs(nn.Module):
    """A minimal detector: the brightest cells are candidates, suppressed over the whole batch if they overlap."""

    input_size_px, num_classes = 32, 2

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 1, 8, stride=4, bias=False)
        nn.init.constant_(self.features.weight, 1 / (3 * 64 * 255))
        cells = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0)) * 4
        self.register_buffer("boxes", torch.cat([cells.flip(1), cells.flip(1) + 8], dim=1))

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        count = len(images_u8)
        scores = self.features(images_u8.float()).flatten(1)
        scores, places = torch.where(scores > 0.5, scores, 0).topk(20, dim=1)
        boxes = self.boxes[places]
        apart = boxes.double() + torch.arange(count)[:, None, None] * 64
        apart = torch.where((scores > 0)[:, :, None], apart, torch.tensor([-9.0, -9.0, -8.0, -8.0]).double())
        kept = nms(apart.flatten(0, 1), scores.double().flatten(), 0.1)
        used = torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, kept, value=True).view_as(scores)
        scores, order = torch.where(used & (scores > 0), scores, 0).topk(10, dim=1)
        boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
        return PredictedBoxes(boxes, scores, torch.zeros_like(order))


def loaded(network: nn.Module) -> LoadedArtifact:
    info = ArtifactInfo(architecture="test", classes=["a", "b"], input_size=32)
    return LoadedArtifact(network.eval(), info, "test@0")  # type: ignore[arg-type]


@pytest.mark.parametrize("to", FORMATS)
def test_a_network_with_suppression_whatever_an_image_shows(to: str) -> None:
    blobs = loaded(Blobs())
    exported = export_network(blobs, to)
    assert exported.batch_size in {None, 1}
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    images[1, 4:12, 8:16] = 255
    images[2, 4:12, 8:16] = 255
    images[2, 20:28, 16:24] = 200
    images[3] = random_images(1, 32)
    found = [int((exported.predict(images[index : index + 1]).scores > 0).sum()) for index in range(4)]
    assert found[:3] == [0, 1, 2]
    assert compare_with_artifact(blobs, exported, images).is_within_bounds


def test_where_nothing_could_be_compared_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Blobs()
    nn.init.zeros_(blind.features.weight)
    told: list[str] = []
    for network in (Blobs(), blind):
        monkeypatch.setattr("locray.convert.export.load_artifact", lambda _, network=network: loaded(network))
        config = ExportModelConfig(model="m", to="torch-export", output=f"{tmp_path}/m.pt2", batch_size=1)
        summary = export(config, lambda progress: told.append(progress.stage))
        assert any("finds nothing" in stage for stage in told) == (summary.compared_detections == 0)
    assert summary.compared_detections == 0
    assert "compare the two on your own images" in told[-1]


class ByPixels(nn.Module):
    """A network whose control flow depends on its input, so that it has no single graph."""

    input_size_px, num_classes = 32, 2

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        places = int(images_u8.float().mean()) if images_u8.float().mean() > 9 else 1
        size = (len(images_u8), places)
        return PredictedBoxes(torch.ones(*size, 4), torch.ones(size), torch.ones(size, dtype=torch.int64))


@pytest.mark.parametrize("to", FORMATS)
def test_a_network_that_is_no_graph_is_refused_in_one_line(to: str) -> None:
    with pytest.raises(UsageError, match=f"torch can't export test to {to}") as told:
        export_network(loaded(ByPixels()), to)
    assert "\n" not in str(told.value)


class TwoFaced(nn.Module):
    """A network whose graph computes something else than the network itself."""

    input_size_px, num_classes = 32, 2

    def predict(self, images_u8: Tensor) -> PredictedBoxes:
        mean = images_u8.float().mean(dim=(1, 2, 3))[:, None]
        edge = mean * 0 + (7.0 if torch.compiler.is_exporting() else 5.0)
        boxes = torch.stack([mean * 0, mean * 0, edge, edge], dim=2)
        return PredictedBoxes(boxes, mean / 255, torch.ones_like(mean, dtype=torch.int64))


def test_a_network_whose_graph_is_not_what_it_does_is_found_out() -> None:
    network = loaded(TwoFaced())
    difference = compare_with_artifact(network, export_network(network, "torch-export"), check_images(32))
    assert not difference.is_within_bounds
    assert (difference.box_px, difference.unmatched) == (2, 0)


def test_a_wrong_export_leaves_no_file_and_says_by_how_much(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FORMATS["torch-export"]

    def open_shifted(data: bytes):
        run = right.open(data)
        return lambda images: run(images)._replace(boxes_xyxy_px=run(images).boxes_xyxy_px + 0.5)

    monkeypatch.setitem(FORMATS, "torch-export", ExportFormat(right.write, open_shifted))
    exit_code, _, stderr = export_model(artifact, "torch-export", tmp_path / "out" / "model.pt2")
    assert exit_code == 1
    assert "boxes differ by up to 0.5 px (allowed: 0.05)" in stderr
    assert not list(tmp_path.rglob("*"))


def test_bad_usage(artifact: str, tmp_path: Path) -> None:
    file, absent = tmp_path / "m.onnx", f"{tmp_path}/absent"
    for model, to, output, told in [
        (absent, "onnx", file, "model.json"),
        (artifact, "onx", file, "'onnx' or 'torch-export'"),
        (artifact, "onnx", tmp_path, "is a folder"),
        (artifact, "onnx", f"{tmp_path}/new/", "is a folder"),
        (artifact, "onnx", "s3://bucket", "is a folder"),
        (artifact, "onnx", "gs://bucket/m.onnx", "not supported"),
    ]:
        exit_code, stdout, stderr = export_model(model, to, output)
        assert (exit_code, stdout) == (2, ""), stderr
        assert told in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.s3
def test_from_and_to_a_bucket(artifact: str, s3_bucket: S3Bucket) -> None:
    for path in Path(artifact).iterdir():
        s3_bucket.put(f"models/a/{path.name}", path.read_bytes())
    exit_code, _, stderr = export_model(f"{s3_bucket.uri}/models/a", "torch-export", f"{s3_bucket.uri}/out/a b.pt2")
    assert exit_code == 0, stderr
    data = s3_bucket.client.get_object(Bucket=s3_bucket.name, Key="out/a b.pt2")["Body"].read()
    assert torch.export.load(io.BytesIO(data)).module()(random_images(2, 32))["scores"].shape == (2, 1)


def detections(*places: tuple[float, int, float]) -> PredictedBoxes:
    """One image's detections: score, label id, left edge."""
    scores, label_ids, lefts = zip(*places, strict=True)
    boxes = torch.tensor([[left, 0.0, left + 5, 5.0] for left in lefts])
    return PredictedBoxes(boxes[None], torch.tensor(scores)[None], torch.tensor(label_ids)[None])


@pytest.mark.parametrize(
    ("found", "is_the_same"),
    [
        (detections((0.9, 1, 3.04), (0.5, 0, 7.0), (0.0, 0, 0.0)), True),
        (detections((0.9, 1, 3.0), (0.5, 0, 7.0), (0.0, 1, 99.0)), True),  # an unused slot means nothing
        (detections((0.9, 1, 3.06), (0.5, 0, 7.0), (0.0, 0, 0.0)), False),
        (detections((0.9, 0, 3.0), (0.5, 0, 7.0), (0.0, 0, 0.0)), False),
        (detections((0.902, 1, 3.0), (0.5, 0, 7.0), (0.0, 0, 0.0)), False),
        (detections((0.9, 1, 3.0), (0.0, 0, 7.0), (0.0, 0, 0.0)), False),
        (detections((0.9, 1, 3.0), (0.5, 0, 7.0), (0.4, 0, 0.0)), False),
        (detections((0.9, 1, float("nan")), (0.5, 0, 7.0), (0.0, 0, 0.0)), False),
        (detections((float("nan"), 1, 3.0), (0.5, 0, 7.0), (0.0, 0, 0.0)), False),
    ],
)
def test_what_counts_as_the_same_detections(found: PredictedBoxes, is_the_same: bool) -> None:
    expected = detections((0.9, 1, 3.0), (0.5, 0, 7.0), (0.0, 0, 0.0))
    assert detection_diff(expected, found).is_within_bounds == is_the_same


def test_tied_detections_may_stand_in_any_order_and_at_the_end_be_others() -> None:
    expected = detections((0.9, 1, 3.0), (0.9, 0, 7.0), (0.4, 0, 1.0))
    found = detections((0.9, 0, 7.0), (0.9, 1, 3.0), (0.4, 1, 30.0))
    assert detection_diff(expected, found) == DetectionDiff(box_px=0, score=0, matched=2, unmatched=0)
    others = detections((0.9, 0, 7.0), (0.9, 0, 3.0), (0.4, 0, 1.0))
    assert detection_diff(expected, others).unmatched == 1


def test_an_answer_of_another_form_is_refused() -> None:
    expected = detections((0.9, 1, 3.0))
    with pytest.raises(ExportError, match=r"scores as torch\.float64"):
        detection_diff(expected, expected._replace(scores=expected.scores.double()))
