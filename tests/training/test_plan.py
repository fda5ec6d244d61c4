"""Options and data are checked before any work."""

import json
import shutil

import pytest
import yaml
from PIL import Image

from locray.config import TrainConfig, load_config
from locray.demo.images import write_dataset
from locray.errors import UsageError
from locray.training.output import claim_output, finished_artifact
from locray.training.plan import make_plan
from locray.training.run import initial_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"train": 30, "val": 10, "other": 3, "more": 20}, seed=0)
    return folder


def config(data, **changes):
    options = {"data": str(data), "format": "csv", "output": str(data / "out"), "model": "small_cnn"} | changes
    return TrainConfig(**options)


def test_a_plan_resolves_what_the_options_leave_open(data):
    plan = make_plan(config(data, batch_size=8, epochs=3))
    assert plan.input_size_px == 32
    assert plan.num_steps == 3 * 4
    assert (len(plan.train.packed), len(plan.val.packed)) == (30, 10)
    assert (plan.train.augmented, plan.val.augmented) == (True, False)
    assert initial_model(plan).num_classes == len(plan.classes)


def test_without_a_validation_split_a_part_is_set_apart(tmp_path):
    write_dataset(tmp_path, {"train": 30}, seed=0)
    plan = make_plan(config(tmp_path))
    assert len(plan.val.packed) > 0
    assert len(plan.train.packed) + len(plan.val.packed) == 30
    assert not set(plan.train.packed.image_uris) & set(plan.val.packed.image_uris)


def test_the_run_name_depends_on_what_changes_the_model(data, tmp_path):
    name = make_plan(config(data)).run_name
    assert make_plan(config(data, output=str(tmp_path), log_level="debug")).run_name == name
    others = [config(data, epochs=3), config(data, seed=1), config(data, train_split="more")]
    assert len({name, *(make_plan(other).run_name for other in others)}) == 4
    named = make_plan(config(data, run_name="mine"))
    assert (named.run_name, named.identity) == ("mine", name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "vco"}, "vco"),
        ({"train_split": "trian"}, "trian"),
        ({"val_split": "vla"}, "vla"),
        ({"workers": 31, "batch_size": 64}, "--workers 31 with a batch of 64 and 30 training images"),
        ({"workers": 9, "batch_size": 8}, "--workers 9 with a batch of 8"),
        ({"run_name": "a/b"}, "--run-name 'a/b': only letters"),
        ({"train_split": "other", "val_split": "train"}, "has classes that split 'other' doesn't"),
    ],
)
def test_wrong_options_are_errors(data, changes, message):
    with pytest.raises(UsageError, match=message):
        make_plan(config(data, **changes))


def test_a_detector_without_any_box_to_learn_is_an_error(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "train" / label / f"{number}.png")
    chosen = config(tmp_path, format="folders", model="detector/fcos/resnet18", input_size=64)
    with pytest.raises(UsageError, match=r"none of the 1\d training images has a box"):
        make_plan(chosen)


def test_an_output_that_is_a_file_is_an_error(data, tmp_path):
    (tmp_path / "model").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"--output .*/model is a file: expected a folder"):
        make_plan(config(data, output=str(tmp_path / "model")))


def test_missing_weights_are_an_error_before_the_run(data, tmp_path):
    chosen = config(data, model="localizer/resnet18", weights=str(tmp_path / "no.pth"))
    with pytest.raises(Exception, match=r"no\.pth does not exist"):
        initial_model(make_plan(chosen))


def test_only_unusable_images_are_an_error(tmp_path):
    write_dataset(tmp_path, {"train": 12, "val": 4}, seed=0)
    for image in (tmp_path / "images").iterdir():
        image.write_bytes(json.dumps({"not": "an image"}).encode())
    with pytest.raises(UsageError, match=r"none of 12 sampled training images can be used \(unsupported_format\)"):
        make_plan(config(tmp_path))


def test_an_output_belongs_to_one_run(data, tmp_path):
    """Another run is refused, and nothing changes; --overwrite deletes the other run and nothing else."""
    first = make_plan(config(data, output=str(tmp_path / "m"), epochs=3))
    claim_output(first)
    claim_output(first)  # resumed
    settings = yaml.safe_load((tmp_path / "m" / "train.yaml").read_text())
    assert (settings["epochs"], settings["data"], settings["seed"]) == (3, str(data), 0)
    assert settings.keys().isdisjoint({"output", "run_name", "overwrite", "json", "log_level"})
    other = config(data, output=str(tmp_path / "m"), epochs=4)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"checkpoints of a run named .* --overwrite to delete the other run"):
        claim_output(make_plan(other))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "m" / "notes.txt").write_text("mine")
    overwriting = make_plan(other.model_copy(update={"overwrite": True}))
    assert overwriting.identity == make_plan(other).identity
    claim_output(overwriting)
    assert yaml.safe_load((tmp_path / "m" / "train.yaml").read_text())["epochs"] == 4
    claims = [path.name for path in (tmp_path / "m" / "checkpoints").iterdir()]
    assert claims == [f"{overwriting.run_name}.json"]
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"


def test_an_output_with_another_model_is_refused(data, tmp_path, artifact):
    shutil.copytree(artifact, tmp_path / "m")
    plan = make_plan(config(data, output=str(tmp_path / "m")))
    assert finished_artifact(plan) is None
    with pytest.raises(UsageError, match=r"holds another model \(small_cnn@[0-9a-f]{12}\)"):
        claim_output(plan)
    claim_output(make_plan(config(data, output=str(tmp_path / "m"), overwrite=True)))
    assert not (tmp_path / "m" / "model.json").exists()


def test_the_settings_of_a_model_train_it_again(data, tmp_path):
    first = make_plan(config(data, output=str(tmp_path / "m"), epochs=3, flip="both", learning_rate=0.1))
    claim_output(first)
    again = load_config(TrainConfig, config_file=tmp_path / "m" / "train.yaml", flags={"output": str(tmp_path / "n")})
    assert make_plan(again).identity == first.identity
