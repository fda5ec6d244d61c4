"""The demo, from nothing to a page of labelled pictures."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from locray import schema, storage
from locray.config import DemoConfig, EvaluateConfig, LabelConfig, TrainConfig
from locray.demo.images import write_dataset, write_unlabelled
from locray.errors import UsageError
from locray.evaluation.run import evaluate
from locray.evaluation.summary import EvaluationSummary
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.labelling.run import label
from locray.labelling.summary import LabelSummary
from locray.progress import Report
from locray.report.demo import DemoPage, Failure, render_demo_page
from locray.report.page import Picture, PictureBox
from locray.table.data_files import row_dataset
from locray.table.open import open_table
from locray.training.run import train

DATASET_COUNTS = {"train": 640, "val": 96, "test": 160}
NUM_UNLABELLED = 1000
BROKEN_FRACTION = 0.02
NUM_PICTURES = 24
EPOCHS = 10
INPUT_SIZE_PX = 96
_MARKER = ".locray-demo"


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """Result of the demo, as `--json` prints it."""

    page: str
    evaluation: dict[str, Any]
    labelling: dict[str, Any]
    query: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def demo(config: DemoConfig, report: Report) -> DemoSummary:
    """Draws pictures, trains on them, evaluates, labels a folder with broken images in it, and writes the page.

    Raises:
        UsageError: the output folder holds something that the demo did not make.
    """
    folder = config.output.absolute()
    _prepare(folder)
    write_dataset(folder / "data", DATASET_COUNTS, seed=config.seed)
    write_unlabelled(folder / "images", NUM_UNLABELLED, BROKEN_FRACTION, seed=config.seed + 1)
    data, model, table = str(folder / "data"), str(folder / "model"), str(folder / "table")
    train(
        TrainConfig(
            data=data,
            format="csv",
            model="localizer/resnet18",
            input_size=INPUT_SIZE_PX,
            learning_rate=1e-3,
            epochs=EPOCHS,
            workers=2,
            output=model,
            seed=config.seed,
            log_level=config.log_level,
        ),
        report,
    )
    evaluation = evaluate(
        EvaluateConfig(
            data=data, format="csv", model=model, output=str(folder / "evaluation.json"), log_level=config.log_level
        ),
        report,
    ).summary
    labelling = label(
        LabelConfig(images=str(folder / "images"), model=model, table=table, log_level=config.log_level), report
    )
    query = _query(table)
    page = folder / "index.html"
    page.write_text(render_demo_page(_page(table, evaluation, labelling, query)), encoding="utf-8")
    return DemoSummary(str(page), evaluation.to_dict(), labelling.to_dict(), query)


def _prepare(folder: Path) -> None:
    """Makes an empty folder. The output of an earlier demo is deleted, anything else is refused."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _MARKER).exists():
            raise UsageError(f"{folder} is not empty and was not made by the demo; give another folder with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


def _query(table: str) -> str:
    """Python code that queries the table."""
    columns = f"{schema.STATUS}, {schema.ERROR_CODE}, count(*) AS images, sum(len({schema.DETECTIONS})) AS detections"
    return (
        "import duckdb, locray\n"
        f"predictions = locray.read_predictions({table!r})\n"
        f'print(duckdb.sql("SELECT {columns} FROM predictions GROUP BY ALL ORDER BY images DESC"))'
    )


def _page(table_uri: str, evaluation: EvaluationSummary, labelling: LabelSummary, query: str) -> DemoPage:
    table = open_table(table_uri)
    assert table is not None
    predictions = duckdb.connect()
    predictions.register("predictions", row_dataset(table, table_uri))
    name = f"parse_path({schema.IMAGE_URI})[-2:]"
    columns = f"{schema.IMAGE_URI}, array_to_string({name}, '/'), to_json({schema.DETECTIONS})"
    chosen = predictions.execute(
        f"SELECT {columns} FROM predictions WHERE {schema.STATUS} = '{schema.STATUS_OK}' "
        f"ORDER BY hash({schema.IMAGE_URI}) LIMIT {NUM_PICTURES}"
    ).fetchall()
    failures = predictions.execute(
        f"SELECT array_to_string({name}, '/'), {schema.ERROR_CODE}, {schema.ERROR_MESSAGE} FROM predictions "
        f"WHERE {schema.STATUS} = '{schema.STATUS_FAILED}' ORDER BY ALL"
    ).fetchall()
    steady = labelling.images_per_s_steady
    return DemoPage(
        title="locray demo",
        summary=(
            f"A localizer was trained on {DATASET_COUNTS['train']:,} drawn pictures, evaluated on "
            f"{evaluation.images:,} others, and then labelled a folder of {labelling.planned:,} files, "
            f"{labelling.failed:,} of them broken."
        ),
        facts={
            "class accuracy": f"{evaluation.class_accuracy:.3f}",
            "mean IoU": f"{evaluation.mean_iou or 0:.3f}",
            "localization accuracy": f"{evaluation.localization_accuracy or 0:.3f}",
            "mAP@[.5:.95]": f"{evaluation.map_50_95 or 0:.3f}",
            "images labelled": f"{labelling.ok:,}",
            "images failed": f"{labelling.failed:,}",
            "images/s, steady": "not measured" if steady is None else f"{steady:,.0f}",
        },
        pictures=[_picture(*row) for row in chosen],
        failures=[Failure(*row) for row in failures],
        query=query,
    )


def _picture(uri: str, name: str, detections: str) -> Picture:
    limits = DecodeLimits(max_bytes=2**26, max_pixels=2**26)
    decoded = decode_image(storage.read_bytes(uri), limits)
    assert isinstance(decoded, DecodedImage)
    boxes = tuple(
        PictureBox(
            found[schema.LABEL],
            found[schema.SCORE],
            (found[schema.XMIN], found[schema.YMIN], found[schema.XMAX], found[schema.YMAX]),
        )
        for found in json.loads(detections)
    )
    return Picture(name, np.asarray(decoded.image_hwc_u8), boxes)
