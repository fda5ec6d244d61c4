"""The preview: training images as a network sees them, on one offline page."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from locray.cli.main import main
from locray.demo.images import write_dataset
from tests.report.test_demo import Elements

NUM_VERSIONS = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, {"train": 12}, seed=0)
    return folder


def preview(*arguments):
    """Exit code, JSON of the result if there is one, and stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = main(["preview", "--json", *map(str, arguments)])
    return code, json.loads(stdout.getvalue() or "{}"), " ".join(stderr.getvalue().split())


def elements(page):
    found = Elements()
    found.feed(page.read_text(encoding="utf-8"))
    return found.found


def test_each_image_is_shown_as_it_is_and_five_times_augmented(drawn, tmp_path):
    page = tmp_path / "new" / "page.html"
    code, summary, _ = preview("--data", drawn, "--format", "csv", "--count", 3, "--input-size", 64, "--output", page)
    assert code == 0
    assert summary == {"page": str(page), "images": 12, "shown": 3, "skipped": {}, "errors": {}}
    found = elements(page)
    pictures = [attributes["href"] for tag, attributes in found if tag == "image"]
    assert len(pictures) == len(set(pictures)) == 3 * NUM_VERSIONS
    assert {attributes["viewbox"] for tag, attributes in found if tag == "svg"} == {"0 0 64 64"}
    links = [value for _, attributes in found for name, value in attributes.items() if name in {"src", "href"}]
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    rectangles = [attributes for tag, attributes in found if tag == "rect"]
    assert len(rectangles) >= 3 * NUM_VERSIONS
    for rectangle in rectangles:
        left, top, width, height = (float(rectangle[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= left < left + width <= 64.1
        assert 0 <= top < top + height <= 64.1


def test_the_same_options_give_the_same_page_and_others_another(drawn, tmp_path):
    options = ("--data", drawn, "--format", "csv", "--count", 2, "--input-size", 48, "--mosaic", 1, "--copy-paste", 1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert preview(*options, "--seed", seed, "--output", tmp_path / name)[0] == 0
    first, again, other = ((tmp_path / name).read_text(encoding="utf-8") for name in "abc")
    assert first == again != other


def test_options_and_skipped_annotations_are_shown(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    rows = ["filename,class,xmin,ymin,xmax,ymax", "good.png,<b>,1,1,20,20", "good.png,x,9,9,9,20", "bad.png,x,1,1,9,9"]
    (tmp_path / "train.csv").write_text("\n".join(rows), encoding="utf-8")
    page = tmp_path / "page.html"
    code, summary, _ = preview("--data", tmp_path, "--format", "csv", "--rotation", "12.5", "--output", page)
    assert code == 0
    assert (summary["shown"], summary["skipped"]) == (1, {"empty_box": 1})
    assert summary["errors"] == {"unsupported_format": 1}
    text = page.read_text(encoding="utf-8")
    assert "<dt>--rotation</dt><dd>12.5</dd>" in text
    assert "<code>empty_box</code></td><td>1</td>" in text
    assert "<code>unsupported_format</code></td><td>1</td>" in text
    assert "&lt;b&gt;" in text
    assert "<b><b>" not in text


def test_boxes_outside_their_image_are_counted_or_refused(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    rows = ["filename,class,xmin,ymin,xmax,ymax", "good.png,x,1,1,20,20", "good.png,x,90,90,99,99"]
    (tmp_path / "train.csv").write_text("\n".join(rows), encoding="utf-8")
    usual = ("--data", tmp_path, "--format", "csv", "--output", tmp_path / "page.html")
    code, summary, _ = preview(*usual)
    assert (code, summary["skipped"]) == (0, {"outside_box": 1})
    assert "<code>outside_box</code></td><td>1</td>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, message = preview(*usual, "--strict")
    assert code == 2
    assert "good.png: outside_box. Expected" in message


def test_an_unusable_image_is_an_error_with_strict(drawn, tmp_path):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(drawn, spoiled)
    name = sorted((spoiled / "images").iterdir())[0]
    name.write_bytes(b"")
    usual = ("--data", spoiled, "--format", "csv", "--count", 12, "--output", tmp_path / "page.html")
    code, summary, _ = preview(*usual)
    assert (code, summary["errors"]) == (0, {"empty_file": 1})
    code, _, message = preview(*usual, "--strict")
    assert code == 2
    assert f"{name.name}: empty_file. Expected" in message


def test_classes_without_boxes_are_shown_with_their_names(tmp_path):
    for label in ("ship", "frog"):
        (tmp_path / "data" / "train" / label).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "train" / label / "1.png")
    page = tmp_path / "page.html"
    assert preview("--data", tmp_path / "data", "--format", "folders", "--input-size", 32, "--output", page)[0] == 0
    assert not [tag for tag, _ in elements(page) if tag == "rect"]
    assert page.read_text(encoding="utf-8").count("<b>ship</b>") == NUM_VERSIONS


@pytest.mark.parametrize("data", ["runway", "blood"])
def test_real_photographs(real_data, tmp_path, data):
    page = tmp_path / "page.html"
    options = ("--mosaic", 0.5, "--copy-paste", 0.5, "--input-size", 96, "--count", 4)
    code, summary, _ = preview("--data", real_data / data, "--format", "voc", *options, "--output", page)
    assert code == 0
    assert summary["shown"] == 4
    assert len([tag for tag, _ in elements(page) if tag == "rect"]) >= 4 * NUM_VERSIONS


def test_wrong_usage_is_an_error(drawn, tmp_path):
    usual = ("--data", drawn, "--format", "csv")
    code, _, message = preview(*usual, "--split", "tarin", "--output", tmp_path / "p.html")
    assert code == 2
    assert "tarin" in message
    code, _, message = preview(*usual, "--output", tmp_path)
    assert code == 2
    assert f"the output is a folder: {tmp_path}" in message
    (tmp_path / "file").touch()
    code, _, message = preview(*usual, "--output", tmp_path / "file" / "p.html")
    assert code == 2
    assert str(tmp_path / "file") in message
    broken = tmp_path / "broken"
    shutil.copytree(drawn, broken)
    for image in (broken / "images").iterdir():
        image.write_bytes(b"")
    code, _, message = preview("--data", broken, "--format", "csv", "--count", 5, "--output", tmp_path / "p.html")
    assert code == 2
    assert "none of 5 images of split 'train' can be used (5 x empty_file)" in message
    assert not (tmp_path / "p.html").exists()


def test_a_model_of_one_object_warns_of_several(tmp_path):
    (tmp_path / "train.csv").write_text(
        "filename,class,xmin,ymin,xmax,ymax\na.png,cow,1,1,20,20\na.png,cow,30,1,50,20\n"
    )
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    options = ("--data", tmp_path, "--format", "csv", "--count", 1, "--output", tmp_path / "page.html")
    code, _, printed = preview(*options, "--model", "localizer/resnet18")
    assert code == 0
    assert "1 of 1 images of split 'train' hold several objects, and localizer/resnet18 finds one" in printed
    assert '"0 0 224 224"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, printed = preview(*options, "--model", "small_cnn")
    assert '"0 0 32 32"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, _, printed = preview(*options)
    assert "hold several" not in printed
    code, _, printed = preview(*options, "--model", "localiser/resnet18")
    assert code == 2
