"""What a data set shows before a training: several objects for one, frames that contradict each other."""

import json
import logging
import re

import pytest
from PIL import Image

from locray import schema
from locray.config import ConvertConfig, TrainConfig
from locray.config.common import ImageLimits
from locray.datasets import read_dataset
from locray.datasets.conversion import convert
from locray.datasets.records import Annotation, Dataset, Record
from locray.evaluation.comparison import Comparison
from locray.images.decode import DecodeLimits, decode_image
from locray.progress import ignore
from locray.training.data_warnings import mixed_frames_warning, several_objects_warning
from locray.training.packed import PackedRecords
from locray.training.plan import make_plan

LIMITS = ImageLimits()
EXIF_ORIENTATION = 0x112
COW, ANT = Annotation("cow", (8.0, 4.0, 40.0, 30.0)), Annotation("ant", (1.0, 1.0, 9.0, 9.0))
CROWD = Annotation("ant", (0.0, 0.0, 9.0, 9.0), is_crowd=True)


def dataset_of(*objects):
    records = tuple(Record(f"/{number}.jpg", of_one, 64, 32) for number, of_one in enumerate(objects))
    return Dataset("data", "train", records, ("ant", "cow"), {})


@pytest.mark.parametrize(
    ("model", "num_several", "warns"),
    [
        ("localizer/resnet18", 2, True),
        ("small_cnn", 20, True),
        ("localizer/resnet18", 1, False),
        ("detector/fcos", 20, False),
        (None, 20, False),
    ],
)
def test_many_images_with_several_objects(model, num_several, warns):
    images = [(COW, ANT)] * num_several + [(COW, CROWD)] * (20 - num_several)
    found = several_objects_warning(model, dataset_of(*images))
    assert (found is not None) == warns
    if found is not None:
        assert f"{num_several} of 20 images of split 'train' hold several objects, and {model} finds one" in found


def photograph(path, orientation, upright_size=(64, 32)):
    """A picture whose upright form has this size."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    size = upright_size[::-1] if orientation >= 5 else upright_size
    Image.new("RGB", size).save(path, exif=exif)
    return str(path)


STORED, UPRIGHT, HALF_TURNED, UNKNOWN = (6, (32, 64)), (6, (64, 32)), (3, (64, 32)), (8, (None, None))


@pytest.mark.parametrize(
    ("images", "is_stored", "counts"),
    [
        ([STORED, STORED, UPRIGHT], False, "of 3 sampled images that EXIF turns, 2 are .* and 1 in the upright"),
        ([STORED, HALF_TURNED], False, "of 2 .*, 1 are .* and 0 in .*; 1 can't be told and are taken as upright"),
        ([STORED, UNKNOWN], False, "1 can't be told"),
        ([STORED, HALF_TURNED], True, None),
        ([UPRIGHT, UNKNOWN], True, "0 are annotated .* and 1 in .*; 1 can't be told and are taken as stored"),
        ([UPRIGHT, HALF_TURNED, UNKNOWN], False, None),
        ([STORED, (1, (64, 32))], False, None),
        ([], False, None),
    ],
)
def test_mixed_frames(tmp_path, images, is_stored, counts):
    records = [
        Record(photograph(tmp_path / f"{number}.jpg", orientation), (COW,), *frame, is_stored=is_stored)
        for number, (orientation, frame) in enumerate(images)
    ]
    found = mixed_frames_warning([*records, Record("/gone.jpg", (COW,), 1, 1)], LIMITS)
    if counts is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(counts, found)


def test_a_training_warns(tmp_path, caplog):
    objects = [{"id": n, "image_id": n % 2, "category_id": 1, "bbox": [n, 4, 9, 9]} for n in range(4)]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 32} for n in range(2)]
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cow"}]}
    (tmp_path / "train.json").write_text(json.dumps(document))
    for number in range(2):
        photograph(tmp_path / f"{number}.jpg", 1)
    with caplog.at_level(logging.WARNING, logger="locray"):
        make_plan(TrainConfig(data=str(tmp_path), format="coco", output=str(tmp_path / "out"), model="small_cnn"))
    assert "hold several objects, and small_cnn finds one" in caplog.text


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("size", [(None, None), (1, 1)])
def test_boxes_of_the_stored_image_in_training_evaluation_and_conversion(tmp_path, orientation, size):
    """A box at the left of the stored image, in relative corners or without a frame."""
    path = photograph(tmp_path / "a.jpg", orientation)
    with Image.open(path) as stored:
        width, height = stored.size
    if size == (1, 1):
        (tmp_path / "classes.txt").write_text("cow")
        (tmp_path / "a.txt").write_text("0 0.25 0.25 0.5 0.5")
        format_name = "yolo"
    else:
        (tmp_path / "train.csv").write_text(
            f"filename,class,xmin,ymin,xmax,ymax\na.jpg,cow,0,0,{width // 2},{height // 2}\n"
        )
        format_name = "csv"
    (record,) = read_dataset(str(tmp_path), format_name, "train", annotated_frame="stored").records
    decoded = decode_image((tmp_path / "a.jpg").read_bytes(), DecodeLimits.of(LIMITS))
    expected = [32, 16, 64, 32] if orientation == 3 else [32, 0, 64, 16]

    learned = PackedRecords.of((record,), ("cow",)).scene(0, decoded).objects.boxes_xyxy_px
    row = dict.fromkeys((schema.ERROR_CODE, schema.DETECTIONS)) | {schema.WIDTH: 64, schema.HEIGHT: 32}
    evaluated = Comparison(DecodeLimits.of(LIMITS)).result(record, row).true_boxes_xyxy_px
    output = f"{tmp_path}-out"
    options = {"data": str(tmp_path), "format": format_name, "to": "coco", "output": output}
    convert(ConvertConfig(**options, annotated_frame="stored"), ignore)
    written = read_dataset(output, "coco", "train").records[0]
    assert learned.tolist() == [expected]
    assert evaluated.tolist() == [expected]
    assert list(written.objects[0].box_xyxy_px) == expected
