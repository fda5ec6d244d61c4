import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.datasets import Annotation, list_splits, read_dataset
from locray.datasets.records import ImageAnnotations
from locray.datasets.regions import parse_regions, write_regions
from locray.errors import UsageError
from tests.helpers.annotated import images, names_below, write


@given(images(sides=st.integers(1, 5000), min_objects=1))
def test_written_boxes_are_read_back_relative_to_the_sides(described):
    found = {image.filename: image for image in parse_regions(write_regions(described), "regions.json")}
    assert set(found) == {image.filename for image in described}
    for image in described:
        again = found[image.filename]
        assert (again.width_px, again.height_px) == (1, 1)
        scale = (image.width_px, image.height_px) * 2
        boxes = [
            (each.label, *(value * side for value, side in zip(each.box_xyxy_px, scale, strict=True)))
            for each in again.objects
        ]
        assert sorted(label for label, *_ in boxes) == sorted(each.label for each in image.objects)
        for label in {each.label for each in image.objects}:
            of_label = [box for name, *box in boxes if name == label]
            expected = [each.box_xyxy_px for each in image.objects if each.label == label]
            for one, other in zip(of_label, expected, strict=True):
                assert one == pytest.approx(other, abs=1e-6)


def test_the_written_text():
    image = ImageAnnotations("a", (Annotation("fork", (10, 20, 30, 60)),), 100, 80)
    assert json.loads(write_regions([image])) == {"fork": {"a": [0.1, 0.25, 0.2, 0.5]}}


def test_images_are_found_by_name_and_class(tmp_path):
    content = {
        "fork": {"1": [0, 0, 0.5, 0.5], "2.JPG": [[0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], "gone": [0, 0, 1, 1]},
        "spoon": {"1": [0.1, 0, 0.5, 0.5], "3": [0, 0, 0, 1]},
    }
    files = ["x/fork/1.jpg", "x/spoon/1.jpg", "2.jpg", "y/3.png", "y/1.txt"]
    write(tmp_path, {**dict.fromkeys(files, ""), "regions.json": json.dumps(content), "regions_test.json": "{}"})
    assert list_splits(str(tmp_path), "regions") == ["test", "train"]
    dataset = read_dataset(str(tmp_path), "regions", "train")
    assert names_below(tmp_path, dataset) == ["x/fork/1.jpg", "x/spoon/1.jpg", "2.jpg", "y/3.png"]
    assert [len(record.objects) for record in dataset.records] == [1, 1, 2, 0]
    assert dataset.records[1].objects == (Annotation("spoon", (0.1, 0, 0.6, 0.5)),)
    assert dataset.skipped == {"empty_box": 1, "no_image": 1}


def test_skipped_entries_are_counted(tmp_path):
    boxes = [[0.5, 0.5, 0, 0.2], [0.5, 0.5, -0.1, 0.2], [1.2, 0, 0.5, 0.5], [-0.5, 0, 0.5, 0.5], [0.75, 0.5, 0.5, 0.25]]
    content = {
        "fork": {"a": boxes, "A.jpg": [0.75, 0.5, 0.25, 0.25], "1": [0, 0, 1, 1]},
        "spoon": {"2.png": [0, 0, 1, 1]},
    }
    files = ["a.jpg", "x/1.jpg", "y/1.jpg", "x/spoon/2.png", "y/spoon/2.png"]
    write(tmp_path, {**dict.fromkeys(files, ""), "regions.json": json.dumps(content)})
    dataset = read_dataset(str(tmp_path), "regions", "train")
    assert names_below(tmp_path, dataset) == ["a.jpg"]
    assert dataset.records[0].objects == (Annotation("fork", (0.75, 0.5, 1, 0.75)),)
    assert dataset.num_clipped_boxes == 1
    assert dataset.skipped == {
        "duplicate_id": 1, "empty_box": 1, "inverted_box": 1, "no_image": 2, "outside_box": 2
    }  # fmt: skip
    file = f"{tmp_path}/regions.json"
    assert dataset.skip_examples == {
        "empty_box": (f"{file}, image 'a', object 1, box of 'fork': 0.5 0.5 0.5 0.7 in a frame of 1 x 1",),
        "inverted_box": (f"{file}, image 'a', object 2, box of 'fork': 0.5 0.5 0.4 0.7 in a frame of 1 x 1",),
        "outside_box": (
            f"{file}, image 'a', object 3, box of 'fork': 1.2 0 1.7 0.5 in a frame of 1 x 1",
            f"{file}, image 'a', object 4, box of 'fork': -0.5 0 0 0.5 in a frame of 1 x 1",
        ),
        "duplicate_id": (f"{file}, image 'A.jpg', object 1, box of 'fork': 0.75 0.5 1 0.75 in a frame of 1 x 1",),
        "no_image": (
            f"{file}, image '1': 2 images have this name",
            f"{file}, image '2.png': 2 images have this name",
        ),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "regions.json: found .*expected a JSON object"),
        ('{"fork": [1]}', r"regions.json, class 'fork': found \[1\], expected images with their boxes"),
        ('{"fork": {"a": [1, 2, 3]}}', r"class 'fork', image 'a': found \[1, 2, 3\], expected 4 numbers"),
        ('{"fork": {"a": [[1, 2, 3, "x"]]}}', "class 'fork', image 'a': found 'x', expected a number"),
        ('{"fork": {"a": [0, 0, 1, 1%s]}}' % ("0" * 400), r"class 'fork', image 'a': found 10*\.{3}, expected a"),
        ('{"fork": {"a": null}}', "class 'fork', image 'a': found nothing, expected 4 numbers"),
    ],
)
def test_errors_name_the_entry(text, message):
    with pytest.raises(UsageError, match=message):
        parse_regions(text.encode(), "regions.json")


def test_cutlery_is_read(real_data):
    dataset = read_dataset(str(real_data / "cutlery"), "regions", "train")
    assert len(dataset.records) == 40
    assert dataset.classes == ("fork", "scissors")
    assert dataset.skipped == {}
    assert (dataset.records[0].width_px, dataset.records[0].height_px) == (1, 1)
    (fork,) = dataset.records[0].objects
    assert fork.box_xyxy_px == pytest.approx((0.145833328, 0.3509314, 0.735294128, 0.589493492))
