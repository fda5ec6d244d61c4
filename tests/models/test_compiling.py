"""A network is compiled beside the labelling, kept, and only trusted where no one else can have touched it."""

import os
import shutil
import time

import pytest
import torch

from locray.model_files import ArtifactInfo
from locray.models import build_model, compiling
from locray.models import compiled as compiled_networks
from locray.models.artifact import load_artifact, save_artifact
from locray.models.compiled import Wanted, cache_folder, find
from locray.models.compiling import Compilation, Compiler
from locray.models.inference import Network, Trial

CPU = torch.device("cpu")
BATCH = 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("model"))
    info = ArtifactInfo(architecture="small_cnn", classes=["a", "b", "c"], input_size=32)
    description = save_artifact(folder, build_model("small_cnn", 3), info)
    return Wanted(folder, description.model_id, "bfloat16", BATCH, num_threads=1)


@pytest.fixture(scope="module")
def compiled(wanted, tmp_path_factory):
    """The file that a child process has compiled: its name and content."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no C++ compiler: {compiler} is not in PATH, and CXX names no other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        compilation = Compilation(wanted)
        while not compilation.is_done:
            time.sleep(0.1)
        assert compilation.failure() is None
        (file,) = cache_folder().iterdir()
        return file.name, file.read_bytes()


@pytest.fixture
def kept(compiled, cache):
    """That file in a cache of its own."""
    cache.mkdir(parents=True, mode=0o700)
    file = cache / compiled[0]
    file.write_bytes(compiled[1])
    file.chmod(0o600)
    return file


@pytest.mark.slow
def test_a_compiled_network_gives_the_same(wanted, kept):
    assert kept.exists()
    package = find(wanted)
    assert package is not None
    run = package.run
    model = load_artifact(wanted.model_uri).model
    network = Network(model, CPU, torch.bfloat16)
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    assert network.challenge(run, images).score_difference < 0.01
    with torch.inference_mode():
        boxes, _, label_ids = model.answer(run(images))
    own = network.predict(images)
    assert torch.equal(label_ids, own.label_ids)
    torch.testing.assert_close(boxes, own.boxes_xyxy_px, rtol=0.02, atol=0.5)


@pytest.mark.slow
def test_what_was_made_for_something_else_is_not_taken(wanted, kept):
    assert kept.exists()
    others = ({"precision": "float32"}, {"batch_size": 4}, {"num_threads": 2}, {"model_id": "small_cnn@000000000000"})
    for other in others:
        assert find(Wanted(**{name: getattr(wanted, name) for name in wanted.__slots__} | other)) is None


@pytest.mark.slow
def test_what_is_damaged_is_not_taken(wanted, kept):
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert find(wanted) is None
    kept.write_bytes(b"")
    assert find(wanted) is None


@pytest.mark.slow
def test_what_others_may_have_written_is_not_taken(wanted, kept, cache):
    kept.chmod(0o620)
    assert find(wanted) is None
    kept.chmod(0o600)
    cache.chmod(0o702)
    assert find(wanted) is None
    cache.chmod(0o700)
    elsewhere = cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to(elsewhere)
    assert find(wanted) is None


def network_of(wanted):
    return Network(load_artifact(wanted.model_uri).model, CPU, torch.bfloat16)


def images_u8():
    return torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class ToldTrials(Network):
    """A network whose trials end as it is told; the compiled form is the one that was tried last."""

    def __init__(self, wanted, is_won):
        super().__init__(load_artifact(wanted.model_uri).model, CPU, torch.bfloat16)
        self.is_won, self.tried = is_won, 0

    def challenge(self, other, images_u8):
        self.tried += 1
        trial = super().challenge(other, images_u8)
        assert trial.score_difference < 0.01
        return Trial(1.0, 2.0 if self.is_won else 0.5, trial.score_difference)


def label_batches(network, wanted, count=5):
    """Labels; returns the form that ran the first batch."""
    compiler = Compiler(network, wanted, 32, BATCH * count)
    first = network._run
    for _ in range(count):
        network.predict(images_u8())
        compiler.after_batch(images_u8(), 0.05)
    return first


@pytest.mark.slow
def test_what_has_won_once_runs_from_the_first_batch_on(wanted, kept):
    assert kept.exists()
    network = ToldTrials(wanted, is_won=True)
    assert label_batches(network, wanted) is network._static
    assert network.tried == 1

    again = ToldTrials(wanted, is_won=True)
    assert label_batches(again, wanted) is not again._static
    assert again.tried == 0
    torch.testing.assert_close(
        again.predict(images_u8()).scores, network_of(wanted).predict(images_u8()).scores, rtol=0, atol=0.01
    )
    alone = images_u8()[:1]
    assert torch.equal(again.predict(alone).scores, network_of(wanted).predict(alone).scores)


@pytest.mark.slow
def test_what_has_lost_once_is_not_tried_again(wanted, kept):
    assert kept.exists()
    network = ToldTrials(wanted, is_won=False)
    label_batches(network, wanted)
    assert network.tried == 1
    again = ToldTrials(wanted, is_won=True)
    assert label_batches(again, wanted) is again._static
    assert again.tried == 0


@pytest.mark.slow
def test_a_trial_of_long_ago_is_made_again(wanted, kept, cache):
    assert kept.exists()
    find(wanted).remember(has_won=False)
    (note,) = set(cache.iterdir()) - {kept}
    os.utime(note, (0, 0))
    compiled_networks._tidy(cache)
    network = ToldTrials(wanted, is_won=True)
    label_batches(network, wanted)
    assert network.tried == 1


def test_little_work_starts_nothing(wanted):
    compiler = Compiler(network_of(wanted), wanted, 32, 1_000)
    for _ in range(5):
        compiler.after_batch(torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8), 0.05)
    assert compiler._compilation is None


@pytest.mark.slow
def test_a_compilation_that_fails_is_told_and_leaves_the_network_as_it_is(wanted, caplog):
    missing = Wanted(wanted.model_uri + "-gone", wanted.model_id, wanted.precision, BATCH, 1)
    network = Network(load_artifact(wanted.model_uri).model, CPU, torch.bfloat16)
    compiler = Compiler(network, missing, 32, 10**9)
    images = torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8)
    caplog.set_level("INFO", compiling.__name__)
    while not caplog.records:
        compiler.after_batch(images, 0.05)
        time.sleep(0.05)
    assert "not compiled" in caplog.text
    assert "no model at" in caplog.text
    assert network.predict(images).scores.isfinite().all()


def test_a_folder_of_others_is_told_and_nothing_is_started(wanted, cache, caplog):
    cache.mkdir(parents=True)
    cache.chmod(0o707)
    compiler = Compiler(network_of(wanted), wanted, 32, 10**9)
    caplog.set_level("INFO", compiling.__name__)
    for _ in range(5):
        compiler.after_batch(torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8), 0.05)
    assert [record.getMessage() for record in caplog.records] == [
        f"the network is not compiled: {cache} is not a folder of this user that no one else may write to"
    ]
    assert compiler._compilation is None


@pytest.mark.slow
def test_the_child_ends_with_its_parent(wanted, cache):
    compilation = Compilation(wanted)
    compilation._process.stdin.close()
    assert compilation._process.wait(60) != 0
    assert not list(cache.glob("*.pt2"))


@pytest.mark.slow
def test_what_is_long_unused_is_deleted(wanted, kept, cache):
    unfinished = cache / "making-0"
    unfinished.mkdir()
    for path in (kept, unfinished):
        os.utime(path, (0, 0))
    assert find(wanted) is not None
    compiled_networks._tidy(cache)
    assert list(cache.iterdir()) == [kept]
