"""The page of an evaluation, from real results: offline, complete, the worst images first."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locray.datasets.records import Dataset, Record
from locray.evaluation.comparison import Evaluated
from locray.evaluation.run import Evaluation
from locray.evaluation.summary import EvaluationMetrics, EvaluationSummary
from locray.images.decode import DecodeLimits
from locray.metrics.results import ImageResult
from locray.report.evaluation import MAX_CLASSES, evaluation_section, write_evaluation_page
from locray.report.worst_images import worst_pictures
from tests.helpers.metric_results import BOX, FAR, HALF, result

LIMITS = DecodeLimits(max_bytes=2**24, max_pixels=2**24)


def records(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> tuple[Record, ...]:
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", size).save(path)
        made.append(Record(str(path), (), None, None))
    return tuple(made)


def names_of_worst(folder: Path, results: list[ImageResult]) -> list[str]:
    pictures = worst_pictures(EvaluationMetrics.of(results), records(folder, len(results)), results, LIMITS)
    return [picture.name for picture in pictures]


def test_the_worst_images_of_a_localizer(tmp_path: Path) -> None:
    found = names_of_worst(
        tmp_path,
        [
            result([("a", BOX)], [("a", 0.9, BOX)]),
            result([("a", BOX)], [("a", 0.9, HALF)]),
            result([("a", BOX)], [("b", 0.6, BOX)]),
            result([("a", BOX)], [("b", 0.9, BOX)]),
            result([("a", BOX)], []),
            result([], [("a", 0.7, BOX)]),
            result([], []),
        ],
    )
    assert found == [
        "3.png · wrong class",
        "2.png · wrong class",
        "4.png · nothing found",
        "5.png · nothing is there",
        "1.png · IoU 0.50",
    ]


def test_the_worst_images_of_a_detector_at_its_best_threshold(tmp_path: Path) -> None:
    good = [("a", 0.9, BOX), ("a", 0.8, FAR)]
    results = [
        result([("a", BOX), ("a", FAR)], [*good, ("a", 0.1, HALF)]),
        result([("a", BOX), ("a", FAR)], [("a", 0.9, BOX), ("a", 0.7, (80, 80, 90, 90))]),
        result([("a", BOX), ("a", FAR)], []),
    ]
    assert EvaluationMetrics.of(results).best_threshold.score_threshold == 0.8
    assert names_of_worst(tmp_path, results) == ["2.png · 2 missed, 0 wrong", "1.png · 1 missed, 0 wrong"]


def test_boxes_are_drawn_in_the_pixels_of_the_thumbnail(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 1200)).save(tmp_path / "large.jpg")
    record = Record(str(tmp_path / "large.jpg"), (), None, None)
    one = result([("a", (0, 0, 1600, 1200)), ("c", None)], [("b", 0.9, (800, 600, 1600, 1200))])
    (picture,) = worst_pictures(EvaluationMetrics.of([one]), [record], [one], LIMITS)
    height, width = picture.image_hwc_u8.shape[:2]
    assert width < 1600
    assert [box.xyxy_px for box in picture.boxes] == [
        (0, 0, width, height),
        None,
        (width / 2, height / 2, width, height),
    ]
    assert [box.dashed for box in picture.boxes] == [True, True, False]


def test_an_image_that_cannot_be_decoded_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    one = result([("a", BOX)], [])
    assert not worst_pictures(
        EvaluationMetrics.of([one]), [Record(str(tmp_path / "broken.png"), (), None, None)], [one], LIMITS
    )


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.headings: list[str] = []
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in {"src", "href"}]
        self._in_heading = tag in {"h2", "h3"}

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data.strip())
            self._in_heading = False


def page_of(folder: Path, results: list[ImageResult]) -> str:
    dataset = Dataset("set", "test", records(folder, len(results)), ("a",), {"empty_box": 3})
    evaluated = Evaluated("model@0123456789ab", "ba9876543210", results, {"truncated": 1})
    metrics = EvaluationMetrics.of(results)
    summary = EvaluationSummary.of("data", dataset, evaluated, metrics, table=None, wall_s=0.0)
    write_evaluation_page(str(folder / "page.html"), Evaluation(summary, metrics, dataset, evaluated), LIMITS)
    return (folder / "page.html").read_text()


def test_the_page_is_complete_and_offline(tmp_path: Path) -> None:
    text = page_of(tmp_path, [result([("<a>", BOX)], [("<a>", 0.9, FAR)]), result([("b", BOX)], [("<a>", 0.5, BOX)])])
    page = Page(text)
    assert page.headings == [
        "Precision, recall and calibration",
        "Precision and recall at IoU 0.5",
        "Calibration of scores",
        "Classes",
        "Confusion matrix",
        "Worst images",
        "Skipped",
        "Model and configuration",
    ]
    assert len(page.links) == 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|<script|<link", text)
    assert "<a>" not in text
    assert "&lt;a&gt; predicted as &lt;a&gt;: 1 of 1" in text
    assert "b predicted as &lt;a&gt;: 1 of 1" in text
    assert "empty_box" in text
    assert "truncated" in text


def test_there_is_a_page_without_boxes_and_without_images(tmp_path: Path) -> None:
    text = page_of(tmp_path, [result([("a", None)], [("a", 0.9, BOX)])])
    assert "AP@.5" not in text
    assert "mean IoU" not in text
    assert "class accuracy" in text
    assert "Classes" in page_of(tmp_path, [result([], [])])


@pytest.mark.parametrize("count", [MAX_CLASSES, MAX_CLASSES + 20])
def test_many_classes_are_merged_without_losing_counts(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    results = [
        result([(f"c{number:03d}", BOX)], [(f"c{random.integers(count):03d}", 0.5, BOX)]) for number in range(count)
    ]
    section = evaluation_section(EvaluationMetrics.of(results), records(tmp_path, count, (8, 8)), results, LIMITS)
    assert len(section.heat_names) == MAX_CLASSES + 1 == len(section.heat_rows)
    assert sum(cell["count"] for row in section.heat_rows for cell in row) == count
    assert (f"{count - MAX_CLASSES + 1} others" in section.heat_names) == (count > MAX_CLASSES)
    assert len(section.charts[0].legend) == 8
    assert section.pictures
