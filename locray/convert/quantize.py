"""`locray quantize`: makes an artifact whose backbone computes in 8-bit integers, and compares it with the original."""

import os
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from locray import storage
from locray.config import QuantizeConfig
from locray.convert.comparison import OutputDiff, decode_images
from locray.convert.int8 import quantized_backbone
from locray.datasets import read_split
from locray.errors import UsageError
from locray.images.decode import DecodeLimits
from locray.inference.devices import dtype_for, keep_freed_memory
from locray.inference.network import Network
from locray.inference.onnx import replace_backbone
from locray.models.artifact import LoadedArtifact, load_artifact, save_artifact
from locray.models.files import read_int8_graph
from locray.models.interface import BACKBONE, PredictedBoxes
from locray.progress import Progress, Report

_BATCH_SIZE = 32
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """The quantized model and how it compares with the original, as `--json` prints it."""

    output: str
    model_id: str
    calibrated_images: int
    compared_images: int
    same_class: float
    """See `OutputDiff.same_class`."""
    same_box: float
    """See `OutputDiff.same_box`."""
    images_per_s: float
    images_per_s_before: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, rounded for reading."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def quantize(config: QuantizeConfig, report: Report) -> QuantizeSummary:
    """Calibrates on half of a sample of the split, writes the new artifact, and compares on the other half.

    The new artifact holds the weights of the original and the quantized graph; it has a model id of its own.

    Raises:
        UsageError: the model, the data set or the output is not usable.
        StoreError: the artifact can't be written.
    """
    report(Progress("checking"))
    model_uri, output_uri = storage.normalise(config.model), storage.normalise(config.output)
    artifact = _load_original(model_uri, output_uri)
    dataset = read_split(config, config.split)
    uris = [record.image_uri for record in dataset.records]
    chosen = random.Random(0).sample(uris, min(len(uris), 2 * config.sample))  # noqa: S311 (no secret)
    report(Progress("decoding", planned=len(chosen)))
    images_u8 = decode_images(chosen, artifact.info.input_size, DecodeLimits.of(config))
    num_images = len(images_u8)
    if num_images < 2:  # noqa: PLR2004 (one to calibrate on and one to compare)
        raise UsageError(f"the split {config.split!r} of {config.data} holds {num_images} usable images: expected 2")
    calibration, rest = images_u8[: num_images // 2], images_u8[num_images // 2 :]

    report(Progress("calibrating", planned=len(calibration)))
    graph = quantized_backbone(artifact.model, _batches(calibration))
    written = save_artifact(output_uri, artifact.model, artifact.info, graph)

    report(Progress("comparing", planned=len(rest)))
    before, before_s = _predict(model_uri, rest)
    after, after_s = _predict(output_uri, rest)
    diff = OutputDiff.of(before, after)
    return QuantizeSummary(
        output=output_uri,
        model_id=written.model_id,
        calibrated_images=len(calibration),
        compared_images=len(rest),
        same_class=diff.same_class,
        same_box=diff.same_box,
        images_per_s=len(rest) / after_s,
        images_per_s_before=len(rest) / before_s,
    )


def _load_original(model_uri: str, output_uri: str) -> LoadedArtifact:
    """Loads the model, after checking that it can be quantized here."""
    if model_uri == output_uri:
        raise UsageError(f"--output {output_uri} is the model itself: expected another folder")
    artifact = load_artifact(model_uri)
    if artifact.info.int8_sha256 is not None:
        raise UsageError(f"{model_uri} is quantized already. Use the model that it was made from")
    if not hasattr(artifact.model, BACKBONE):
        raise UsageError(
            f"{model_uri} is a {artifact.info.architecture}, which has no backbone to quantize: expected a "
            "localizer/<backbone> or a detector/<name>[/<backbone>]"
        )
    return artifact


def _predict(model_uri: str, images_u8: Tensor) -> tuple[PredictedBoxes, float]:
    """Predictions for images (N, S, S, 3) as a labelling worker computes them, and the seconds that they took."""
    num_threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    artifact = load_artifact(model_uri)
    graph = read_int8_graph(model_uri, artifact.info)
    if graph is not None:
        replace_backbone(artifact.model, graph, num_threads)
    network = Network(artifact.model, _CPU, dtype_for("auto" if graph is None else "fp32", _CPU))
    batches = _batches(images_u8)
    for batch in (batches[0], batches[-1]):  # the first batch of each shape is slower
        network.predict(batch)
    started = time.perf_counter()
    parts = [network.predict(batch) for batch in batches]
    seconds = time.perf_counter() - started
    return PredictedBoxes(*(torch.cat(values) for values in zip(*parts, strict=True))), seconds


def _batches(images_u8: Tensor) -> list[Tensor]:
    return [images_u8[start : start + _BATCH_SIZE] for start in range(0, len(images_u8), _BATCH_SIZE)]
