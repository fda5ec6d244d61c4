"""From a detector's artifact to rows, with the pixels of each image."""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from locray import schema
from locray.boxes import Letterbox
from locray.config import InferenceOptions
from locray.errors import UsageError
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import ArtifactInfo

SIZE = 64
FRAMES = [(64, 64), (128, 64), (32, 60)]


def predictor_of(folder, score_threshold, batch_size, precision="fp32", *, device="auto", num_threads=1):
    options = InferenceOptions(
        score_threshold=score_threshold, batch_size=batch_size, precision=precision, device=device
    )
    return Predictor(ModelSpec.read(folder, options), num_threads)


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The artifact of a detector that finds several objects in every image."""
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("detector"))
    model = build_model("detector/fcos/resnet18", 3, SIZE)
    with torch.no_grad():
        model.torchvision_model.head.classification_head.cls_logits.bias.copy_(torch.tensor([0.5, -1.0, -9.0]))
    info = ArtifactInfo(architecture="detector/fcos/resnet18", classes=["a", "b", "c"], input_size=SIZE)
    save_artifact(folder, model, info)
    return folder


def decoded():
    """A unit of three images and one that didn't decode, as the first stage returns it."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[3] = 0
    unit = decoded_rows(pixels)
    return pa.Table.from_pylist(unit, schema=schema.decoded_schema(SIZE)), pixels


def decoded_rows(pixels):
    frames = [*FRAMES, (None, None)]
    return [
        {
            schema.ORDINAL: number,
            schema.IMAGE_URI: f"s3://bucket/{number}.jpg",
            schema.ETAG: "v1",
            schema.SIZE_BYTES: 10,
            schema.LAST_MODIFIED: None,
            schema.WIDTH: width,
            schema.HEIGHT: height,
            schema.FORMAT: "jpeg",
            schema.STATUS: schema.STATUS_FAILED if width is None else schema.STATUS_OK,
            schema.ERROR_CODE: "corrupt" if width is None else None,
            schema.ERROR_MESSAGE: "cut off" if width is None else None,
            schema.IMAGE: image.ravel(),
        }
        for number, (image, (width, height)) in enumerate(zip(pixels, frames, strict=True))
    ]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_row_holds_all_detections_of_its_image_best_first(batch_size, detector):
    unit, pixels = decoded()
    rows = predictor_of(detector, 0.3, batch_size)(unit).to_pylist()
    with torch.no_grad():
        own = load_artifact(detector).model.predict(torch.from_numpy(pixels[:3]).permute(0, 3, 1, 2))
    for image, (width, height) in enumerate(FRAMES):
        found = rows[image][schema.DETECTIONS]
        assert {one[schema.LABEL] for one in found} == {"a", "b"}
        scores = [one[schema.SCORE] for one in found]
        assert scores == sorted(scores, reverse=True)
        wanted = own.scores[image][own.scores[image] >= 0.3]
        # A box that lies entirely in the padding is dropped.
        assert 1 < len(found) <= len(wanted)
        best = Letterbox.fit(width, height, SIZE).to_image(own.boxes_xyxy_px[image].double().numpy())
        best = best.clip(0, [width, height, width, height])
        first = [found[0][name] for name in schema.CORNERS]
        assert np.abs(best - first).max(axis=1).min() < 0.05
    assert rows[3][schema.DETECTIONS] is None


def test_the_threshold_leaves_out_and_nothing_left_is_an_empty_list(detector):
    unit, _ = decoded()
    few, none = (predictor_of(detector, threshold, 4)(unit).to_pylist() for threshold in (0.4, 0.99))
    assert all(one[schema.SCORE] >= 0.4 for row in few[:3] for one in row[schema.DETECTIONS])
    assert [row[schema.DETECTIONS] for row in none] == [[], [], [], None]


def test_the_id_of_a_detector_fits_a_folder(detector):
    assert load_artifact(detector).model_id.startswith("detector-fcos-resnet18@")


def test_a_non_finite_answer_fails_its_own_image_only(tmp_path):
    """The weights are finite, but the network overflows on bright images."""
    model = build_model("small_cnn", 3)
    with torch.no_grad():
        for layer, gain in ((0, 1), (3, 1e20), (6, 1e20)):
            model.features[layer].weight.zero_()
            model.features[layer].weight[0, 0, 1, 1] = gain
            model.features[layer].bias.zero_()
    folder = str(tmp_path / "model")
    save_artifact(folder, model, ArtifactInfo(architecture="small_cnn", classes=["a", "b", "c"], input_size=32))
    pixels = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    pixels[1] = 255
    unit = pa.Table.from_pylist(decoded_rows(pixels), schema=schema.decoded_schema(32))
    for batch_size in (1, 4):
        rows = predictor_of(folder, 0.0, batch_size)(unit).to_pylist()
        assert [row[schema.STATUS] for row in rows] == ["ok", "failed", "ok", "failed"]
        assert [row[schema.ERROR_CODE] for row in rows] == [None, "non_finite", None, "corrupt"]
        assert [row[schema.DETECTIONS] is None for row in rows] == [False, True, False, True]
        assert rows[1][schema.ERROR_MESSAGE] == "the model's output for this image is not finite"


@pytest.mark.parametrize("error", [RuntimeError("too bright\nfor us"), ValueError("too bright"), KeyError()])
def test_an_image_that_the_model_fails_on_costs_itself_a_row_and_no_other(detector, error):
    unit, pixels = decoded()
    predictor = predictor_of(detector, 0.3, 4)
    model = predictor._network.static_part.model
    network = model.network

    def failing(images):
        if any(torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels[1])) for image in images):
            raise error
        return network(images)

    expected = predictor(unit).to_pylist()
    model.network = failing
    rows = predictor(unit).to_pylist()
    assert [row[schema.ERROR_CODE] for row in rows] == [None, "model_error", None, "corrupt"]
    assert rows[1][schema.ERROR_MESSAGE] == ("KeyError" if isinstance(error, KeyError) else "too bright")
    for number in (0, 2):
        labels = [[one[schema.LABEL] for one in found[number][schema.DETECTIONS]] for found in (rows, expected)]
        assert labels[0] == labels[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_told(detector):
    with pytest.raises(UsageError, match="--device gpu: PyTorch finds no GPU"):
        predictor_of(detector, 0.3, 2, device="gpu")


def openmp():
    """Returns the OpenMP library that torch has loaded, if any."""
    maps = Path("/proc/self/maps")
    names = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    found = [name for name in names if re.search(r"torch.*/lib(gomp|omp|iomp5)\b.*\.so", name)]
    if not found:
        pytest.skip("torch computes without OpenMP here")
    return ctypes.CDLL(found[0])


def in_a_thread(call):
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def test_every_labelling_thread_uses_the_requested_threads(detector):
    """Ray calls the model from another thread than the one that loads it."""
    library = openmp()
    wanted = in_a_thread(library.omp_get_max_threads) + 1
    predictor = predictor_of(detector, 0.3, 2, num_threads=wanted)

    def label():
        predictor(decoded()[0].slice(3))  # without images torch computes nothing
        return library.omp_get_max_threads()

    assert in_a_thread(label) == wanted
