"""A user's program as mypy --strict reads it: the types of the public names. It is checked, never run."""

from pathlib import Path
from typing import assert_type

import locray


def show(progress: locray.Progress) -> None:
    print(progress.stage, progress.done, progress.planned)


def label_a_folder(images: Path) -> locray.ExitCode:
    config = locray.LabelConfig(images=str(images), model="model", table="predictions")
    assert_type(locray.plan(images=images, model="model", table="predictions"), locray.LabelPlan)
    try:
        summary = locray.label(config, progress=show)
    except locray.FencedError as error:
        return error.exit_code
    assert_type(summary, locray.LabelSummary)
    assert_type(summary.errors, dict[str, int])
    return summary.exit_code(config.max_failure_rate)


def train_and_measure(data: Path) -> float | None:
    trained = locray.train(data=data, format="coco", output="model")
    assert_type(trained, locray.TrainSummary)
    measured = locray.evaluate(data=data, format="coco", model="model", progress=show)
    assert_type(measured, locray.EvaluationSummary)
    return measured.map_50_95


def look_at(images: list[Path]) -> None:
    model = locray.load_model("model", device="cpu")
    assert_type(model, locray.Model)
    for found in model.predict([*images, b"", "s3://bucket/key.jpg"]):
        assert_type(found, locray.ImagePrediction)
        assert_type(found.labels, list[str])
        assert_type(found.error_code, locray.ErrorCode | None)
    dataset = locray.read_dataset("data", format="voc", split="val")
    assert_type(dataset, locray.Dataset)
    assert_type(dataset.records[0], locray.Record)


def look_after(table: str) -> bool:
    assert_type(locray.nightly(images="images", model="model", table=table), locray.NightlyRun)
    found = locray.verify(table=table)
    assert_type(found, locray.Verification)
    return found.exit_code is locray.ExitCode.DONE
