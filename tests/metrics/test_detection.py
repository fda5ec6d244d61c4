"""Average precision: by hand, and against pycocotools on random detections."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from locray.metrics.detection import detection_metrics, mean_average_precision
from locray.metrics.results import ImageResult
from tests.helpers.metric_results import BOX, FAR, HALF, result
from tests.helpers.random_images import LABELS, random_image


def test_a_perfect_and_a_useless_detector() -> None:
    truth = [("a", BOX), ("b", FAR)]
    assert mean_average_precision([result(truth, [("a", 0.9, BOX), ("b", 0.8, FAR)])]) == pytest.approx((1.0, 1.0))
    assert mean_average_precision([result(truth, [])]) == (0.0, 0.0)
    assert mean_average_precision([result(truth, [("c", 0.9, BOX)])]) == pytest.approx((0.0, 0.0))
    assert mean_average_precision([]) == (0.0, 0.0)


def test_the_thresholds_that_a_box_passes_count() -> None:
    """An IoU of 0.5 reaches only the first of the ten thresholds."""
    precision, at_half = mean_average_precision([result([("a", BOX)], [("a", 0.9, HALF)])])
    assert at_half == pytest.approx(1.0)
    assert precision == pytest.approx(0.1)


def test_a_false_positive_above_a_hit_halves_precision() -> None:
    _, at_half = mean_average_precision([result([("a", BOX)], [("a", 0.9, FAR), ("a", 0.8, BOX)])])
    assert at_half == pytest.approx(0.5)


def test_a_false_positive_in_an_image_without_objects() -> None:
    hit = result([("a", BOX)], [("a", 0.8, BOX)])
    assert mean_average_precision([hit, result([], [("a", 0.9, BOX)])])[1] == pytest.approx(0.5)
    assert mean_average_precision([hit, result([("b", BOX)], [("a", 0.9, BOX)])])[1] == pytest.approx(0.25)


def test_detections_in_a_crowd_are_ignored() -> None:
    truth = [("a", FAR), ("a", BOX)]
    found = [("a", 0.9, BOX), ("a", 0.8, HALF), ("a", 0.7, FAR)]
    assert mean_average_precision([result(truth, found, crowds={1})]) == pytest.approx((1.0, 1.0))


def test_a_class_without_a_box_leaves_further_boxes_unknown() -> None:
    known = result([("a", BOX)], [("a", 0.5, BOX)])
    assert mean_average_precision([known, result([("a", None)], [("a", 0.9, FAR)])])[1] == pytest.approx(1.0)
    assert mean_average_precision([known, result([("b", None)], [("a", 0.9, FAR)])])[1] == pytest.approx(0.5)
    assert mean_average_precision([result([("a", None)], [("a", 0.9, FAR)])]) == (0.0, 0.0)


def test_each_class_and_its_curve() -> None:
    metrics = detection_metrics([result([("b", BOX), ("b", FAR), ("a", BOX)], [("b", 0.9, BOX), ("c", 0.8, BOX)])])
    a, b = metrics.classes
    assert (a.label, a.ap_50_95, a.ap_50) == ("a", 0, 0)
    assert b.label == "b"
    np.testing.assert_array_equal(b.precision_at_recall, [1.0] * 51 + [0.0] * 50)
    assert b.ap_50 == pytest.approx(51 / 101)
    assert metrics.map_50 == pytest.approx(51 / 202)


@pytest.mark.parametrize("found", [[], [("a", 0.9, FAR)]])
def test_sizes_without_objects_have_no_average_precision(found: list[tuple[str, float, tuple[float, ...]]]) -> None:
    metrics = detection_metrics(
        [result([("a", (0, 0, 5, 5)), ("a", (100, 100, 300, 300)), ("b", (0, 0, 50, 50))], found, {2})]
    )
    assert (metrics.map_small, metrics.map_medium, metrics.map_large) == (0, None, 0)
    assert [one.label for one in metrics.classes] == ["a"]


def pycocotools_precision(results: list[ImageResult], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """`stats` of pycocotools and its average precision for each of LABELS."""

    def xywh(box: np.ndarray) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    truth: dict[str, Any] = {
        "images": [{"id": image} for image in range(len(results))],
        "categories": [{"id": number, "name": label} for number, label in enumerate(LABELS)],
        "annotations": [],
        "info": {},
    }
    found = []
    for image, one in enumerate(results):
        for label, box, crowd in zip(one.true_labels, one.true_boxes_xyxy_px, one.true_is_crowd, strict=True):
            bbox = xywh(box)
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": LABELS.index(label)}
            truth["annotations"].append(entry | {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": int(crowd)})
        for label, score, box in zip(one.labels, one.scores, one.boxes_xyxy_px, strict=True):
            found.append(
                {"image_id": image, "category_id": LABELS.index(label), "bbox": xywh(box), "score": float(score)}
            )
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))


@pytest.mark.slow
@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=15)
def test_pycocotools_gives_the_same(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    random = np.random.default_rng(seed)
    results = [random_image(random) for _ in range(int(random.integers(20, 60)))]
    stats, of_class = pycocotools_precision(results, tmp_path_factory.mktemp("coco"))
    metrics = detection_metrics(results)
    ours = [metrics.map_50_95, metrics.map_50, metrics.map_small, metrics.map_medium, metrics.map_large]
    reference = [stats[0], stats[1], *(None if stat == -1 else stat for stat in stats[3:6])]
    assert ours == pytest.approx(reference, abs=1e-6)
    assert [one.ap_50_95 for one in metrics.classes] == pytest.approx([one for one in of_class if one != -1], abs=1e-6)
    assert mean_average_precision(results) == (metrics.map_50_95, metrics.map_50)
