"""The page of an evaluation, one offline HTML file. Training's page shows its parts as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from locray import storage
from locray.datasets.records import Record
from locray.evaluation.figures import Figures
from locray.evaluation.run import Evaluation
from locray.images.decode import DecodeLimits
from locray.metrics.classification import ConfusionMatrix
from locray.metrics.detection import RECALL_LEVELS, DetectionMetrics
from locray.metrics.results import ImageResult
from locray.report.charts import NUM_COLOURS, QUIET, Chart, Line, line_chart, reliability_chart
from locray.report.evaluation_pictures import worst_pictures
from locray.report.figures import figure, hues_of
from locray.report.html import render_template

MAX_CLASSES = 40
"""Of a heat map: with more, those that are least confused are put together."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the macros of `evaluation_parts.html` draw."""

    figures: Figures
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
    parts = evaluation_parts(evaluation.figures, evaluation.dataset.records, evaluation.evaluated.results, limits)
    origin = f"Rows of {summary.table}" if summary.table else "Predictions of a model"
    page = render_template(
        "evaluation.html",
        title=summary.model_id,
        summary=f"{origin} against the annotations of split {summary.split!r} of {evaluation.dataset.name}.",
        parts=parts,
        errors=summary.errors,
        skipped=summary.skipped,
        config_hash=summary.config_hash,
    )
    storage.write_bytes(storage.normalise(uri), page.encode())


def evaluation_parts(
    figures: Figures, records: Sequence[Record], results: Sequence[ImageResult], limits: DecodeLimits
) -> Parts:
    """Everything that is drawn of an evaluation.

    Raises:
        StoreError: one of the worst images can't be read.
    """
    pictures = worst_pictures(figures, records, results, limits)
    hue_of_label = hues_of(pictures)
    names, rows = _heat_map(figures.confusion)
    return Parts(
        figures=figures,
        facts=_facts(figures),
        charts=_charts(figures),
        heat_names=names,
        heat_rows=rows,
        pictures=[figure(picture, hue_of_label) for picture in pictures],
    )


def _facts(figures: Figures) -> dict[str, str]:
    facts = {"images": f"{figures.images:,}", "objects": f"{figures.objects:,}"}
    facts["class accuracy"] = f"{figures.localization.class_accuracy:.3f}"
    if figures.has_boxes:
        facts["mean IoU"] = f"{figures.localization.mean_iou:.3f}"
        facts["localization accuracy"] = f"{figures.localization.localization_accuracy:.3f}"
        facts["mAP@[.5:.95]"] = f"{figures.detection.map_50_95:.3f}"
        facts["mAP@.5"] = f"{figures.detection.map_50:.3f}"
    if figures.best_cut is not None:
        facts[f"best F1, at score {figures.best_cut.score_threshold:.2f}"] = f"{figures.best_cut.f1:.3f}"
    facts["calibration error"] = f"{figures.calibration.error:.3f}"
    return facts


def _charts(figures: Figures) -> list[Chart]:
    charts = []
    if figures.has_boxes:
        charts.append(_precision_recall(figures.detection))
    if figures.calibration.bins:
        right = "the class is" if figures.confusion.per_image else "class and place (IoU 0.5) are"
        note = f"A detection counts as right if {right}. Faint bars hold few detections."
        charts.append(reliability_chart("Can scores be taken for probabilities?", figures.calibration, note))
    return charts


def _precision_recall(detection: DetectionMetrics) -> Chart:
    """The classes with the highest and the lowest average precision in colour, the others in the background."""
    by_precision = sorted(detection.classes, key=lambda one: -one.ap_50)
    half = NUM_COLOURS // 2
    coloured = by_precision if len(by_precision) <= NUM_COLOURS else by_precision[:half] + by_precision[-half:]
    colour_of = {one.label: f"c{index}" for index, one in enumerate(coloured)}
    lines = []
    for one in by_precision:
        reached = int(np.count_nonzero(one.precision_at_recall))
        points = zip(RECALL_LEVELS[:reached].tolist(), one.precision_at_recall[:reached].tolist(), strict=True)
        name = f"{one.label} {one.ap_50:.2f}"
        lines.append(Line(name, list(points), colour_of.get(one.label, QUIET), marked=False))
    chart = line_chart(
        "Precision and recall at IoU 0.5",
        lines,
        x_label="recall",
        y_label="precision",
        x_limits=(0, 1),
        y_limits=(0, 1),
        note="Beside each class its average precision." + ("" if len(coloured) == len(lines) else " Best and worst."),
    )
    return Chart(chart.title, chart.svg, [line for line in lines if line.colour != QUIET], chart.note)


def _heat_map(confusion: ConfusionMatrix) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """Names, the last one of "nothing", and the cells of each row."""
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
                    "text": f"{name} taken for {other}: {count:,} of {total:,}",
                }
            )
        rows.append(cells)
    return names, rows


def _largest(confusion: ConfusionMatrix) -> tuple[list[str], NDArray[np.int64]]:
    """The matrix with at most `MAX_CLASSES` classes: those with the most mistakes, and the rest as one."""
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
