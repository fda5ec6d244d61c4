"""Computation on a GPU gives the same results as on a CPU, and repeats exactly if requested."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from locray import schema
from locray.config import InferenceOptions, TrainConfig
from locray.demo.images import write_dataset
from locray.inference.batches import Batches
from locray.inference.cuda import CudaGraph
from locray.inference.devices import dtype_for
from locray.inference.network import Network
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist
from locray.models.architectures import build_model
from locray.models.detections import Candidates
from locray.models.suppression import suppress
from locray.training.learner import Learner
from locray.training.plan import make_plan
from locray.training.run import initial_model

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

CUDA = torch.device("cuda")
ARCHITECTURES = [
    ("localizer/resnet18", 64),
    ("detector/fcos/resnet18", 64),
    ("detector/retinanet/resnet18", 64),
    ("detector/ssdlite320/mobilenet_v2", 64),
    ("detector/faster_rcnn/resnet18", 64),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"train": 16, "val": 4}, seed=0)
    return folder


def test_a_training_takes_the_same_course(data: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=str(data), format="csv", output=str(tmp_path), model="small_cnn", batch_size=16, precision="fp32"
    )
    plan = make_plan(config)
    batch = {name: torch.from_numpy(part) for name, part in plan.train(0, 0, 0).items()}
    courses = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = initial_model(plan)
        assert isinstance(model, torch.nn.Module)
        model.to(device)
        learner = Learner(model, config, plan.num_steps, device)
        losses = []
        for step in range(5):
            torch.manual_seed(step)
            losses.append(learner.compute(batch))
            learner.apply(step)
        courses.append(losses)
    assert courses[1] == pytest.approx(courses[0], rel=0.01)


def test_images_are_labelled_the_same(data: Path, artifact: str) -> None:
    uris = sorted(map(str, (data / "images").iterdir()))
    unknown = {name: [None] * len(uris) for name in schema.LISTING_SCHEMA.names[1:]}
    listing = pa.table({schema.IMAGE_URI: uris} | unknown, schema=schema.LISTING_SCHEMA)
    on_gpu, on_cpu = (
        ModelSpec.read(artifact, InferenceOptions(score_threshold=0, batch_size=8, precision="fp32", device=device))
        for device in ("gpu", "cpu")
    )
    decoded = decode_rows(InlineWorklist.of(listing, len(uris)).read_unit(0), on_cpu)
    rows = [Predictor(model)(decoded) for model in (on_gpu, on_cpu)]
    for one, other in zip(*(part[schema.DETECTIONS].to_pylist() for part in rows), strict=True):
        assert len(one) == len(other) == 1
        for name, value in other[0].items():
            assert one[0][name] == (value if isinstance(value, str) else pytest.approx(value, rel=0.01, abs=0.05))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "size"), ARCHITECTURES, ids=[name for name, _ in ARCHITECTURES])
def test_a_replayed_network_gives_every_batch_its_own_answer(architecture: str, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, 3, size)
    assert isinstance(model, torch.nn.Module)
    model.eval()
    batches = [torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8) for _ in range(5)]
    with torch.no_grad():
        plain = [model.predict(batch.permute(0, 3, 1, 2)).scores for batch in batches]
    network = Network(model, CUDA, dtype)
    found = [network.predict(batch).scores.cpu() for batch in network.upload(batch.numpy() for batch in batches)]
    assert isinstance(network._captured, CudaGraph)
    for one, other in zip(found, plain, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_suppression_keeps_what_torchvision_keeps_on_a_processor() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(8, 500, 2, generator=generator) * 500
    boxes = torch.cat([corners, corners + 20 + torch.rand(8, 500, 2, generator=generator) * 90], dim=2)
    scores, label_ids = torch.rand(8, 500, generator=generator), torch.randint(0, 9, (8, 500), generator=generator)
    found = Candidates(boxes, scores, label_ids)
    for num_places in (100, 400):
        on_cpu = suppress(found, 0.5, num_places, 640)
        on_gpu = suppress(Candidates(*(values.to(CUDA) for values in found)), 0.5, num_places, 640)
        # Two of thousands of IoUs may lie so near the threshold that rounding decides.
        assert (on_gpu.scores.cpu() == on_cpu.scores).float().mean() > 0.99


def test_a_batch_for_which_the_gpu_has_too_little_memory_is_halved() -> None:
    torch.manual_seed(0)
    model = build_model("localizer/resnet18", 3, 224).eval()  # type: ignore[attr-defined]
    images = torch.randint(0, 256, (64, 224, 224, 3), dtype=torch.uint8).numpy()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        batches = Batches(Network(model, CUDA, torch.float32), 2048)
        done, failures = batches.predict(images, np.arange(len(images)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (sum(len(rows) for rows, _ in done), failures) == (len(images), {})
    assert batches.batch_size < 2048


def test_the_measured_format_is_one_of_the_gpu() -> None:
    assert dtype_for("auto", CUDA) in {torch.float32, torch.float16, torch.bfloat16}
    assert Network(build_model("small_cnn", 2).eval(), CUDA, torch.float16).is_healthy()  # type: ignore[attr-defined]


REPEATED = """
import hashlib, sys, torch
from locray.config import TrainConfig
from locray.training.learner import Learner, use_deterministic_algorithms
from locray.training.plan import make_plan
from locray.training.run import initial_model

use_deterministic_algorithms()
data, output, model, device = sys.argv[1:]
config = TrainConfig(data=data, format="csv", output=output, model=model, input_size=64, batch_size=16,
                     precision="fp32")
plan = make_plan(config)
network = initial_model(plan).to(device)
learner = Learner(network, config, 8, torch.device(device))
batch = {name: torch.from_numpy(part) for name, part in plan.train(0, 0, 0).items()}
for step in range(8):
    torch.manual_seed(step)
    learner.compute(batch)
    learner.apply(step)
weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in network.state_dict().values())
print(hashlib.sha256(weights).hexdigest())
"""
"""A training in its own process: cuBLAS must not have been used before."""


@pytest.mark.parametrize("model", ["small_cnn", "localizer/resnet18", "detector/fcos/resnet18"])
def test_a_repeated_training_gives_bit_identical_weights(model: str, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", REPEATED, str(data), str(tmp_path), model, "cuda"]
    found = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(found) == 1
