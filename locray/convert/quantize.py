"""An artifact whose backbone computes in 8-bit integers, made of one that doesn't. Called by cli/commands.py.

Half of a sample of images says which ranges the activations have; the other half shows what the integers change.
"""

import os
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from locray import schema, storage
from locray.boxes import iou_matrix
from locray.config import QuantizeConfig
from locray.datasets import read_dataset
from locray.errors import UsageError
from locray.images.decode import DecodeLimits
from locray.images.isolated import IsolatedDecoder
from locray.inference import int8
from locray.labelling.fetch_decode import DecodeSettings, decode_rows
from locray.labelling.identity import PredictorSettings
from locray.labelling.predictor import Predictor, pixels_of
from locray.labelling.worklist import InlineWorklist
from locray.models.artifact import LoadedArtifact, load_artifact, save_artifact
from locray.progress import Progress, Report

_BATCH_SIZE = 32
_CONCURRENT_GETS = 64
_DECODE_TIMEOUT_S = 60.0
_SAME_IOU = 0.9


@dataclass(frozen=True, slots=True)
class QuantizeSummary:
    """What was made, and how it compares with what it was made of, as `--json` prints it."""

    output: str
    model_id: str
    calibrated_images: int
    compared_images: int
    same_class: float
    """Share of the compared images whose best detection has the same class, or which have none in both."""
    same_box: float
    """Share of the compared images whose best detections have an IoU of 0.9 or more, or which have none in both."""
    images_per_s: float
    images_per_s_before: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def quantize(config: QuantizeConfig, report: Report) -> QuantizeSummary:
    """Runs the network over images of the split, writes the artifact with the ranges that it met, and compares.

    Raises:
        UsageError: the model, the data set or the output is not what it should be, or this processor lacks the
            instructions.
        StoreError: the artifact can't be written.
    """
    report(Progress("checking"))
    model_uri, output_uri = storage.normalise(config.model), storage.normalise(config.output)
    artifact = _artifact(model_uri, output_uri)
    dataset = read_dataset(config.data, config.format, config.split, min_score=config.min_score, strict=config.strict)
    uris = [record.image_uri for record in dataset.records]
    chosen = random.Random(0).sample(uris, min(len(uris), 2 * config.sample))  # noqa: S311 (no secret)
    report(Progress("decoding", planned=len(chosen)))
    limits, size_px = DecodeLimits.of(config), artifact.info.input_size
    decoded = _decoded(chosen, DecodeSettings(size_px, limits, _CONCURRENT_GETS, _DECODE_TIMEOUT_S))
    if len(decoded) < 2:  # noqa: PLR2004 (one to learn from and one to compare)
        raise UsageError(f"the split {config.split!r} of {config.data} holds {len(decoded)} usable images: expected 2")
    calibration, rest = decoded[: len(decoded) // 2], decoded[len(decoded) // 2 :]

    report(Progress("calibrating", planned=len(calibration)))
    pixels = pixels_of(calibration[schema.IMAGE], size_px)
    batches = (pixels[start : start + _BATCH_SIZE].copy() for start in range(0, len(pixels), _BATCH_SIZE))
    images = (torch.from_numpy(batch).permute(0, 3, 1, 2) for batch in batches)
    ranges = int8.find_ranges(artifact.model, map(artifact.model.predict, images))
    written = save_artifact(output_uri, artifact.model, artifact.info.model_copy(update={"int8_ranges": ranges}))

    report(Progress("comparing", planned=len(rest)))
    before, before_s = _labelled(model_uri, rest)
    after, after_s = _labelled(output_uri, rest)
    same = [_compare(one, other) for one, other in zip(before, after, strict=True)]
    return QuantizeSummary(
        output=output_uri,
        model_id=written.model_id,
        calibrated_images=len(calibration),
        compared_images=len(rest),
        same_class=float(np.mean([class_ for class_, _ in same])),
        same_box=float(np.mean([box for _, box in same])),
        images_per_s=len(rest) / after_s,
        images_per_s_before=len(rest) / before_s,
    )


def _artifact(model_uri: str, output_uri: str) -> LoadedArtifact:
    """The model, where one can be made of it."""
    if model_uri == output_uri:
        raise UsageError(f"--output {output_uri} is the model itself: expected a folder of its own")
    artifact = load_artifact(model_uri)
    if artifact.info.int8_ranges is not None:
        raise UsageError(f"{model_uri} is quantised already. Give the model that it was made of")
    if not int8.has_backbone(artifact.model):
        raise UsageError(
            f"{model_uri} is a {artifact.info.architecture}, which has no backbone to quantise: expected a "
            "localizer/<backbone> or a detector/<name>[/<backbone>]"
        )
    int8.check_runs_on(torch.device("cpu"))
    return artifact


def _decoded(uris: list[str], settings: DecodeSettings) -> pa.Table:
    """The images that can be used, of `schema.decoded_schema`."""
    rows = InlineWorklist.of_uris(uris, max(1, len(uris))).read_unit(0)
    with IsolatedDecoder(settings.limits, settings.timeout_s, settings.decoded_side_px) as decode:
        decoded = decode_rows(rows, settings, decode)
    return decoded.filter(pc.equal(decoded[schema.STATUS], schema.STATUS_OK)).combine_chunks()


def _labelled(model_uri: str, decoded: pa.Table) -> tuple[list[list[dict[str, Any]]], float]:
    """The detections of each image, and seconds for all of them once the network is warm."""
    predictor = Predictor(PredictorSettings(model_uri, 0.0, _BATCH_SIZE, device="cpu"), len(os.sched_getaffinity(0)))
    predictor(decoded)
    started = time.perf_counter()
    rows = predictor(decoded)
    return [found or [] for found in rows[schema.DETECTIONS].to_pylist()], time.perf_counter() - started


def _compare(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Whether the best of two lists of detections have the same class and, by an IoU of 0.9, the same box."""
    if not one or not other:
        return not one and not other, not one and not other
    boxes = (np.array([[found[0][corner] for corner in schema.CORNERS]]) for found in (one, other))
    return one[0][schema.LABEL_ID] == other[0][schema.LABEL_ID], bool(iou_matrix(*boxes)[0, 0] >= _SAME_IOU)
