"""An artifact restores the network that was saved, or reports why it can't."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch

from locray.config import InferenceOptions
from locray.errors import UsageError
from locray.labelling.model import ModelSpec
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import INFO_FILE, WEIGHTS_FILE, ArtifactInfo, has_artifact, read_artifact_info

INFO = ArtifactInfo(
    architecture="localizer/mobilenet_v3_small",
    classes=["Bolt", "Wrench"],
    input_size=64,
    score_threshold=0.25,
    provenance={"seed": 3},
    metrics={"mean_iou": 0.5},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("artifact") / "model"
    model = build_model(INFO.architecture, 2, 64)
    return folder, model, save_artifact(str(folder), model, INFO)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def change(folder, **changes):
    file = folder / INFO_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_round_trip_gives_the_same_answers(saved):
    folder, model, description = saved
    loaded = load_artifact(str(folder))
    batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for one, two in zip(loaded.model.predict(batch), model.eval().predict(batch), strict=True):
            assert torch.equal(one, two)
    assert not loaded.model.training
    assert loaded.info == description.info
    assert loaded.info.model_copy(update={"weights_sha256": "", "network_sha256": ""}) == INFO
    assert loaded.model_id == description.model_id == read_artifact_info(str(folder)).model_id


def test_the_id_is_a_name_that_fits_a_folder_and_a_hash(saved):
    assert re.fullmatch(r"localizer-mobilenet_v3_small@[0-9a-f]{12}", saved[2].model_id)


def test_the_id_changes_with_the_weights_and_with_the_description(saved, tmp_path):
    _, model, description = saved
    same = save_artifact(str(tmp_path / "same"), model, INFO)
    other_info = save_artifact(str(tmp_path / "a"), model, INFO.model_copy(update={"score_threshold": 0.5}))
    with torch.no_grad():
        changed = load_artifact(str(tmp_path / "same")).model
        next(changed.parameters()).add_(1e-3)
    other_weights = save_artifact(str(tmp_path / "b"), changed, INFO)
    assert same.model_id == description.model_id
    assert len({description.model_id, other_info.model_id, other_weights.model_id}) == 3


def test_the_description_needs_no_weights(folder):
    (folder / WEIGHTS_FILE).unlink()
    assert read_artifact_info(str(folder)).info.classes == ["Bolt", "Wrench"]


@pytest.mark.parametrize("missing", [INFO_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(missing, folder):
    (folder / missing).unlink()
    with pytest.raises(UsageError, match=rf"no model at .*{missing} does not exist"):
        load_artifact(str(folder))
    assert has_artifact(str(folder)) == (missing != INFO_FILE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"classes": []}, "classes: "),
        ({"classes": ["Bolt", "Bolt"]}, "holds a label twice"),
        ({"input_size": "64"}, "input_size: "),
        ({"score_threshold": float("nan")}, "score_threshold: "),
        ({"format_version": 2}, "format_version: "),
        ({"architecture": "localizer/resnet81", "network_sha256": ""}, "no backbone named"),
        ({"architecture": "localizer/resnet18", "network_sha256": ""}, r"don't fit the network .* such as"),
        ({"classes": ["Bolt", "Nut", "Wrench"], "network_sha256": ""}, r"don't fit the network .* such as"),
        ({"architecture": "localizer/resnet18"}, r"don't fit the network .* were changed after the training"),
        ({"input_size": 96}, r"don't fit the network .* were changed after the training"),
    ],
)
def test_a_wrong_description_is_told(changes, message, folder):
    change(folder, **changes)
    with pytest.raises(UsageError, match=message):
        load_artifact(str(folder))


def test_weights_that_do_not_fit_are_found_without_a_network(folder):
    change(folder, classes=["Bolt", "Nut", "Wrench"])
    with pytest.raises(UsageError, match="don't fit the network"):
        ModelSpec.read(str(folder), InferenceOptions())
    change(folder, classes=["bolt", "WRENCH"])
    assert ModelSpec.read(str(folder), InferenceOptions()).input_size_px == 64


def test_a_description_that_is_not_json_is_told(folder):
    (folder / INFO_FILE).write_bytes(b"\xff\xfe no json")
    with pytest.raises(UsageError, match="Invalid JSON"):
        load_artifact(str(folder))


def test_weights_of_another_artifact_or_cut_off_are_told(folder):
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match="truncated, changed or taken from another artifact"):
        load_artifact(str(folder))


def weights_with_their_hash(folder, data):
    import hashlib

    (folder / WEIGHTS_FILE).write_bytes(data)
    change(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def test_weights_that_are_no_safetensors_are_told(folder):
    weights_with_their_hash(folder, b"\x80\x04pickle")
    with pytest.raises(UsageError, match="no safetensors file"):
        load_artifact(str(folder))


def test_weights_that_are_not_finite_are_never_run(folder):
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    tensors["class_head.1.bias"][0] = float("nan")
    weights_with_their_hash(folder, safetensors.torch.save(tensors))
    with pytest.raises(UsageError, match=r"not finite, such as class_head\.1\.bias"):
        load_artifact(str(folder))


def test_a_diverged_network_is_not_saved(tmp_path):
    model = build_model("small_cnn", 2)
    with torch.no_grad():
        model.class_head.bias[0] = float("inf")
    with pytest.raises(UsageError, match="training has diverged"):
        save_artifact(str(tmp_path / "model"), model, INFO)
    assert not (tmp_path / "model").exists()
