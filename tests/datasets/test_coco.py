import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.datasets import Annotation, SkipReason, list_splits, read_dataset
from locray.datasets.coco import parse_coco, write_coco
from locray.datasets.records import ImageAnnotations
from locray.errors import UsageError
from tests.helpers.annotated import annotations, close, corners, images, names_below, write

CATEGORIES = [{"id": 7, "name": "cow"}, {"id": 90, "name": "ant", "supercategory": "insect"}]


def entry(number, image_id=1, category_id=7, bbox=(1, 2, 10, 20.5), **others):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **others}


def document(images=({"id": 1, "file_name": "a.jpg", "width": 100, "height": 80},), objects=(), **others):
    content = {"images": list(images), "annotations": list(objects), "categories": CATEGORIES, **others}
    return json.dumps(content)


def parsed(text):
    return parse_coco(text.encode(), "train.json")


@given(images(annotations(corners | st.none(), st.booleans())))
def test_writer_and_parser_are_inverse(described):
    found = parse_coco(write_coco(described), "train.json")
    assert close(found.images, described)
    assert found.skipped == []


def test_numbers_need_not_be_dense_and_crowds_are_kept():
    objects = [entry(5), entry(6, category_id=90, iscrowd=1, segmentation={"counts": "x"}), entry(7, bbox=())]
    (image,) = parsed(document(objects=objects)).images
    assert image == ImageAnnotations(
        "a.jpg",
        (
            Annotation("cow", (1, 2, 11, 22.5)),
            Annotation("ant", (1, 2, 11, 22.5), is_crowd=True),
            Annotation("cow", None),
        ),
        100,
        80,
    )


def test_entries_that_belong_to_no_image_are_skipped():
    two = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": "x", "file_name": "c.jpg"}]
    objects = [entry(1), entry(1), entry(2, image_id=9), entry(3, category_id=8), entry(4, image_id="x")]
    found = parsed(document(two, objects))
    assert [(image.filename, len(image.objects)) for image in found.images] == [("a.jpg", 1), ("c.jpg", 1)]
    assert found.skipped == [
        (SkipReason.DUPLICATE_ID, "train.json, image 1"),
        (SkipReason.DUPLICATE_ID, "train.json, annotation 1"),
        (SkipReason.UNKNOWN_IMAGE, "train.json, annotation 2: image 9"),
        (SkipReason.UNKNOWN_CLASS, "train.json, annotation 3: category 8"),
    ]


def test_annotations_without_an_id_are_taken():
    objects = [{key: value for key, value in entry(1).items() if key != "id"}] * 2
    assert len(parsed(document(objects=objects)).images[0].objects) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "train.json, line 1, column 2: not JSON"),
        ("[" * 100_000, "train.json: JSON that can't be parsed"),
        ("[]", r"train.json: found \[\], expected a JSON object"),
        ('{"info": 1}', "train.json: found the fields info; missing categories"),
        ('{"categories": [], "images": {}}', "train.json, field images: found {}, expected a list"),
        ('{"categories": [{"id": 1}]}', r"train.json, categories\[0\], field name: found nothing"),
        ('{"categories": [{"name": "cow"}]}', r"train.json, categories\[0\], field id: found nothing, expected an id"),
        ('{"categories": [{"id":1,"name":"a"},{"id":1,"name":"b"}]}', r"categories\[1\], field id: found 1 for 'b'"),
        (document(["a.jpg"]), r'train.json, images\[0\]: found "a.jpg", expected a JSON object'),
        (document([{"id": 1}]), "train.json, image 1, field file_name: found nothing"),
        (document([{"id": 1, "file_name": "a", "width": "wide"}]), "image 1, field width: found 'wide'"),
        (document(objects=[entry(3, bbox=(1, 2, 3))]), r"annotation 3, field bbox: found \[1, 2, 3\], expected 4"),
        (document(objects=[entry(3, bbox=(1, 2, 3, None))]), "annotation 3, field bbox: found nothing, expected"),
        (document(objects=[entry(3, bbox=(1, 2, 3, float("nan")))]), "annotation 3, field bbox: found NaN"),
        (document(objects=[entry(3, image_id=None)]), "annotation 3, field image_id: found nothing, expected an id"),
        (document(objects=[entry(3, bbox=(1, 2, 3, 10**400))]), r"annotation 3, field bbox: found 10*\.{3}, expected"),
        (document().replace("100", "9" * 5000), "train.json: JSON that can't be parsed"),
        (document(objects=[entry(3, iscrowd=10**400)]), "annotation 3, field iscrowd: found 1000"),
        (document([{"id": 1, "file_name": "a", "width": 10**400}]), "image 1, field width: found 1000"),
        (document([{"id": 1, "file_name": "a", "height": 1e300}]), r"image 1, field height: found 1e\+300, expected a"),
    ],
)  # fmt: skip
def test_errors_name_entry_and_field(text, message):
    with pytest.raises(UsageError, match=message):
        parsed(text)


@pytest.mark.parametrize(
    ("file", "image", "split"),
    [
        ("annotations/instances_train2017.json", "train2017/a.jpg", "train2017"),
        ("annotations/instances_train2017.JSON", "images/train2017/a.JPG", "train2017"),
        ("train.json", "images/a.jpg", "train"),
        ("annotations/train.json", "a.jpg", "train"),
        ("train/_annotations.coco.json", "train/a.jpg", "train"),
    ],
)
def test_supported_layouts(tmp_path, file, image, split):
    write(tmp_path, {file: document(), image: "", "annotations/captions_train2017.json": "{}", "._train.json": ""})
    assert list_splits(str(tmp_path), "coco") == [split]
    assert names_below(tmp_path, read_dataset(str(tmp_path), "coco", split)) == [image]


def test_skipped_entries_are_counted(tmp_path):
    objects = [
        entry(10, bbox=(5, 5, 0, 9)),
        entry(11, bbox=(5, 5, -4, 9)),
        entry(12, bbox=(200, 5, 10, 10)),
        entry(13, bbox=(90, 70, 20, 20)),
        entry(14, image_id=2),
    ]
    two = [{"id": 1, "file_name": "sub\\a.jpg", "width": 100, "height": 80}, {"id": 2, "file_name": "gone.jpg"}]
    write(tmp_path, {"val.json": document(two, objects), "images/sub/a.JPG": ""})
    dataset = read_dataset(str(tmp_path), "coco", "val")
    assert names_below(tmp_path, dataset) == ["images/sub/a.JPG"]
    assert dataset.records[0].objects == (Annotation("cow", (90, 70, 100, 80)),)
    assert dataset.skipped == {"empty_box": 1, "inverted_box": 1, "no_image": 1, "outside_box": 1}
    assert dataset.num_clipped_boxes == 1
    file = f"{tmp_path}/val.json"
    assert dataset.skip_examples["inverted_box"] == (
        f"{file}, image 1, annotation 11, box of 'cow': 5 5 1 14 in a frame of 100 x 80",
    )
    assert dataset.skip_examples["no_image"] == (f"{file}, image 2: there is no image 'gone.jpg'",)
