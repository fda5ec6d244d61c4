"""A network is compiled beside the labelling, kept, and only trusted where no one else can have touched it."""

import hashlib
import os
import shutil
import time

import pytest
import torch

from locray.inference import compiled as compiled_networks
from locray.inference import compiling
from locray.inference.compiled import Wanted, cache_folder, find
from locray.inference.compiling import Compilation, Compiler
from locray.inference.network import Likeness, Network, Trial
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import ArtifactInfo

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
        (file,) = cache_folder().glob("*.pt2")
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
    run = package.load()
    model = load_artifact(wanted.model_uri).model
    network = Network(model, CPU, torch.bfloat16)
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8)
    likeness = network.challenge(run, images).likeness
    assert likeness.score_difference < 0.01
    assert likeness.same_boxes == 1
    with torch.inference_mode():
        boxes, _, label_ids = model.postprocess(run(images))
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
    """A network whose trials end as it is told; what they compute is real."""

    def __init__(self, wanted, is_won):
        super().__init__(load_artifact(wanted.model_uri).model, CPU, torch.bfloat16)
        self.is_won, self.tried = is_won, 0

    def challenge(self, other, images_u8):
        self.tried += 1
        assert self.take_if_same(other, images_u8, self.predict(images_u8))
        if not self.is_won:
            self.be_plain()
        return Trial(1.0, 2.0 if self.is_won else 0.5, Likeness(0.0, 1.0))

    @property
    def is_compiled(self):
        return self._run is not self._static


def label_batch(network, compiler, seconds=0.05):
    compiler.after_batch(images_u8(), network.predict(images_u8()), seconds)


def label_batches(network, wanted, count=5, num_images=100):
    compiler = Compiler(network, wanted, num_images)
    for _ in range(count):
        label_batch(network, compiler)
    return compiler


def label_until_over(network, compiler):
    while not compiler.is_over:
        label_batch(network, compiler)
        time.sleep(0.05)


def notes(cache):
    return sorted(path.suffix for path in cache.iterdir() if path.suffix in {".won", ".lost"})


@pytest.mark.slow
def test_what_has_won_once_runs_from_the_second_batch_on(wanted, kept, cache):
    assert kept.exists()
    network = ToldTrials(wanted, is_won=True)
    label_batches(network, wanted)
    assert network.is_compiled
    assert network.tried == 1
    assert notes(cache) == [".won"]

    again = ToldTrials(wanted, is_won=True)
    label_batches(again, wanted, count=1)
    assert again.is_compiled
    assert again.tried == 0
    plain = network_of(wanted)
    torch.testing.assert_close(again.predict(images_u8()).scores, plain.predict(images_u8()).scores, rtol=0, atol=0.01)
    alone = images_u8()[:1]
    assert torch.equal(again.predict(alone).scores, plain.predict(alone).scores)


@pytest.mark.slow
def test_what_has_lost_once_is_not_tried_again(wanted, kept, cache):
    assert kept.exists()
    network = ToldTrials(wanted, is_won=False)
    label_batches(network, wanted)
    assert network.tried == 1
    assert notes(cache) == [".lost"]
    again = ToldTrials(wanted, is_won=True)
    label_batches(again, wanted)
    assert not again.is_compiled
    assert again.tried == 0


@pytest.mark.slow
def test_a_loss_outweighs_a_win_and_takes_its_place(wanted, kept, cache):
    assert kept.exists()
    package = find(wanted)
    package.remember(has_won=True)
    kept.with_suffix(".lost").touch()
    assert package.has_won is False
    package.remember(has_won=True)
    assert notes(cache) == [".won"]
    package.remember(has_won=False)
    assert notes(cache) == [".lost"]


@pytest.mark.slow
def test_a_trial_of_long_ago_is_made_again(wanted, kept):
    assert kept.exists()
    find(wanted).remember(has_won=False)
    os.utime(kept.with_suffix(".lost"), (0, 0))
    network = ToldTrials(wanted, is_won=True)
    label_batches(network, wanted)
    assert network.tried == 1


@pytest.mark.slow
def test_a_run_whose_images_are_not_counted_tries_nothing(wanted, kept, cache):
    """As the sample of a plan."""
    assert kept.exists()
    network = ToldTrials(wanted, is_won=True)
    label_batches(network, wanted, num_images=0)
    assert network.tried == 0
    assert notes(cache) == []


@pytest.mark.slow
def test_what_has_won_and_answers_something_else_now_is_not_taken(wanted, kept, cache, caplog):
    assert kept.exists()
    find(wanted).remember(has_won=True)
    model = build_model("small_cnn", 3).eval()
    with torch.no_grad():
        model.class_head.bias += torch.tensor([9.0, 0.0, 0.0, 0.0])
    other = Network(model, CPU, torch.bfloat16)
    caplog.set_level("INFO", compiling.__name__)
    label_batches(other, wanted, count=1)
    assert other._run is other._static
    assert "doesn't give the same answers" in caplog.text
    assert notes(cache) == [".lost"]


@pytest.mark.slow
def test_a_package_that_can_not_be_loaded_is_told_and_left_alone(wanted, kept, cache, caplog):
    data = b"no package"
    kept.unlink()
    broken = cache / f"{wanted.key}-{hashlib.sha256(data).hexdigest()[:24]}.pt2"
    broken.write_bytes(data)
    broken.chmod(0o600)
    network = network_of(wanted)
    caplog.set_level("INFO", compiling.__name__)
    label_batches(network, wanted)
    assert "can't be loaded" in caplog.text
    assert network._run is network._static
    assert notes(cache) == [".lost"]


def test_no_image_is_blamed_for_what_was_compiled(wanted):
    network = network_of(wanted)
    calls = []

    def fails(images):
        calls.append(images)
        if len(calls) > 1:
            raise RuntimeError("out of luck")
        return network._static(images)

    plain = network.predict(images_u8())
    assert network.take_if_same(fails, images_u8(), plain)
    assert torch.equal(network.predict(images_u8()).scores, plain.scores)
    assert torch.equal(network.predict(images_u8()).scores, plain.scores)
    assert len(calls) == 2


@pytest.mark.slow
def test_a_long_run_compiles_tries_and_remembers(wanted, compiled, cache, caplog):
    assert compiled  # so there is a compiler
    network = network_of(wanted)
    compiler = Compiler(network, wanted, 10**9)
    caplog.set_level("INFO", compiling.__name__)
    label_until_over(network, compiler)
    assert (
        "the compiled network is taken: Trial(" if network._made_for else "its trial was lost: Trial("
    ) in caplog.text
    assert notes(cache) == [".won" if network._made_for else ".lost"]


def test_without_a_compiler_nothing_is_started(wanted, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-compiler-at-all")
    caplog.set_level("INFO", compiling.__name__)
    compiler = label_batches(network_of(wanted), wanted, num_images=10**9)
    assert "no-compiler-at-all is not in PATH" in caplog.text
    assert compiler._compilation is None


@pytest.mark.slow
def test_a_detectors_outputs_keep_their_order(tmp_path, compiled):
    assert compiled  # so there is a compiler
    torch.manual_seed(0)
    folder = str(tmp_path / "detector")
    info = ArtifactInfo(architecture="detector/fcos/resnet18", classes=["a", "b"], input_size=64)
    model_id = save_artifact(folder, build_model("detector/fcos/resnet18", 2, 64), info).model_id
    of_detector = Wanted(folder, model_id, "float32", BATCH, num_threads=1)
    compilation = Compilation(of_detector)
    assert compilation.failure() is None
    network = Network(load_artifact(folder).model, CPU, torch.float32)
    images = torch.randint(0, 256, (BATCH, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs, plain = find(of_detector).load()(images), network._static(images)
    assert len(outputs) == len(plain)
    for found, wanted_output in zip(outputs, plain, strict=True):
        torch.testing.assert_close(found, wanted_output, rtol=1e-3, atol=1e-3)


def test_little_work_starts_nothing(wanted):
    compiler = label_batches(network_of(wanted), wanted, num_images=1_000)
    assert compiler._compilation is None


@pytest.mark.slow
def test_a_compilation_that_fails_is_told_and_leaves_the_network_as_it_is(wanted, caplog):
    missing = Wanted(wanted.model_uri + "-gone", wanted.model_id, wanted.precision, BATCH, 1)
    network = Network(load_artifact(wanted.model_uri).model, CPU, torch.bfloat16)
    compiler = Compiler(network, missing, 10**9)
    caplog.set_level("INFO", compiling.__name__)
    label_until_over(network, compiler)
    assert "not compiled" in caplog.text
    assert "no model at" in caplog.text
    assert network.predict(images_u8()).scores.isfinite().all()


def test_a_folder_of_others_is_told_and_nothing_is_started(wanted, cache, caplog):
    cache.mkdir(parents=True)
    cache.chmod(0o707)
    caplog.set_level("INFO", compiling.__name__)
    compiler = label_batches(network_of(wanted), wanted, num_images=10**9)
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
