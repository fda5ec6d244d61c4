"""Choice of the compiled network: one made for this machine at the user's request, or none."""

import hashlib

import pytest
import torch

from locray import storage
from locray.config import InferenceOptions
from locray.inference import packages
from locray.inference.compile_key import CompileKey
from locray.inference.packages import (
    PackageRecord,
    PackageSource,
    delete_stale_packages,
    load_fitting,
    log_packages,
    write_package,
)
from locray.labelling.model import ModelSpec
from locray.table.key import PredictionKey

PACKAGE = b"no package, though its hash is right"
EXAMPLE = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "locray" / "compiled"


@pytest.fixture
def key():
    return CompileKey.for_this_machine("small_cnn@0123456789ab", "float32", 2, 1, torch.device("cpu"))


def reason(source, key, caplog):
    """Returns the logged reason why no package is used."""
    caplog.clear()
    caplog.set_level("INFO", packages.__name__)
    assert load_fitting(source, key, lambda: EXAMPLE) is None
    (record,) = caplog.records
    return record.getMessage()


def write(folder, key, *, trust=False, package=PACKAGE):
    return write_package(str(folder), PackageRecord.of(key, PACKAGE, 1.5), package, trust=trust)


def test_never_and_nothing_there_are_said(tmp_path, key, caplog):
    assert "--compiled never" in reason(PackageSource.of("never", str(tmp_path)), key, caplog)
    said = reason(PackageSource.of("auto", str(tmp_path)), key, caplog)
    assert said == (
        f"the network runs in its eager form: {tmp_path}/compiled holds no compiled network; `locray compile` makes one"
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("torch_version", "2.0.0", "torch version 2.0.0 (here 2."),
        ("processor_flags", "0" * 12, "processor flags 000000000000 (here "),
        ("precision", "bfloat16", "precision bfloat16 (here float32)"),
        ("batch_size", 32, "batch size 32 (here 2)"),
        ("num_threads", 8, "num threads 8 (here 1)"),
        ("sources", "f" * 12, "sources ffffffffffff (here "),
        ("model_id", "small_cnn@ffffffffffff", "model id small_cnn@ffffffffffff (here small_cnn@0123456789ab)"),
    ],
)
def test_a_package_for_something_else_is_not_used(tmp_path, key, caplog, field, value, said):
    write(tmp_path, key.model_copy(update={field: value}))
    found = reason(PackageSource.of(str(tmp_path), "model"), key, caplog)
    assert "fits; the nearest has" in found
    assert said in found


def test_the_nearest_of_several_is_named(tmp_path, key, caplog):
    write(tmp_path, key.model_copy(update={"batch_size": 4, "num_threads": 9, "precision": "bfloat16"}))
    write(tmp_path, key.model_copy(update={"batch_size": 8}))
    assert "the nearest has batch size 8 (here 2). " in reason(PackageSource.of(str(tmp_path), "m"), key, caplog)


def test_a_package_that_was_changed_is_not_used(tmp_path, key, caplog):
    uri = write(tmp_path, key, package=PACKAGE[:-1] + b"!")
    assert f"{uri} is not the file that its record describes" in reason(
        PackageSource.of(str(tmp_path), "m"), key, caplog
    )


def test_a_package_that_does_not_load_is_not_used(tmp_path, key, caplog):
    uri = write(tmp_path, key)
    assert f"{uri} does not run here (" in reason(PackageSource.of(str(tmp_path), "m"), key, caplog)


def test_a_record_that_is_none_is_passed_over(tmp_path, key, caplog):
    storage.write_bytes(f"{tmp_path}/other.json", b"{}")
    assert "holds no compiled network" in reason(PackageSource.of(str(tmp_path), "m"), key, caplog)


def test_auto_uses_only_what_this_user_has_compiled(tmp_path, key, caplog, state_folder):
    """A package contains code and comes with the model, whose author may be untrusted."""
    folder = tmp_path / "compiled"
    uri = write(folder, key)
    said = reason(PackageSource.of("auto", str(tmp_path)), key, caplog)
    assert f"{uri} fits, but this user did not compile it here" in said
    assert f"--compiled {folder} runs it" in said
    write(folder, key, trust=True)
    assert [path.name for path in state_folder.iterdir()] == [hashlib.sha256(PACKAGE).hexdigest()]
    # Loading is tried now and fails, as the file is not a package.
    assert "does not run here" in reason(PackageSource.of("auto", str(tmp_path)), key, caplog)


def test_packages_of_what_the_model_was_before_are_deleted(tmp_path, key):
    current, before = write(tmp_path, key), write(tmp_path, key.model_copy(update={"model_id": "small_cnn@before"}))
    (tmp_path / "note.txt").write_text("kept")
    delete_stale_packages(str(tmp_path), key.model_id)
    assert current != before
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"{key.name}.pt2",
        f"{key.name}.json",
        "note.txt",
    }


def test_names_of_files_tell_keys_apart(key):
    others = [key.model_copy(update={"batch_size": 4}), key.model_copy(update={"processor_flags": "0" * 12})]
    assert len({key.name, *(other.name for other in others)}) == 3


def test_no_package_is_used_unless_a_run_says_so():
    model = ModelSpec(PredictionKey("model", "hash"), "model", 32, InferenceOptions())
    assert model.packages == PackageSource.of("never", "model")


def test_a_run_says_what_it_has_to_choose_from(tmp_path, key, caplog):
    caplog.set_level("INFO", packages.__name__)
    auto, named = (PackageSource.of(compiled, str(tmp_path)) for compiled in ("auto", f"{tmp_path}/compiled"))
    log_packages(PackageSource.of("never", str(tmp_path)), key.model_id)
    assert not caplog.messages
    log_packages(auto, key.model_id)
    write(tmp_path / "compiled", key)
    log_packages(auto, "small_cnn@ffffffffffff")
    log_packages(auto, key.model_id)
    log_packages(named, key.model_id)
    write(tmp_path / "compiled", key.model_copy(update={"num_threads": 9}), trust=True)
    log_packages(PackageSource.of("auto", str(tmp_path)), key.model_id)
    parts = ("holds no", "holds no", "they are code; --compiled", "holds 1 compiled", "holds 2 compiled")
    assert len(caplog.messages) == len(parts)
    for message, part in zip(caplog.messages, parts, strict=True):
        assert part in message
