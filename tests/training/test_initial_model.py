"""A run starts from a new network, torchvision's weights or an artifact; invalid weights are refused before it."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from locray.config import TrainConfig
from locray.demo.images import write_dataset
from locray.errors import UsageError
from locray.models.architectures import build_model
from locray.models.artifact import save_artifact
from locray.models.files import INFO_FILE, ArtifactInfo
from locray.progress import ignore
from locray.training.plan import make_plan
from locray.training.run import initial_model, train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"train": 12, "val": 4}, seed=0)
    return folder


def config(data, **changes):
    options = {"data": str(data), "format": "csv", "output": str(data / "out"), "model": "small_cnn"} | changes
    return TrainConfig(**options)


def started(chosen):
    """Returns the network and the progress messages about it."""
    told = []
    model = initial_model(make_plan(chosen), lambda progress: told.append(progress.stage))
    return model.state_dict(), told


def artifact_of(uri, architecture, classes, size=32):
    torch.manual_seed(5)
    model = build_model(architecture, len(classes), size)
    save_artifact(str(uri), model, ArtifactInfo(architecture=architecture, classes=list(classes), input_size=size))
    return model.state_dict()


@pytest.mark.parametrize("model", ["small_cnn", "small_resnet"])
def test_all_weights_of_an_artifact_with_the_same_classes_are_used(data, tmp_path, model):
    theirs = artifact_of(tmp_path / "earlier", model, make_plan(config(data)).classes)
    state, told = started(config(data, model=model, weights=str(tmp_path / "earlier")))
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.items())
    assert told == [f"all weights come from {tmp_path / 'earlier'}"]


def test_new_layers_start_as_in_a_run_without_weights(data, tmp_path):
    theirs = artifact_of(tmp_path, "small_cnn", ["a", "b"])
    state, (told,) = started(config(data, weights=f"file://{tmp_path}"))
    fresh, _ = started(config(data))
    for name, tensor in state.items():
        assert torch.equal(tensor, (fresh if name.startswith("class_head.") else theirs)[name]), name
    assert "new are class_head.weight, class_head.bias" in told


def test_a_folder_is_found_by_its_bare_name(data, tmp_path, monkeypatch):
    artifact_of(tmp_path / "earlier", "small_cnn", make_plan(config(data)).classes)
    monkeypatch.chdir(tmp_path)
    assert started(config(data, weights="earlier"))[1] == [f"all weights come from {tmp_path / 'earlier'}"]


@pytest.mark.s3
def test_an_artifact_may_be_in_a_bucket(data, tmp_path, s3_bucket):
    theirs = artifact_of(tmp_path, "small_cnn", make_plan(config(data)).classes)
    for path in tmp_path.iterdir():
        s3_bucket.put(f"models/a/{path.name}", path.read_bytes())
    state, _ = started(config(data, weights=f"{s3_bucket.uri}/models/a"))
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.items())


def test_weights_may_be_a_file_of_torchvision(data, tmp_path):
    whole = torchvision.models.mobilenet_v3_small()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    chosen = config(data, model="localizer/mobilenet_v3_small", input_size=32, weights=str(tmp_path / "weights.pth"))
    state, told = started(chosen)
    assert torch.equal(state["backbone.stages.0.0.0.weight"], whole.features[0][0].weight)
    assert told == []


def refused(chosen):
    """Returns the error message of a training that is refused before any work."""
    with pytest.raises(UsageError) as told:
        train(chosen, ignore)
    assert not Path(chosen.output).exists()
    return str(told.value)


def test_invalid_weights_are_an_error_before_the_run(data, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(config(data, weights=str(tmp_path / "empty")))
    assert f"no model at {tmp_path}/empty" in message
    assert "Expected a folder with model.json and model.safetensors" in message
    (tmp_path / "weights.bin").write_bytes(b"1234")
    assert "Expected a folder with model.json" in refused(config(data, weights=str(tmp_path / "weights.bin")))
    assert "give the folder of an artifact" in refused(config(data, weights="DEFAULT"))
    assert "or the folder of an artifact" in refused(config(data, model="localizer/resnet18", weights="earlier"))


def test_a_wrong_or_damaged_artifact_is_an_error_before_the_run(data, tmp_path):
    artifact_of(tmp_path, "small_resnet", ["a"])
    message = refused(config(data, weights=str(tmp_path)))
    assert f"{tmp_path} is a small_resnet, and --model is small_cnn" in message
    description = tmp_path / INFO_FILE
    changes = {"architecture": "small_resnt", "network_sha256": ""}
    description.write_text(json.dumps(json.loads(description.read_text()) | changes))
    assert "no model named 'small_resnt'" in refused(config(data, weights=str(tmp_path)))
    description.write_text("{")
    assert f"{description} describes no model" in refused(config(data, weights=str(tmp_path)))


def test_the_file_of_an_artifact_is_refused_as_torchvision_weights(data, tmp_path):
    artifact_of(tmp_path, "localizer/mobilenet_v3_small", ["a"])
    chosen = config(data, model="localizer/mobilenet_v3_small", weights=str(tmp_path / "model.safetensors"))
    assert "or the folder of an artifact" in refused(chosen)


def test_freezing_a_model_without_a_backbone_is_an_error(data, tmp_path):
    artifact_of(tmp_path, "small_cnn", make_plan(config(data)).classes)
    message = refused(config(data, weights=str(tmp_path), freeze_epochs=1))
    assert "--freeze-epochs freezes the backbone, and small_cnn has none" in message
