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
    assert [(image.filename, len(image.objects)) for image in found.images] == [("a.jpg", 2), ("c.jpg", 1)]
    assert found.skipped == [
        (SkipReason.DUPLICATE_ID, "train.json, image 1"),
        (SkipReason.UNKNOWN_IMAGE, "train.json, annotation 2: image 9"),
        (SkipReason.UNKNOWN_CLASS, "train.json, annotation 3: category 8"),
    ]


def test_an_id_that_comes_again_is_no_duplicate(tmp_path):
    two = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    objects = [entry(1), entry(1, image_id=2), entry(1, bbox=(3, 3, 3, 3)), entry(8)]
    write(tmp_path, {"train.json": document(two, objects), "a.jpg": "", "b.jpg": ""})
    dataset = read_dataset(str(tmp_path), "coco", "train")
    assert [len(record.objects) for record in dataset.records] == [2, 1]
    assert dataset.skipped == {"duplicate_id": 1}
    box = "box of 'cow': 1 2 11 22.5"
    assert dataset.skip_examples["duplicate_id"] == (f"{tmp_path}/train.json, image 1, annotation 8, {box}",)


def test_an_images_entry_per_box_is_one_image(tmp_path):
    entries = [{"id": number, "file_name": "a.jpg", "width": 64, "height": 48} for number in (1, 2, 3)]
    objects = [entry(number, image_id=number, bbox=(number, 2, 9, 9)) for number in (1, 2, 3)]
    write(tmp_path, {"train.json": document(entries, objects), "a.jpg": ""})
    dataset = read_dataset(str(tmp_path), "coco", "train", strict=True)
    assert [len(record.objects) for record in dataset.records] == [3]


def test_ids_as_pandas_writes_them_and_crowds_as_booleans():
    image = {"id": 1.0, "file_name": "a.jpg", "width": 100.0, "height": 80.0}
    objects = [entry(1.0, 1.0, 7.0, iscrowd=True), entry(None, 1, 90, iscrowd=False), entry(3.0, 1.0, 7, iscrowd=None)]
    (found,) = parsed(document([image], objects)).images
    assert [(one.label, one.is_crowd) for one in found.objects] == [("cow", True), ("ant", False), ("cow", False)]
    with pytest.raises(UsageError, match=r"annotation 3, field image_id: found 1\.5, expected an id"):
        parsed(document([image], [entry(3, 1.5)]))


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([entry(1, category_id="7")], 'category_id: found the text "7", but categories has the number 7'),
        ([entry(1, image_id="1")], 'image_id: found the text "1", but images has the number 1'),
    ],
)
def test_text_beside_a_number(objects, message):
    with pytest.raises(UsageError, match=f"annotation 1, field {message}. Expected ids of one type"):
        parsed(document(objects=objects))


def test_a_number_beside_text():
    with pytest.raises(UsageError, match='image_id: found the number 1, but images has the text "1"'):
        parsed(document([{"id": "1", "file_name": "a.jpg"}], [entry(1)]))


POLYGON = [[10, 5, 30, 5, 20.5, 25]]
COLUMNS = [34, 3, 5, 4, 34]  # of an image 8 high and 10 wide: column 4, rows 2 to 4; column 5, 2 to 5


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        (POLYGON, (10, 5, 30, 25)),
        ([*POLYGON, [40, 1, 50, 1, 45, 60]], (10, 1, 50, 60)),
        (POLYGON[0], (10, 5, 30, 25)),
        ({"size": [8, 10], "counts": COLUMNS}, (4, 2, 6, 6)),
        ({"size": [8, 10], "counts": "R1351m0"}, (4, 2, 6, 6)),
        ({"size": [8, 10], "counts": [8 * 3 + 6, 4, 80 - 34]}, (3, 0, 5, 8)),
        ({"size": [8, 10], "counts": [80]}, None),
        ([], None),
    ],
)
def test_the_box_of_a_segmentation(segmentation, box):
    objects = [{key: value for key, value in entry(1, segmentation=segmentation).items() if key != "bbox"}]
    (image,) = parsed(document(objects=objects)).images
    assert image.objects == (Annotation("cow", box),)


@pytest.mark.parametrize(
    "segmentation", [7, [[1, 2]], [[1, 2, 3, 4, 5]], {"counts": [1]}, {"size": [8, 10], "counts": [79]},
                     {"size": [8, 10], "counts": "\n"}, {"size": [8, 10], "counts": "oooooooooo"}]
)  # fmt: skip
def test_an_invalid_segmentation_without_a_box_is_an_error(segmentation):
    with pytest.raises(UsageError, match="annotation 1, field segmentation: found"):
        parsed(document(objects=[entry(1, bbox=(), segmentation=segmentation)]))


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
