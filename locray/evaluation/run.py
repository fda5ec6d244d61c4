"""An evaluation, from configuration to metrics. Called by the command line and by `demo`."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from locray import storage
from locray.config import EvaluateConfig
from locray.datasets import read_dataset
from locray.datasets.records import Dataset
from locray.errors import UsageError
from locray.evaluation.figures import Figures
from locray.evaluation.model import evaluate_dataset
from locray.evaluation.table import read_table
from locray.evaluation.truth import Evaluated
from locray.labelling.identity import Identity
from locray.labelling.summary import Clock
from locray.metrics.calibration import BestThreshold, Calibration
from locray.metrics.classification import ClassMetrics
from locray.progress import Progress, Report


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix in plain values; a last row and a last column stand for nothing."""

    labels: list[str]
    counts: list[list[int]]
    counted: str
    """`images`, each by its best detection, or `objects`."""


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """Metrics on one split, as `--json` prints them. What no annotation tells anything about is None."""

    model_id: str
    config_hash: str
    data: str
    split: str
    table: str | None
    images: int
    objects: int
    class_accuracy: float
    mean_iou: float | None
    localization_accuracy: float | None
    map_50_95: float | None
    map_50: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    best_cut: BestThreshold | None
    """The score threshold with the highest F1."""
    calibration: Calibration
    classes: list[ClassMetrics]
    confusion: Confusion
    errors: dict[str, int]
    skipped: dict[str, int]
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found, and what it found it in."""

    summary: EvaluationSummary
    figures: Figures
    dataset: Dataset
    evaluated: Evaluated


def evaluate(config: EvaluateConfig, report: Report) -> Evaluation:
    """Compares predictions for the images of a split with their annotations.

    The predictions are a table's, or are made now, in memory, by a model.

    Raises:
        UsageError: the data set, the split, the model, the table or an output is not what it should be; with
            `--strict`, an annotation or an image can't be used.
        StoreError: an image could not be labelled; metrics of a part would mislead.
    """
    clock = Clock()
    report(Progress("checking"))
    for output in (config.output, config.page):
        _check_is_no_folder(output)
    # A curve of precision and recall needs what a table of predictions would leave out.
    complete = config.model_copy(update={"score_threshold": config.score_threshold or 0.0})
    # Without a table, the configuration makes sure that there is a model.
    identity = Identity.of(config.model or "", complete) if config.table is None else None
    dataset = read_dataset(config.data, config.format, config.split, min_score=config.min_score, strict=config.strict)
    if not dataset.records:
        raise UsageError(f"the split {config.split!r} of {config.data} holds no images")
    if identity is None:
        evaluated = read_table(dataset, storage.normalise(config.table or ""), config)
    else:
        evaluated = evaluate_dataset(dataset, identity, complete, report, strict=config.strict)
    report(Progress("measuring"))
    figures = Figures.of(evaluated.results)
    summary = summarise(config.data, dataset, evaluated, figures, table=config.table, wall_s=clock.wall_s)
    if config.output is not None:
        document = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n"
        storage.write_bytes(storage.normalise(config.output), document.encode())
    return Evaluation(summary, figures, dataset, evaluated)


def _check_is_no_folder(output: str | None) -> None:
    """Before the work, not after it."""
    if output is None:
        return
    uri = storage.normalise(output)
    if not storage.is_remote(uri) and os.path.isdir(storage.local_path(uri)):
        raise UsageError(f"{uri} is a folder: expected the name of a file to write, such as {uri}/evaluation.html")


def summarise(
    data: str, dataset: Dataset, evaluated: Evaluated, figures: Figures, *, table: str | None, wall_s: float
) -> EvaluationSummary:
    """The outcome of an evaluation of the data at a URI, by a model or from a table."""
    localization, detection, confusion = figures.localization, figures.detection, figures.confusion
    return EvaluationSummary(
        model_id=evaluated.model_id,
        config_hash=evaluated.config_hash,
        data=data,
        split=dataset.split,
        table=table,
        images=figures.images,
        objects=figures.objects,
        class_accuracy=localization.class_accuracy,
        mean_iou=localization.mean_iou if figures.has_boxes else None,
        localization_accuracy=localization.localization_accuracy if figures.has_boxes else None,
        map_50_95=detection.map_50_95 if figures.has_boxes else None,
        map_50=detection.map_50 if figures.has_boxes else None,
        map_small=detection.map_small,
        map_medium=detection.map_medium,
        map_large=detection.map_large,
        best_cut=figures.best_cut,
        calibration=figures.calibration,
        classes=list(figures.classes),
        confusion=Confusion(
            list(confusion.labels), confusion.counts.tolist(), "images" if confusion.per_image else "objects"
        ),
        errors=evaluated.errors,
        skipped=dict(sorted((Counter(dataset.skipped) + Counter(evaluated.skipped)).items())),
        wall_s=wall_s,
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
