"""The page of an evaluation. Its section of metrics is also part of a training's page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from locray import storage
from locray.datasets.records import Record
from locray.evaluation.run import Evaluation
from locray.evaluation.summary import EvaluationMetrics
from locray.images.decode import DecodeLimits
from locray.metrics.classification import ConfusionMatrix
from locray.metrics.detection import RECALL_LEVELS, DetectionMetrics
from locray.metrics.results import ImageResult
from locray.report.charts import BACKGROUND, NUM_COLOURS, Chart, Line, line_chart, reliability_chart
from locray.report.page import hues_of, picture_values, render_template
from locray.report.worst_images import worst_pictures

MAX_CLASSES = 40
"""In a heat map; further classes, those with the fewest mistakes, are merged."""


@dataclass(frozen=True, slots=True)
class EvaluationSection:
    """Arguments of the macro of `evaluation_section.html`."""

    metrics: EvaluationMetrics
    facts: dict[str, str]
    charts: list[Chart]
    heat_names: list[str]
    heat_rows: list[list[dict[str, Any]]]
    pictures: list[dict[str, Any]]


def write_evaluation_page(uri: str, evaluation: Evaluation, limits: DecodeLimits) -> None:
    """Writes the page.

    Raises:
        StoreError: the page can't be written, or an image can't be read.
    """
    summary = evaluation.summary
    section = evaluation_section(evaluation.metrics, evaluation.dataset.records, evaluation.evaluated.results, limits)
    origin = f"Rows of {summary.table}" if summary.table else "Predictions of a model"
    page = render_template(
        "evaluation.html",
        title=summary.model_id,
        summary=f"{origin} against the annotations of split {summary.split!r} of {evaluation.dataset.name}.",
        section=section,
        errors=summary.errors,
        skipped=summary.skipped,
        config_hash=summary.config_hash,
    )
    storage.write_bytes(storage.normalise(uri), page.encode())


def evaluation_section(
    metrics: EvaluationMetrics, records: Sequence[Record], results: Sequence[ImageResult], limits: DecodeLimits
) -> EvaluationSection:
    """Metrics, charts and worst images of an evaluation.

    Raises:
        StoreError: one of the worst images can't be read.
    """
    pictures = worst_pictures(metrics, records, results, limits)
    hue_of_label = hues_of(pictures)
    names, rows = _heat_map(metrics.confusion)
    return EvaluationSection(
        metrics=metrics,
        facts=_facts(metrics),
        charts=_charts(metrics),
        heat_names=names,
        heat_rows=rows,
        pictures=[picture_values(picture, hue_of_label) for picture in pictures],
    )


def _facts(metrics: EvaluationMetrics) -> dict[str, str]:
    facts = {"images": f"{metrics.images:,}", "objects": f"{metrics.objects:,}"}
    facts["class accuracy"] = f"{metrics.localization.class_accuracy:.3f}"
    if metrics.has_boxes:
        facts["mean IoU"] = f"{metrics.localization.mean_iou:.3f}"
        facts["localization accuracy"] = f"{metrics.localization.localization_accuracy:.3f}"
        facts["mAP@[.5:.95]"] = f"{metrics.detection.map_50_95:.3f}"
        facts["mAP@.5"] = f"{metrics.detection.map_50:.3f}"
    if metrics.best_threshold is not None:
        facts[f"best F1, at score {metrics.best_threshold.score_threshold:.2f}"] = f"{metrics.best_threshold.f1:.3f}"
    facts["calibration error"] = f"{metrics.calibration.error:.3f}"
    return facts


def _charts(metrics: EvaluationMetrics) -> list[Chart]:
    charts = []
    if metrics.has_boxes:
        charts.append(_precision_recall(metrics.detection))
    if metrics.calibration.bins:
        correct = "its class is" if metrics.confusion.per_image else "its class and box (IoU 0.5) are"
        note = f"A detection is correct if {correct}. Faint bars hold few detections."
        charts.append(reliability_chart("Calibration of scores", metrics.calibration, note))
    return charts


def _precision_recall(detection: DetectionMetrics) -> Chart:
    """Curves by class: those with the highest and lowest average precision in colour, the others in the background."""
    by_precision = sorted(detection.classes, key=lambda one: -one.ap_50)
    half = NUM_COLOURS // 2
    coloured = by_precision if len(by_precision) <= NUM_COLOURS else by_precision[:half] + by_precision[-half:]
    colour_of = {one.label: f"c{index}" for index, one in enumerate(coloured)}
    lines = []
    for one in by_precision:
        reached = int(np.count_nonzero(one.precision_at_recall))
        points = zip(RECALL_LEVELS[:reached].tolist(), one.precision_at_recall[:reached].tolist(), strict=True)
        name = f"{one.label} {one.ap_50:.2f}"
        lines.append(Line(name, list(points), colour_of.get(one.label, BACKGROUND), marked=False))
    chart = line_chart(
        "Precision and recall at IoU 0.5",
        lines,
        x_label="recall",
        y_label="precision",
        x_limits=(0, 1),
        y_limits=(0, 1),
        note="With the average precision of each class." + ("" if len(coloured) == len(lines) else " Best and worst."),
    )
    return Chart(chart.title, chart.svg, [line for line in lines if line.colour != BACKGROUND], chart.note)


def _heat_map(confusion: ConfusionMatrix) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """Names, the last of which is "nothing", and the cells of each row."""
    names, counts = _largest(confusion)
    totals = counts.sum(axis=1)
    rows = []
    for true, name in enumerate(names):
        cells = []
        for predicted, other in enumerate(names):
            count, total = int(counts[true, predicted]), max(1, int(totals[true]))
            cells.append(
                {
                    "count": count,
                    "shade": round(100 * (count / total) ** 0.5),
                    "right": true == predicted,
                    "text": f"{name} predicted as {other}: {count:,} of {total:,}",
                }
            )
        rows.append(cells)
    return names, rows


def _largest(confusion: ConfusionMatrix) -> tuple[list[str], NDArray[np.int64]]:
    """The matrix with at most `MAX_CLASSES` classes: those with the most mistakes, and the others merged."""
    names, counts = [*confusion.labels, "nothing"], confusion.counts
    if len(confusion.labels) <= MAX_CLASSES:
        return names, counts
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    kept = sorted(np.argsort(-wrong[:-1], kind="stable")[: MAX_CLASSES - 1].tolist())
    others = len(confusion.labels) - len(kept)
    place_of = np.full(len(names), len(kept))
    place_of[kept] = range(len(kept))
    place_of[-1] = len(kept) + 1
    folded = np.zeros((len(kept) + 2, len(kept) + 2), dtype=np.int64)
    np.add.at(folded, (place_of[:, None], place_of[None, :]), counts)
    return [*(names[index] for index in kept), f"{others} others", "nothing"], folded
