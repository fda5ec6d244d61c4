"""Rows of a table beside what their model says of the same images, each alone. Called by `verify`.

The rows were made in batches, perhaps on another device. Results of an image don't depend on its batch but for
rounding: libraries add up in another order for another batch size. On a CPU, batches of 32 beside single images of
noise differed by 2e-7 in scores and 5e-5 pixels in corners at most (small_cnn, mobilenet_v2, resnet18, FCOS). TF32,
which cuDNN takes for convolutions, keeps ten bits: a relative 1e-3 an operation. bfloat16, which labelling
takes where it is faster unless it is told not to, keeps eight: 4e-3. The tolerances lie above these, and below what a
wrong model, decoder, colour order or letterbox changes. They are also for what a short run's other resizer changes.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from locray import schema
from locray.errors import ErrorCode
from locray.images.isolated import IsolatedDecoder
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.identity import Identity
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist, num_units
from locray.progress import Progress, Report
from locray.verification.findings import Check, Findings

SCORE_TOLERANCE = 0.01
BOX_TOLERANCE_PX = 1.0
"""In pixels of the network's input: a corner may be as far off as one of them covers of the image."""
BF16_SCORE_TOLERANCE = 0.05
BF16_BOX_TOLERANCE_PX = 2.0
"""Unless `--precision fp32` says that no row is of bfloat16: each machine of a cluster decides for itself."""

_IMAGES_AT_ONCE = 32
_NOT_THERE = {str(code) for code in (ErrorCode.NOT_FOUND, ErrorCode.ACCESS_DENIED, ErrorCode.CHANGED)}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two predictions of one image may lie apart."""

    box_px: float
    """In pixels of the image."""
    score: float
    lowest_score: float
    """A detection below this may be missing in one of the two: it may have been cut off by the threshold."""

    @classmethod
    def of(cls, identity: Identity, longer_side_px: int) -> "Tolerance":
        """For an image of this size, in rows that were made as `identity` says."""
        is_exact = identity.predict.precision == "fp32"
        score, box_px = (
            (SCORE_TOLERANCE, BOX_TOLERANCE_PX) if is_exact else (BF16_SCORE_TOLERANCE, BF16_BOX_TOLERANCE_PX)
        )
        return cls(
            box_px * longer_side_px / identity.decode.input_size_px, score, identity.predict.score_threshold + score
        )


def predict_again(rows: pa.Table, identity: Identity, findings: Findings, report: Report) -> int:
    """Fetches, decodes and predicts the images of ok rows one at a time, on this machine, and compares.

    A child decodes them, on the CPU: what was harmless once may be a replaced file, or meet another decoder, by now.

    Args:
        rows: columns of a listing, size in pixels and detections.
        identity: the model and the configuration that the rows were made with; its batch size must be 1.
        findings: what is found.
        report: is told how many are done.

    Returns:
        How many rows could be compared: of the others, the image is not there any more in that version.
    """
    assert identity.predict.batch_size == 1
    if not len(rows):
        return 0
    settings = identity.decode
    predict = replace(identity.predict, device="auto")
    predictor = Predictor(predict, num_threads=len(os.sched_getaffinity(0)))
    worklist = InlineWorklist.of(rows.select(schema.LISTING_SCHEMA.names), _IMAGES_AT_ONCE)
    compared = 0
    with IsolatedDecoder(settings.limits, settings.timeout_s) as decode:
        for unit in range(num_units(worklist)):
            again = predictor(decode_rows(worklist.read_unit(unit), settings, decode)).to_pylist()
            before = rows.slice(unit * _IMAGES_AT_ONCE, _IMAGES_AT_ONCE).to_pylist()
            compared += sum(_compare(row, new, identity, findings) for row, new in zip(before, again, strict=True))
            report(Progress("predicting again", min((unit + 1) * _IMAGES_AT_ONCE, len(rows)), len(rows)))
    return compared


def _compare(row: dict[str, Any], again: dict[str, Any], identity: Identity, findings: Findings) -> bool:
    """Whether the row could be compared with the new prediction of its image; what was found goes to the findings."""
    uri = row[schema.IMAGE_URI]
    if again[schema.STATUS] == schema.STATUS_DEFERRED or again[schema.ERROR_CODE] in _NOT_THERE:
        findings.add(Check.NOT_COMPARED, 1, [f"{uri}: {again[schema.ERROR_MESSAGE]}"])
        return False
    differs = difference(row, again, identity)
    findings.add(Check.PREDICTION, int(differs is not None), [f"{uri}: {differs}"])
    return True


def difference(row: dict[str, Any], again: dict[str, Any], identity: Identity) -> str | None:
    """In what an ok row and a new prediction of its image differ, or None.

    Each detection must have its own in the other list: the same label, corners and score within the tolerances.
    """
    if again[schema.STATUS] != schema.STATUS_OK:
        return f"now it fails: {again[schema.ERROR_CODE]}, {again[schema.ERROR_MESSAGE]}"
    sides, sides_again = ((one[schema.WIDTH], one[schema.HEIGHT]) for one in (row, again))
    if sides != sides_again:
        return f"the row says {sides[0]} x {sides[1]} pixels, the image has {sides_again[0]} x {sides_again[1]}"
    tolerance = Tolerance.of(identity, max(sides))
    lost, added = unmatched(row[schema.DETECTIONS] or [], again[schema.DETECTIONS] or [], tolerance)
    told = [f"the row alone has {_shown(one)}" for one in lost[:1]]
    told += [f"the model now finds {_shown(one)}" for one in added[:1]]
    return "; ".join(told) or None


def unmatched(
    before: list[dict[str, Any]], again: list[dict[str, Any]], tolerance: Tolerance
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The detections of either list without one of their own in the other, highest score first."""
    left, lost = list(again), []
    for one in before:
        match = next((other for other in left if _is_same(one, other, tolerance)), None)
        if match is None:
            lost.append(one)
        else:
            left.remove(match)
    lowest = tolerance.lowest_score
    return [one for one in lost if one[schema.SCORE] > lowest], [one for one in left if one[schema.SCORE] > lowest]


def _is_same(one: dict[str, Any], other: dict[str, Any], tolerance: Tolerance) -> bool:
    return (
        (one[schema.LABEL_ID], one[schema.LABEL]) == (other[schema.LABEL_ID], other[schema.LABEL])
        and abs(one[schema.SCORE] - other[schema.SCORE]) <= tolerance.score
        and all(abs(one[corner] - other[corner]) <= tolerance.box_px for corner in schema.CORNERS)
    )


def _shown(one: dict[str, Any]) -> str:
    corners = ", ".join(f"{one[corner]:.1f}" for corner in schema.CORNERS)
    return f"{one[schema.LABEL]!r} {one[schema.SCORE]:.3f} at ({corners})"
