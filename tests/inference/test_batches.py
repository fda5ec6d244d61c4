"""A network that fails in the middle of a unit: what is blamed on an image, on the memory, and on the device."""

import numpy as np
import pytest
import torch

from locray.inference import batches
from locray.inference.batches import Batches
from locray.inference.cuda import GPU_ERRORS, DeviceError
from locray.inference.network import Network
from locray.models.architectures import build_model

SIZE = 32
NUM_IMAGES = 21
ROWS = np.arange(1, NUM_IMAGES)


class FailingNetwork:
    """A prepared network whose static part raises what `error_for(images)` returns, if anything."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = Network(build_model("small_cnn", 3).eval(), torch.device("cpu"), torch.float32)
        self.error_for = lambda _: None
        self.sizes = []
        model = self.network.static_part.model
        run = model.network

        def run_or_fail(images):
            self.sizes.append(len(images))
            error = self.error_for(images)
            if error is not None:
                raise error
            return run(images)

        model.network = run_or_fail


@pytest.fixture
def failing():
    return FailingNetwork()


@pytest.fixture(scope="module")
def images():
    """Row 0 is not asked for; the first pixel of each image is its row."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(NUM_IMAGES)
    return pixels


@pytest.fixture(scope="module")
def expected(images):
    """Boxes of all rows."""
    network = FailingNetwork().network
    return network.predict_eagerly(torch.from_numpy(images)).boxes_xyxy_px


def check(done, expected, without=()):
    rows = np.concatenate([rows for rows, _ in done])
    assert sorted(rows) == sorted(set(ROWS) - set(without))
    torch.testing.assert_close(torch.cat([found.boxes_xyxy_px for _, found in done]), expected[rows])


def out_of_memory_above(limit):
    def error_for(images):
        if len(images) > limit:
            return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return None

    return error_for


def test_too_little_memory_halves_the_batch_which_is_told_once(failing, images, expected, caplog):
    failing.error_for = out_of_memory_above(3)
    runner = Batches(failing.network, 16)
    with caplog.at_level("WARNING", batches.__name__):
        done, failures = runner.predict(images, ROWS)
        again, _ = runner.predict(images, ROWS)
    assert failures == {}
    check(done, expected)
    check(again, expected)
    assert runner.batch_size == 2
    assert failing.sizes == [16, 8, 4] + [2] * 10 + [2] * 10
    assert caplog.messages == [
        "batches of 16 images fail for want of memory: 2 images per batch from now on, as with --batch-size 2"
    ]


def test_too_little_memory_in_the_middle_loses_nothing(failing, images, expected):
    sizes = iter([None, None, MemoryError()])
    failing.error_for = lambda _: next(sizes, None)
    done, failures = Batches(failing.network, 4).predict(images, ROWS)
    assert failures == {}
    check(done, expected)
    assert [len(rows) for rows, _ in done] == [4, 4] + [2] * 6


def test_too_little_memory_for_one_image_ends_the_process(failing, images):
    failing.error_for = out_of_memory_above(0)
    with pytest.raises(DeviceError, match="memory is too short for one image: CUDA out of memory"):
        Batches(failing.network, 8).predict(images, ROWS)
    assert failing.sizes == [8, 4, 2, 1]


def test_an_image_that_the_network_fails_on_fails_alone(failing, images, expected):
    failing.error_for = lambda batch: ValueError("too bright\nfor us") if (batch[:, 0, 0, 0] == 6).any() else None
    runner = Batches(failing.network, 4)
    done, failures = runner.predict(images, ROWS)
    assert failures == {6: "too bright"}
    check(done, expected, without=[6])
    assert runner.batch_size == 4


def test_a_device_that_computes_nothing_any_more_is_to_blame_itself(failing, images):
    """cuDNN and cuBLAS raise plain RuntimeErrors."""
    count = iter(range(100))
    failing.error_for = lambda _: (
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED") if next(count) > 1 else None
    )
    with pytest.raises(DeviceError, match="the cpu computes no known image any more: cuDNN error: CUDNN"):
        Batches(failing.network, 4).predict(images, ROWS)
    assert failing.sizes == [4, 4, 4, 1]
    assert issubclass(DeviceError, GPU_ERRORS)


def test_a_device_that_fails_while_images_are_tried_alone_is_to_blame_itself(failing, images):
    outcomes = iter([True, False, False, *[True] * 50])  # a batch, a known image, one image, and all others
    failing.error_for = lambda _: RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR") if next(outcomes) else None
    with pytest.raises(DeviceError, match="MAPPING_ERROR"):
        Batches(failing.network, 4).predict(images, ROWS[:4])


def test_a_batch_that_fails_though_each_of_its_images_succeeds_is_too_large(failing, images, expected):
    failing.error_for = lambda batch: RuntimeError("cuDNN error: INTERNAL_ERROR") if len(batch) > 4 else None
    runner = Batches(failing.network, 8)
    done, failures = runner.predict(images, ROWS)
    assert failures == {}
    check(done, expected)
    assert runner.batch_size == 4


def test_an_error_of_the_gpu_itself_is_passed_on(failing, images):
    failing.error_for = lambda _: torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        Batches(failing.network, 4).predict(images, ROWS)


def test_a_compiled_form_for_the_larger_batch_is_dropped(failing, images, expected):
    def compiled_form(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    network = failing.network.with_compiled(compiled_form)
    done, _ = Batches(network, 8).predict(images, ROWS)
    check(done, expected)
    assert failing.sizes[:2] == [4, 4]
