import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.datasets import Annotation, SkipReason, list_splits, read_dataset
from locray.datasets.records import ImageAnnotations
from locray.datasets.yolo import parse_yolo, write_data_yaml, write_yolo
from locray.errors import UsageError
from tests.helpers.annotated import annotations, names_below, write

CLASSES = ["cow", "ant"]
LINE = "1 0.5 0.5 0.5 0.25\n"
IN_FRAME = (Annotation("ant", (0.25, 0.375, 0.75, 0.625)),)
sides = st.integers(1, 5000)


@given(st.lists(annotations(), max_size=5), sides, sides)
def test_written_boxes_are_read_back_relative_to_the_sides(objects, width, height):
    classes = sorted({annotation.label for annotation in objects})
    text = write_yolo(ImageAnnotations("a.jpg", tuple(objects), width, height), classes)

    parsed = parse_yolo(text, classes, "a.txt")

    (image,) = parsed.images
    assert parsed.skipped == []
    assert (image.width_px, image.height_px) == (1, 1)
    assert [found.label for found in image.objects] == [annotation.label for annotation in objects]
    for found, annotation in zip(image.objects, objects, strict=True):
        back = [value * side for value, side in zip(found.box_xyxy_px, (width, height) * 2, strict=True)]
        assert back == pytest.approx(annotation.box_xyxy_px, abs=1e-6)


def test_boxes_polygons_and_unknown_classes():
    text = "0 0.5 0.5 1 1\n\n1.0 .5 .5 .5 .25 0.93\n2 .5 .5 .1 .1\n-1 .5 .5 .1 .1\n1 .1 .2 .3 .9 .2 .05\n"
    parsed = parse_yolo(text, CLASSES, "a.txt")
    box = (Annotation("cow", (0, 0, 1, 1)), *IN_FRAME, Annotation("ant", (0.1, 0.05, 0.3, 0.9)))
    assert parsed.images == [ImageAnnotations(None, box, 1, 1)]
    assert parsed.skipped == [
        (SkipReason.UNKNOWN_CLASS, "a.txt, line 4: class 2, known are 0 to 1"),
        (SkipReason.UNKNOWN_CLASS, "a.txt, line 5: class -1, known are 0 to 1"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cow .5 .5 .5 .5", r"a.txt, line 1, field 1 \(class\): found 'cow', expected a number"),
        ("0.5 .5 .5 .5 .5", r"a.txt, line 1, field 1 \(class\): found '0.5', expected a whole number"),
        ("\n0 .5 x .5 .5", "a.txt, line 2, field 3: found 'x', expected a number"),
        ("0 .5 .5 .5 nan", "a.txt, line 1, field 5: found 'nan'"),
        ("0 .5 .5 .5", "a.txt, line 1: found 4 fields, expected"),
        ("0 .5 .5 .5 .5 .5 .5 .5", "a.txt, line 1: found 8 fields, expected"),
        ("0", "a.txt, line 1: found 1 fields, expected"),
    ],
)
def test_errors_name_line_and_field(text, message):
    with pytest.raises(UsageError, match=message):
        parse_yolo(text, CLASSES, "a.txt")


LAYOUTS = [
    ("images/train/a.jpg", "labels/train/a.txt"),
    ("train/images/a.JPG", "train/labels/a.TXT"),
    ("images/train/deep/a.jpg", "labels/train/deep/a.txt"),
    ("images/train/a.jpg", "images/train/a.txt"),
    ("images/a.jpg", "labels/a.txt"),
    ("a.jpg", "a.txt"),
]


@pytest.mark.parametrize(("image", "label"), LAYOUTS)
def test_supported_layouts(tmp_path, image, label):
    write(tmp_path, {image: "", label: LINE, "data.yaml": write_data_yaml(CLASSES)})
    assert list_splits(str(tmp_path), "yolo") == ["train"]
    dataset = read_dataset(str(tmp_path), "yolo", "train")
    assert names_below(tmp_path, dataset) == [image]
    assert dataset.records[0].objects == IN_FRAME
    assert (dataset.records[0].width_px, dataset.records[0].height_px) == (1, 1)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("data.yaml", "names: [cow, ant]"),
        ("my.YML", "nc: 2\nnames: {1: ant, 0: cow}"),
        ("classes.txt", "cow\nant\n\n"),
        ("labels/train/classes.txt", "cow\r\nant"),
        ("obj.names", "cow\nant\n"),
    ],
)
def test_sources_of_class_names(tmp_path, file, content):
    write(tmp_path, {"images/train/a.jpg": "", "labels/train/a.txt": LINE, file: content})
    dataset = read_dataset(str(tmp_path), "yolo", "train")
    assert dataset.records[0].objects == IN_FRAME
    assert dataset.skipped == {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "Found no class names in .*Expected a data.yaml"),
        ({"data.yaml": "names: {0: cow, 2: ant}"}, r"field names: found the numbers \[0, 2\], expected 0, 1, 2"),
        ({"data.yaml": "names: [cow, ' ']"}, "field names: found .*expected the name of each class"),
        ({"data.yaml": "names: [cow"}, "data.yaml: not YAML"),
        ({"data.yaml": "names: [cow]\nversion: " + "9" * 5000}, "data.yaml: not YAML"),
        ({"data.yaml": "names: [cow]\ndate: 2024-13-45"}, "data.yaml: not YAML"),
        ({"data.yaml": "names: " + "[" * 2000}, "data.yaml: not YAML"),
        ({"data.yaml": "names: [cow]\nkpt_shape: [17, 3]"}, "field kpt_shape: found a data set of key points"),
    ],
)
def test_missing_or_invalid_class_names(tmp_path, files, message):
    write(tmp_path, {"images/train/a.jpg": "", "labels/train/a.txt": LINE, **files})
    with pytest.raises(UsageError, match=message):
        read_dataset(str(tmp_path), "yolo", "train")


def test_the_yaml_file_defines_splits_by_folders_and_lists(tmp_path):
    content = (
        "path: /somewhere/else\ntrain: /somewhere/else/first/images\nval: ../valid/images\n"
        "test: [lists/test.txt, gone]\nnames: [cow, ant]"
    )
    files = {f"{folder}/images/a.jpg": "" for folder in ("first", "valid", "other")}
    lists = {"lists/test.txt": "./other/images/a.jpg\n/elsewhere/b.jpg\nother/images/gone.jpg\n"}
    write(tmp_path, {"data.yaml": content, **files, **lists, "valid/labels/a.txt": LINE})
    assert list_splits(str(tmp_path), "yolo") == ["test", "train", "val"]
    for split, folder in (("train", "first"), ("val", "valid"), ("test", "other")):
        dataset = read_dataset(str(tmp_path), "yolo", split)
        assert names_below(tmp_path, dataset) == [f"{folder}/images/a.jpg"]
        assert dataset.records[0].objects == (IN_FRAME if split == "val" else ())


def test_skipped_entries_are_counted(tmp_path):
    lines = "0 .5 .5 0 .1\n0 .5 .5 -.1 .1\n0 1.5 .5 .2 .2\n0 1 .5 .5 .5\n9 .5 .5 .1 .1\n1 .95 .5 .1000005 .1\n"
    files = {"images/val/a.JPG": "", "images/val/b.png": "", "images/val/c.jpg": "", "images/val/notes.md": ""}
    labels = {"labels/val/a.txt": lines, "labels/val/b.txt": "", "labels/val/gone.txt": LINE}
    write(tmp_path, {**files, **labels, "data.yaml": write_data_yaml(CLASSES)})
    dataset = read_dataset(str(tmp_path), "yolo", "val")
    assert names_below(tmp_path, dataset) == ["images/val/a.JPG", "images/val/b.png", "images/val/c.jpg"]
    assert [len(record.objects) for record in dataset.records] == [2, 0, 0]
    assert dataset.records[0].objects[0] == Annotation("cow", (0.75, 0.25, 1, 0.75))
    assert dataset.skipped == {
        "empty_box": 1, "inverted_box": 1, "no_image": 1, "outside_box": 1, "unknown_class": 1
    }  # fmt: skip
    assert dataset.num_clipped_boxes == 1, "rounding of the last digit is no cut"
    assert dataset.skip_examples["empty_box"] == (
        f"{tmp_path}/labels/val/a.txt, line 1, box of 'cow': 0.5 0.45 0.5 0.55 in a frame of 1 x 1",
    )
