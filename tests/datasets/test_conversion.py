"""Real annotations through the writers of the other formats and back."""

import posixpath
import zipfile

import pytest

from locray.datasets import list_splits, read_dataset
from locray.datasets.coco import write_coco
from locray.datasets.csv_boxes import write_csv
from locray.datasets.parquet import write_parquet
from locray.datasets.records import ImageAnnotations
from locray.datasets.regions import write_regions
from locray.datasets.voc import write_voc
from locray.datasets.yolo import write_data_yaml, write_yolo
from tests.helpers.annotated import write


@pytest.fixture(scope="module")
def blood(real_data):
    return read_dataset(str(real_data / "blood"), "voc", "train")


def described_of(dataset):
    return [
        ImageAnnotations(
            f"images/train/{posixpath.basename(record.image_uri)}", record.objects, record.width_px, record.height_px
        )
        for record in dataset.records
    ]


def yolo_files(images, classes):
    labels = {
        image.filename.replace("images/", "labels/")[:-4] + ".txt": write_yolo(image, classes) for image in images
    }
    return {"data.yaml": write_data_yaml(classes), **labels}


FILES = {
    "coco": lambda images, _: {"annotations/instances_train.json": write_coco(images)},
    "csv": lambda images, _: {"train.csv": write_csv(images)},
    "parquet": lambda images, _: {"train.parquet": write_parquet(images)},
    "regions": lambda images, _: {
        "regions.json": write_regions(
            ImageAnnotations(posixpath.basename(image.filename), image.objects, image.width_px, image.height_px)
            for image in images
        )
    },
    "voc": lambda images, _: {image.filename[:-4] + ".xml": write_voc(image) for image in images},
    "yolo": yolo_files,
}


def objects_by_image(dataset):
    """Labels and boxes in pixels by the image's name; by label, as `regions` groups them, else in their order."""
    found = {}
    for record in dataset.records:
        scale = (640, 480) * 2 if record.width_px == 1 else (1, 1, 1, 1)
        objects = [
            (each.label, *(value * side for value, side in zip(each.box_xyxy_px, scale, strict=True)))
            for each in record.objects
        ]
        found[posixpath.basename(record.image_uri)] = sorted(objects, key=lambda one: one[0])
    return found


def assert_same_objects(one, other):
    """But for the rounding of what formats derive from corners."""
    one, other = objects_by_image(one), objects_by_image(other)
    assert one.keys() == other.keys()
    for name, objects in one.items():
        assert [label for label, *_ in objects] == [label for label, *_ in other[name]]
        for (_, *box), (_, *same) in zip(objects, other[name], strict=True):
            assert box == pytest.approx(same, abs=1e-6)


@pytest.mark.parametrize("format_name", FILES)
def test_blood_is_the_same_in_every_format(tmp_path, blood, format_name):
    images = described_of(blood)
    write(tmp_path, {**FILES[format_name](images, blood.classes), **{image.filename: "" for image in images}})
    assert "train" in list_splits(str(tmp_path), format_name)
    again = read_dataset(str(tmp_path), format_name, "train", strict=True)
    assert again.classes == blood.classes
    assert_same_objects(again, blood)


@pytest.mark.parametrize("format_name", FILES)
@pytest.mark.parametrize("inside", ["", "blood/"])
def test_a_folder_and_its_archive_are_the_same(tmp_path, blood, format_name, inside):
    images = described_of(blood)[:20]
    files = {**FILES[format_name](images, blood.classes), **{image.filename: "" for image in images}}
    write(tmp_path / "blood", files)
    archive_uri = str(tmp_path / "packed.zip")
    with zipfile.ZipFile(archive_uri, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(inside + name, data)
        archive.writestr(f"__MACOSX/{inside}._train.json", b"\0")
        archive.writestr(f"{inside}.DS_Store", b"\0")
    from_folder = read_dataset(str(tmp_path / "blood"), format_name, "train")
    from_archive = read_dataset(archive_uri, format_name, "train", strict=True)
    assert [
        (record.image_uri.partition("!/")[2].removeprefix(inside), record.objects) for record in from_archive.records
    ] == [
        (record.image_uri.removeprefix(f"{tmp_path}/blood/"), record.objects) for record in from_folder.records
    ]  # fmt: skip


def test_every_real_annotation_survives_coco(tmp_path, real_data):
    for name, format_name, split in (("runway", "voc", "val"), ("boards", "csv", "train")):
        dataset = read_dataset(str(real_data / name), format_name, split)
        images = described_of(dataset)
        folder = tmp_path / name
        write(folder, {"train.json": write_coco(images), **{image.filename: "" for image in images}})
        again = read_dataset(str(folder), "coco", "train", strict=True)
        assert_same_objects(again, dataset)
