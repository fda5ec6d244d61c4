"""A compiled network labels like the eager one, and is written only if it does and is faster."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from locray import schema
from locray.cli.main import main as cli
from locray.config import InferenceOptions
from locray.convert.compile import compile_network
from locray.inference import packages
from locray.inference.network import Network
from locray.inference.packages import open_package
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import ArtifactInfo
from tests.helpers.commands import locray

BATCH = 4
FITTING = ("--batch-size", str(BATCH), "--threads", "1", "--precision", "fp32")
DETECTIONS = schema.DETECTIONS


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def needs_compiler():
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C++ compiler: {compiler} is not in PATH, and CXX names no other")


def write_model(folder, change=None):
    torch.manual_seed(0)
    model = build_model("small_cnn", 3)
    if change is not None:
        with torch.no_grad():
            change(model)
    save_artifact(str(folder), model, ArtifactInfo(architecture="small_cnn", classes=["a", "b", "c"], input_size=32))
    return folder


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with its package, its files' hashes before, the command's output, and the user's state folder."""
    needs_compiler()
    folder = tmp_path_factory.mktemp("compiled")
    model = write_model(folder / "model")
    before = hashes(model)
    state = str(folder / "state")
    done = locray("compile", "--model", str(model), *FITTING, "--min-speedup", "0", "--json", XDG_STATE_HOME=state)
    assert done.returncode == 0, done.stderr
    return model, before, json.loads(done.stdout.splitlines()[-1]), state


def decoded_images(count):
    """A unit of images that don't fill whole batches, and one that didn't decode."""
    random = np.random.default_rng(0)
    rows = [
        {
            schema.ORDINAL: number,
            schema.IMAGE_URI: f"{number}.jpg",
            schema.SIZE_BYTES: 10,
            schema.WIDTH: 64,
            schema.HEIGHT: 48,
            schema.FORMAT: "jpeg",
            schema.STATUS: schema.STATUS_OK if number else schema.STATUS_FAILED,
            schema.IMAGE: random.integers(0, 256, 32 * 32 * 3, dtype=np.uint8),
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=schema.decoded_schema(32))


def predictor(model, compiled, **options):
    options = {"batch_size": BATCH, "precision": "fp32", "device": "cpu", "score_threshold": 0, **options}
    spec = ModelSpec.read(str(model), InferenceOptions(compiled=str(compiled), **options))
    return Predictor(spec, num_threads=1)


def assert_same(rows, others):
    for row, other in zip(rows.to_pylist(), others.to_pylist(), strict=True):
        found, expected = row.pop(DETECTIONS), other.pop(DETECTIONS)
        assert row == other
        if expected is None:
            assert found is None
            continue
        assert [one[schema.LABEL] for one in found] == [one[schema.LABEL] for one in expected]
        for one, same in zip(found, expected, strict=True):
            numbers = (schema.SCORE, schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX)
            assert [one[name] for name in numbers] == pytest.approx([same[name] for name in numbers], rel=1e-3)


@pytest.mark.slow
def test_the_artifact_stays_and_the_figures_are_told(made):
    model, before, told, state = made
    assert hashes(model) == before
    assert told["package"].startswith(f"{model}/compiled/")
    assert told["package"].endswith(".pt2")
    assert told["reason"] is None
    assert told["agrees"]
    assert told["compared_images"] == 2 * BATCH
    assert told["speedup"] == pytest.approx(told["compiled_images_per_s"] / told["eager_images_per_s"], rel=0.01)
    assert len(files(model / "compiled")) == 2
    assert os.listdir(f"{state}/locray/compiled")


@pytest.mark.slow
def test_a_compiled_network_labels_like_the_eager_one(made, caplog, monkeypatch):
    model, _, told, state = made
    monkeypatch.setenv("XDG_STATE_HOME", state)
    caplog.set_level("INFO", packages.__name__)
    compiled, unit = predictor(model, "auto"), decoded_images(2 * BATCH + 2)
    assert caplog.messages == [f"the network runs in its compiled form: {told['package']}"]
    batches = []
    predict = compiled._network.predict
    compiled._network.predict = lambda images: batches.append(len(images)) or predict(images)
    assert_same(compiled(unit), predictor(model, "never")(unit))
    assert batches == [BATCH, BATCH, BATCH], "compiled code takes whole batches only"


@pytest.mark.slow
def test_a_strangers_package_runs_only_where_its_folder_is_named(made, caplog, monkeypatch, tmp_path):
    model, *_ = made
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    caplog.set_level("INFO", packages.__name__)
    predictor(model, "auto")
    predictor(model, model / "compiled")
    stranger, named = caplog.messages
    assert "did not compile it here" in stranger
    assert "runs in its compiled form" in named


@pytest.mark.slow
def test_a_package_with_a_flipped_byte_is_not_used(made, caplog, tmp_path):
    model, *_ = made
    shutil.copytree(model / "compiled", tmp_path / "compiled")
    (file,) = (tmp_path / "compiled").glob("*.pt2")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    caplog.set_level("INFO", packages.__name__)
    unit = decoded_images(3)
    assert_same(predictor(model, tmp_path / "compiled")(unit), predictor(model, "never")(unit))
    assert "is not the file that its record describes" in caplog.messages[0]


@pytest.mark.slow
def test_a_package_for_another_batch_size_is_not_used(made, caplog):
    model, *_ = made
    caplog.set_level("INFO", packages.__name__)
    predictor(model, model / "compiled", batch_size=8)
    assert f"batch size {BATCH} (here 8)" in caplog.messages[0]


@pytest.mark.slow
def test_the_public_loader_takes_over_when_the_private_one_is_gone(made, monkeypatch, tmp_path):
    _, _, told, _ = made
    package = Path(told["package"]).read_bytes()
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    expected = open_package(package)(images)
    loader = torch._C._aoti.AOTIModelPackageLoader
    calls = []

    def changed(*arguments):
        if not calls:
            calls.append(arguments)
            raise TypeError("other arguments than before")
        return loader(*arguments)

    changed.load_metadata_from_package = loader.load_metadata_from_package
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", changed)
    found = open_package(package)(images)
    assert calls
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
@pytest.mark.s3
def test_packages_lie_in_buckets_too(made, s3_bucket):
    model, *_ = made
    for path in [*model.iterdir(), *(model / "compiled").iterdir()]:
        if path.is_file():
            s3_bucket.put(f"m/{path.relative_to(model)}", path.read_bytes())
    unit = decoded_images(3)
    with_package = predictor(f"{s3_bucket.uri}/m", f"{s3_bucket.uri}/m/compiled")
    assert with_package._network._compiled is not None
    assert_same(with_package(unit), predictor(model, "never")(unit))


@pytest.mark.slow
def test_a_network_that_is_no_faster_is_not_written(tmp_path):
    needs_compiler()
    model, output = write_model(tmp_path / "model"), tmp_path / "packages"
    done = locray("compile", "--model", str(model), "--output", str(output), *FITTING, "--min-speedup", "1000")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "Nothing was written: the compiled network is " in said
    assert said.endswith("times as fast as the eager one; expected 1000")
    assert not output.exists()
    assert files(model) == ["model.json", "model.safetensors"]


@pytest.mark.slow
def test_a_network_that_gives_other_results_is_not_written(tmp_path):
    """This network overflows, and NaN equals nothing."""
    needs_compiler()

    def overflow(model):
        for layer in (3, 6):
            model.features[layer].weight.mul_(1e25)

    model = write_model(tmp_path / "model", overflow)
    done = locray("compile", "--model", str(model), *FITTING, "--min-speedup", "0", "--json")
    assert done.returncode == 1, done.stderr
    assert "Nothing was written: the compiled network gives other results" in " ".join(done.stderr.split())
    assert json.loads(done.stdout.splitlines()[-1])["package"] is None
    assert files(model) == ["model.json", "model.safetensors"]


@pytest.mark.slow
def test_a_detectors_outputs_keep_their_order():
    needs_compiler()
    torch.manual_seed(0)
    network = Network(build_model("detector/fcos/resnet18", 2, 64).eval(), torch.device("cpu"), torch.float32)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    compiled = open_package(compile_network(network, images))
    with torch.inference_mode():
        for found, expected in zip(compiled(images), network.static_part(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def said_by(capsys, *arguments):
    code = cli(["compile", *arguments])
    return code, " ".join(capsys.readouterr().err.split())


def test_a_missing_compiler_is_named_with_its_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler-at-all")
    code, said = said_by(capsys, "--model", str(write_model(tmp_path / "model")))
    assert code == 2
    assert "no-compiler-at-all is not in PATH. Install one (on Debian: apt-get install g++)" in said


def test_what_is_wrong_is_told_before_anything_is_compiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "true")
    (tmp_path / "file").write_bytes(b"")
    model = str(write_model(tmp_path / "model"))
    assert said_by(capsys, "--model", str(tmp_path / "nothing"))[0] == 2
    code, said = said_by(capsys, "--model", model, "--images", str(tmp_path / "nothing"))
    assert (code, "nothing" in said) == (2, True)
    code, said = said_by(capsys, "--model", model, "--images", str(tmp_path / "model"))
    assert (code, "holds no usable image" in said) == (2, True)
    code, said = said_by(capsys, "--model", model, "--batch-size", "0")
    assert (code, "--batch-size" in said) == (2, True)
    code, said = said_by(capsys, "--model", model, "--output", str(tmp_path / "file" / "packages"))
    assert (code, f"{tmp_path}/file is not a folder that this user may write to" in said) == (2, True)


def test_a_folder_that_may_not_be_written_to_is_told(unprivileged_folder, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "true")
    model = write_model(unprivileged_folder / "model")
    model.chmod(0o500)
    code, said = said_by(capsys, "--model", str(model))
    assert (code, f"{model}/compiled can't be written" in said) == (2, True)


@pytest.mark.slow
def test_a_compiler_that_fails_is_told(tmp_path):
    done = locray("compile", "--model", str(write_model(tmp_path / "model")), *FITTING, CXX="false")
    assert done.returncode == 1
    assert "the network can't be compiled: InductorError: InvalidCxxCompiler" in " ".join(done.stderr.split())
