"""The page of a training: its curves, and the metrics of the model on the validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from locray import storage
from locray.config import TrainConfig
from locray.config.common import InferenceOptions
from locray.datasets.records import Dataset
from locray.evaluation.run import evaluate_dataset
from locray.evaluation.summary import EvaluationMetrics
from locray.images.decode import DecodeLimits
from locray.labelling.model import ModelSpec
from locray.progress import Report
from locray.report.charts import BACKGROUND, NUM_COLOURS, Chart, Line, line_chart
from locray.report.evaluation import evaluation_section
from locray.report.page import render_template
from locray.training.history import SETTINGS, read_history
from locray.training.output import PAGE_FILE
from locray.training.plan import read_splits

MAX_IMAGES = 2000

_EPOCH = "epoch"
_LEARNING_RATE = "learning_rate"
_SPEED = "images_per_s"
_TITLES = {_LEARNING_RATE: "Learning rate", _SPEED: "Images per second"}


def page_uri(config: TrainConfig) -> str:
    """URI of the page of a training."""
    return storage.join(storage.normalise(config.output), PAGE_FILE)


def write_training_page(
    config: TrainConfig, title: str, facts: Mapping[str, str], best_epoch: int, report: Report
) -> None:
    """Evaluates the new artifact on the validation split and writes the page beside it.

    Args:
        config: The configuration of the training.
        title: Title of the page.
        facts: Values to show below the title, by name.
        best_epoch: The epoch whose weights the artifact has.
        report: Progress callback.

    Raises:
        UsageError: the data or the artifact have disappeared.
        StoreError: an image can't be read, or the page can't be written.
    """
    _, validation = read_splits(config)
    chosen = evenly_spread(validation, MAX_IMAGES)
    # Precision-recall curves need the detections below the artifact's threshold, too.
    prediction = InferenceOptions(
        score_threshold=0,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        device=config.device,
        log_level=config.log_level,
    )
    model = ModelSpec.read(config.output, prediction)
    evaluated = evaluate_dataset(chosen, model, report)
    metrics = EvaluationMetrics.of(evaluated.results, model.artifact_score_threshold)
    of_all = "" if len(chosen.records) == len(validation.records) else f" of {len(validation.records):,}"
    page = render_template(
        "training.html",
        title=title,
        summary=f"{config.model}, trained on split {config.train_split!r} of {validation.name}.",
        facts=facts,
        curves=curves(read_history(storage.normalise(config.output)), best_epoch),
        validation=f"The new model on {len(chosen.records):,}{of_all} images of split {validation.split!r}.",
        section=evaluation_section(metrics, chosen.records, evaluated.results, DecodeLimits.of(config)),
    )
    storage.write_bytes(page_uri(config), page.encode())


def evenly_spread(dataset: Dataset, count: int) -> Dataset:
    """The data set with at most `count` records, evenly spread and always the same ones."""
    total = len(dataset.records)
    if total <= count:
        return dataset
    return replace(dataset, records=tuple(dataset.records[index * total // count] for index in range(count)))


def curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> list[Chart]:
    """Charts of everything in the history: losses, metrics in [0, 1], and each other value on its own."""
    names = dict.fromkeys(name for epoch in history for name in epoch if name != _EPOCH)
    values = {
        name: [
            (float(epoch.get(_EPOCH, number)), float(epoch[name]))
            for number, epoch in enumerate(history, 1)
            if name in epoch
        ]
        for name in names
    }
    losses = [name for name in names if "loss" in name]
    metrics = [
        name
        for name in names
        if name not in {*losses, *SETTINGS, _LEARNING_RATE, _SPEED}
        and all(0 <= value <= 1 for _, value in values[name])
    ]
    groups = [("Loss", losses, None), ("On the validation split", metrics, (0.0, 1.0))]
    others = [name for name in names if name not in {*losses, *metrics}]
    others = [name for name in others if name not in SETTINGS or _changes(values[name])]
    groups += [(_TITLES.get(name, name), [name], None) for name in others]
    return [
        line_chart(
            heading,
            [_line(name, values[name], index) for index, name in enumerate(group)],
            x_label="epoch",
            y_limits=limits or _from_zero(heading, [value for name in group for _, value in values[name]]),
            whole_x=True,
            mark_x=(float(best_epoch), f"best epoch: {best_epoch}"),
        )
        for heading, group, limits in groups
        if group
    ]


def _changes(points: Sequence[tuple[float, float]]) -> bool:
    return len({value for _, value in points}) > 1


def _line(name: str, points: Sequence[tuple[float, float]], index: int) -> Line:
    colour = f"c{index}" if index < NUM_COLOURS else BACKGROUND
    return Line(name.replace("_", " "), points, colour, end_label=f"{points[-1][1]:.3g}")


def _from_zero(heading: str, values: Sequence[float]) -> tuple[float, float] | None:
    """Limits that include zero, for speeds and learning rates."""
    return (min(0.0, *values), max(values)) if heading in _TITLES.values() else None
