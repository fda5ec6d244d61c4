"""Rows of a table compared with new predictions for the same images, made one image at a time.

The rows were predicted in batches, perhaps on another device. The result for an image depends on its batch only by
rounding: libraries sum in a different order for each batch size. On a CPU, batches of 32 and single images of noise
differed by at most 2e-7 in scores and 5e-5 pixels in corners (small_cnn, mobilenet_v2, resnet18, FCOS). TF32, which
cuDNN uses for convolutions, keeps ten bits: a relative error of 1e-3 per operation. bfloat16, which labelling uses
where it is faster unless `--precision fp32` forbids it, keeps eight: 4e-3. The tolerances lie above these errors and
below the effect of a wrong model, decoder, colour order or letterbox.
"""

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from locray import schema
from locray.errors import ErrorCode
from locray.images.decode import DecodeLimits
from locray.images.isolated import IsolatedDecoder
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist, num_units
from locray.progress import Progress, Report
from locray.verification.findings import Check, Findings

SCORE_TOLERANCE = 0.01
BOX_TOLERANCE_PX = 1.0
"""In pixels of the network's input, which may each cover several pixels of the image."""
BF16_SCORE_TOLERANCE = 0.05
BF16_BOX_TOLERANCE_PX = 2.0
"""Used unless `--precision fp32` rules out bfloat16: otherwise every machine of a cluster chooses for itself."""

_IMAGES_PER_UNIT = 32
_UNAVAILABLE = {str(code) for code in (ErrorCode.NOT_FOUND, ErrorCode.ACCESS_DENIED, ErrorCode.CHANGED)}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much two predictions for one image may differ."""

    box_px: float
    """In pixels of the image."""
    score: float
    min_score: float
    """A detection below this score may be missing in one of the two: the threshold may have cut it off."""

    @classmethod
    def of(cls, model: ModelSpec, longer_side_px: int) -> "Tolerance":
        """The tolerance for an image of this size in rows that were predicted with these settings."""
        is_fp32 = model.options.precision == "fp32"
        score, box_px = (
            (SCORE_TOLERANCE, BOX_TOLERANCE_PX) if is_fp32 else (BF16_SCORE_TOLERANCE, BF16_BOX_TOLERANCE_PX)
        )
        return cls(box_px * longer_side_px / model.input_size_px, score, model.score_threshold + score)


def predict_again(rows: pa.Table, model: ModelSpec, findings: Findings, report: Report) -> int:
    """Predicts the images of ok rows again, one at a time, on this machine, and compares.

    A child process decodes them on the CPU: the file may have been replaced, and the decoder updated, since.

    Args:
        rows: columns of a listing, size in pixels and detections.
        model: the model and the settings that the rows were made with; its batch size must be 1.
        findings: Collects the findings.
        report: progress callback.

    Returns:
        Number of rows that could be compared. The images of the others are no longer available in that version.
    """
    assert model.options.batch_size == 1
    if not len(rows):
        return 0
    # On this machine's own device.
    predictor = Predictor(model.with_options(device="auto"), num_threads=len(os.sched_getaffinity(0)))
    worklist = InlineWorklist.of(rows.select(schema.LISTING_SCHEMA.names), _IMAGES_PER_UNIT)
    num_compared = 0
    with IsolatedDecoder(DecodeLimits.of(model.options), model.options.decode_timeout_s) as decode:
        for unit in range(num_units(worklist)):
            predicted = predictor(decode_rows(worklist.read_unit(unit), model, decode)).to_pylist()
            stored = rows.slice(unit * _IMAGES_PER_UNIT, _IMAGES_PER_UNIT).to_pylist()
            num_compared += sum(_compare(row, new, model, findings) for row, new in zip(stored, predicted, strict=True))
            report(Progress("predicting again", min((unit + 1) * _IMAGES_PER_UNIT, len(rows)), len(rows)))
    return num_compared


def _compare(row: dict[str, Any], new: dict[str, Any], model: ModelSpec, findings: Findings) -> bool:
    """Compares a row with a new prediction of its image. Returns whether that was possible."""
    uri = row[schema.IMAGE_URI]
    if new[schema.STATUS] == schema.STATUS_DEFERRED or new[schema.ERROR_CODE] in _UNAVAILABLE:
        findings.add(Check.NOT_COMPARED, 1, [f"{uri}: {new[schema.ERROR_MESSAGE]}"])
        return False
    differences = prediction_differences(row, new, model)
    findings.add(Check.PREDICTION, int(differences is not None), [f"{uri}: {differences}"])
    return True


def prediction_differences(row: dict[str, Any], new: dict[str, Any], model: ModelSpec) -> str | None:
    """Describes how an ok row differs from a new prediction of its image, or None.

    They agree if their detections match one to one: the same label, corners and score within the tolerances.
    """
    if new[schema.STATUS] != schema.STATUS_OK:
        return f"now it fails: {new[schema.ERROR_CODE]}, {new[schema.ERROR_MESSAGE]}"
    old_size, new_size = ((one[schema.WIDTH], one[schema.HEIGHT]) for one in (row, new))
    if old_size != new_size:
        return f"the row says {old_size[0]} x {old_size[1]} pixels, the image has {new_size[0]} x {new_size[1]}"
    tolerance = Tolerance.of(model, max(old_size))
    lost, added = unmatched(row[schema.DETECTIONS] or [], new[schema.DETECTIONS] or [], tolerance)
    differences = [f"only the row has {_text(detection)}" for detection in lost[:1]]
    differences += [f"the model now finds {_text(detection)}" for detection in added[:1]]
    return "; ".join(differences) or None


def unmatched(
    old: list[dict[str, Any]], new: list[dict[str, Any]], tolerance: Tolerance
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The detections of each list without a match in the other, highest score first."""
    remaining, lost = list(new), []
    for detection in old:
        match = next((other for other in remaining if _is_same(detection, other, tolerance)), None)
        if match is None:
            lost.append(detection)
        else:
            remaining.remove(match)
    min_score = tolerance.min_score
    return [one for one in lost if one[schema.SCORE] > min_score], [
        one for one in remaining if one[schema.SCORE] > min_score
    ]


def _is_same(one: dict[str, Any], other: dict[str, Any], tolerance: Tolerance) -> bool:
    return (
        (one[schema.LABEL_ID], one[schema.LABEL]) == (other[schema.LABEL_ID], other[schema.LABEL])
        and abs(one[schema.SCORE] - other[schema.SCORE]) <= tolerance.score
        and all(abs(one[corner] - other[corner]) <= tolerance.box_px for corner in schema.CORNERS)
    )


def _text(detection: dict[str, Any]) -> str:
    corners = ", ".join(f"{detection[corner]:.1f}" for corner in schema.CORNERS)
    return f"{detection[schema.LABEL]!r} {detection[schema.SCORE]:.3f} at ({corners})"
