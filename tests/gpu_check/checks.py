"""A device beside the processors: training, predictions of every kind of network, memory, and speed.

Needs torch, torchvision, numpy, pyarrow, pydantic and Pillow alone.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from locray.boxes import Letterbox, iou_matrix
from locray.config import TrainConfig
from locray.demo.drawing import SHAPES, draw_sample
from locray.images.letterbox import letterbox_image
from locray.inference.batches import Batches
from locray.inference.cuda import CudaGraph
from locray.inference.devices import dtype_for
from locray.inference.network import Network
from locray.models.architectures import build_model
from locray.models.interface import PredictedBoxes
from locray.training.batches import BOXES, HAS_BOX, IMAGES, LABEL_IDS, OUTCOMES
from locray.training.learner import Learner

MIN_SHARE, MIN_IOU = 0.99, 0.9
MAX_LOSS_DIFFERENCE = 0.01
MAX_SCORE_DIFFERENCE = 0.05
ARCHITECTURES = (
    "small_cnn",
    "localizer/resnet18",
    "detector/fcos/resnet18",
    "detector/retinanet/resnet18",
    "detector/ssdlite320/mobilenet_v2",
    "detector/faster_rcnn/resnet18",
)
LABELS = tuple(SHAPES)


@dataclass(frozen=True)
class Check:
    """One line of the page."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Size:
    """What is computed, and how much of it."""

    trained: str
    """The architecture that is trained, and whose labels and speed are compared."""
    trained_px: int
    input_px: int
    """Of the other architectures."""
    num_images: int
    """To compare."""
    batch_size: int
    num_steps: int
    speed_s: float
    """Time for each figure of the speed."""


SMALL = Size("small_cnn", 32, 64, 48, 8, 120, 0.05)
FULL = Size("localizer/resnet18", 224, 224, 512, 64, 300, 2.0)


def run_checks(device: torch.device, size: Size) -> Iterator[Check]:
    """Yields the results as they come."""
    yield check_losses(device, size)
    model, check = train(device, size)
    yield check
    images = draw_batch(size, seed=1, num_images=size.num_images)[IMAGES].numpy()
    yield from compare_labels(model, images, device, size)
    for architecture in ARCHITECTURES:
        yield compare_scores(architecture, device, size)
    if device.type == "cuda":
        yield check_memory(device)
    yield from measure_speed(model, device, size)


def draw_batch(size: Size, seed: int, num_images: int) -> dict[str, Tensor]:
    """A batch of training: drawn pictures with one object each."""
    images = np.zeros((num_images, size.trained_px, size.trained_px, 3), np.uint8)
    boxes = np.zeros((num_images, 1, 4), np.float32)
    label_ids = np.arange(num_images)[:, None] % len(LABELS)
    for number in range(num_images):
        picture, box = draw_sample(np.random.default_rng([seed, number]), LABELS[int(label_ids[number, 0])])
        height, width, _ = picture.shape
        letterbox = Letterbox.fit(width, height, size.trained_px)
        letterbox_image(picture, letterbox, images[number])
        boxes[number, 0] = letterbox.to_input(np.asarray(box, dtype=float))
    has_box, outcomes = np.ones((num_images, 1), bool), np.zeros(num_images, np.int64)
    found = {IMAGES: images, BOXES: boxes, LABEL_IDS: label_ids, HAS_BOX: has_box, OUTCOMES: outcomes}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def new_learner(device: torch.device, size: Size, **options: Any) -> Learner:
    config = TrainConfig(data="-", format="csv", output="-", model=size.trained, batch_size=size.batch_size, **options)
    torch.manual_seed(0)
    model: Any = build_model(size.trained, len(LABELS), size.trained_px)
    model.to(device)
    return Learner(model, config, size.num_steps, device)


def step(learner: Learner, batch: dict[str, Tensor], number: int) -> float:
    torch.manual_seed(number)
    loss = learner.compute(batch)
    learner.apply(number)
    return loss


def check_losses(device: torch.device, size: Size) -> Check:
    """The first steps of a training in float32."""
    batch = draw_batch(size, seed=0, num_images=size.batch_size)
    courses = []
    for one in (torch.device("cpu"), device):
        learner = new_learner(one, size, precision="fp32")
        courses.append([step(learner, batch, number) for number in range(5)])
    largest = max(abs(ours / theirs - 1) for theirs, ours in zip(*courses, strict=True))
    found = f"losses of 5 steps differ by at most {largest:.2%}"
    return Check(f"training, {size.trained}, fp32", largest <= MAX_LOSS_DIFFERENCE, found)


def train(device: torch.device, size: Size) -> tuple[Any, Check]:
    """A network trained with the options' defaults. Returned on the CPU, ready to predict."""
    batches = [draw_batch(size, seed=10 + seed, num_images=size.batch_size) for seed in range(8)]
    learner = new_learner(device, size)
    started = time.perf_counter()
    losses = [step(learner, batches[number % len(batches)], number) for number in range(size.num_steps)]
    seconds = time.perf_counter() - started
    before, after = np.mean(losses[:5]), np.mean(losses[-5:])
    found = (
        f"loss {before:.2f} to {after:.2f} in {size.num_steps} steps of {size.batch_size} images, "
        f"{size.num_steps * size.batch_size / seconds:,.0f} images/s, {learner.precision_bits} bits"
    )
    is_learning = math.isfinite(after) and after < 0.7 * before
    return learner.average.model.cpu().eval(), Check(f"training, {size.trained}, defaults", bool(is_learning), found)


def predict(model: Any, images: NDArray[np.uint8], device: torch.device, dtype: torch.dtype, size: Size) -> Any:
    """The rows that were predicted, their predictions, and the network."""
    network = Network(copy.deepcopy(model), device, dtype)
    done, failures = Batches(network, size.batch_size).predict(images, np.arange(len(images)))
    assert not failures, failures
    rows = np.concatenate([rows for rows, _ in done])
    return rows, PredictedBoxes(*(torch.cat([part[i] for _, part in done]) for i in range(3))), network


def compare_labels(model: Any, images: NDArray[np.uint8], device: torch.device, size: Size) -> Iterator[Check]:
    """The best detection of every image, as the device and as the processors find it."""
    with torch.inference_mode():
        parts = [model.predict(part.permute(0, 3, 1, 2)) for part in torch.from_numpy(images).split(size.batch_size)]
    expected = PredictedBoxes(*(torch.cat([part[i] for part in parts]) for i in range(3)))
    for precision in ("fp32", "bf16", "fp16", "auto"):
        if device.type == "cpu" and precision in {"bf16", "fp16"}:
            continue  # emulated on most processors
        dtype = dtype_for(precision, device)  # type: ignore[arg-type]
        rows, found, _ = predict(model, images, device, dtype, size)
        same_rows = sorted(rows) == list(range(len(images)))
        same_class = float((found.label_ids[:, 0] == expected.label_ids[:, 0]).float().mean())
        pairs = zip(found.boxes_xyxy_px[:, :1].numpy(), expected.boxes_xyxy_px[:, :1].numpy(), strict=True)
        same_box = float(np.mean([iou_matrix(a, b)[0, 0] >= MIN_IOU for a, b in pairs]))
        name = f"labels, {size.trained}, {precision}" + (f" ({str(dtype)[6:]})" if precision == "auto" else "")
        passed = same_rows and min(same_class, same_box) >= MIN_SHARE
        yield Check(name, passed, f"{len(rows)} rows, same class {same_class:.3f}, same box {same_box:.3f}")


def compare_scores(architecture: str, device: torch.device, size: Size) -> Check:
    """A network with random weights: its scores on the device and on the processors, and whether a graph held it."""
    torch.manual_seed(0)
    model: Any = build_model(architecture, 3, 32 if architecture == "small_cnn" else size.input_px)
    model.eval()
    shape = (2 * size.batch_size, model.input_size_px, model.input_size_px, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.predict(images.permute(0, 3, 1, 2)).scores
    _, found, network = predict(model, images.numpy(), device, torch.float32, size)
    difference = float((found.scores - expected).abs().max())
    is_captured = device.type != "cuda" or isinstance(network._captured, CudaGraph)
    form = "CUDA graph" if device.type == "cuda" and is_captured else "eager"
    passed = difference <= MAX_SCORE_DIFFERENCE and is_captured
    return Check(f"scores, {architecture}, fp32", passed, f"differ by at most {difference:.4f}, {form}")


def check_memory(device: torch.device) -> Check:
    """A batch too large for the GPU's memory is halved."""
    model: Any = build_model("localizer/resnet18", 3, 224).eval()  # type: ignore[attr-defined]
    images = np.zeros((64, 224, 224, 3), np.uint8)
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(device).total_memory)
    try:
        batches = Batches(Network(model, device, torch.float32), 2048)
        done, failures = batches.predict(images, np.arange(len(images)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    num_done = sum(len(rows) for rows, _ in done)
    passed = num_done == len(images) and not failures and batches.batch_size < 2048
    return Check("memory, 1 GiB", passed, f"{num_done} images, batches of 2048 became {batches.batch_size}")


def measure_speed(model: Any, device: torch.device, size: Size) -> Iterator[Check]:
    """Images per second of the network, copies to and from the device included."""
    for dtype in dict.fromkeys((torch.float32, dtype_for("auto", device))):
        for batch_size in (size.batch_size // 2, size.batch_size, 2 * size.batch_size):
            batches = Batches(Network(copy.deepcopy(model), device, dtype), batch_size)
            images = np.zeros((4 * batch_size, size.trained_px, size.trained_px, 3), np.uint8)
            rows = np.arange(len(images))
            batches.predict(images, rows)
            num_images, started = 0, time.perf_counter()
            while time.perf_counter() - started < size.speed_s:
                batches.predict(images, rows)
                num_images += len(images)
            rate = num_images / (time.perf_counter() - started)
            name = f"speed, {size.trained} at {size.trained_px} px, {str(dtype)[6:]}, batches of {batch_size}"
            yield Check(name, True, f"{rate:,.0f} images/s")
