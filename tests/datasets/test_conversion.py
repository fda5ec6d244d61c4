"""`convert`: real data sets to every format and back, and data that a format can't hold."""

import io
import json
import posixpath
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from locray.config import ConvertConfig
from locray.datasets import FORMATS, list_splits, read_dataset
from locray.datasets.conversion import convert
from locray.datasets.writable import WRITABLE, unique_names
from locray.errors import UsageError
from locray.images.decode import DecodeLimits, decode_image
from locray.progress import ignore
from tests.helpers.annotated import names_below, write

WITH_BOXES = sorted(WRITABLE.keys() - {"folders"})
COPYING = {"voc", "yolo", "folders", "regions"}


def converted(data, format_name, to, output, **options):
    config = ConvertConfig(data=str(data), format=format_name, to=to, output=str(output), **options)
    return convert(config, ignore)


def voc_subset(source, folder, splits):
    """A VOC data set with links to the first images of each split."""
    for split, count in splits.items():
        ids = (source / "ImageSets/Main" / f"{split}.txt").read_text().split()[:count]
        write(folder, {f"ImageSets/Main/{split}.txt": "\n".join(ids)})
        for name in [f"Annotations/{one}.xml" for one in ids] + [f"JPEGImages/{one}.jpg" for one in ids]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(source / name)
    return folder


@pytest.fixture(scope="module")
def real_sets(real_data, tmp_path_factory):
    """Real data sets by name: folder and format."""
    folder = tmp_path_factory.mktemp("real")
    return {
        "blood": (voc_subset(real_data / "blood", folder / "blood", {"train": 8, "test": 4}), "voc"),
        "boards": (real_data / "boards" / "images", "csv"),
        "runway": (voc_subset(real_data / "runway", folder / "runway", {"train": 6, "val": 5, "test": 4}), "voc"),
    }


def objects_by_image(dataset):
    """Returns labels and boxes (pixels) by the image's stem, sorted by label, as `regions` groups them."""
    found = {}
    for record in dataset.records:
        scale = (1, 1, 1, 1)
        if record.width_px == 1:
            image = decode_image(read(record.image_uri), DecodeLimits(2**28, 2**28))
            scale = (image.width_px, image.height_px) * 2
        objects = [
            (each.label, *(value * side for value, side in zip(each.box_xyxy_px, scale, strict=True)))
            for each in record.objects
        ]
        stem = posixpath.splitext(posixpath.basename(record.image_uri))[0]
        found[stem] = sorted(objects, key=lambda one: one[0])
    return found


def read(uri):
    with open(uri, "rb") as file:
        return file.read()


def assert_same_objects(one, other):
    """Compares labels and boxes, with a tolerance for rounding."""
    one, other = objects_by_image(one), objects_by_image(other)
    assert one.keys() == other.keys()
    for name, objects in one.items():
        assert [label for label, *_ in objects] == [label for label, *_ in other[name]]
        for (_, *box), (_, *same) in zip(objects, other[name], strict=True):
            assert box == pytest.approx(same, abs=1e-6)


@pytest.mark.parametrize("name", ["blood", "boards", "runway"])
@pytest.mark.parametrize("to", WITH_BOXES)
def test_real_data_is_the_same_in_every_format(tmp_path, real_sets, name, to):
    data, format_name = real_sets[name]
    summary = converted(data, format_name, to, tmp_path / "out", max_pixels=10**9)
    splits = list_splits(str(data), format_name)
    assert list_splits(str(tmp_path / "out"), to) == splits == sorted(summary.splits)
    for split in splits:
        before = read_dataset(str(data), format_name, split)
        after = read_dataset(str(tmp_path / "out"), to, split, strict=True)
        assert after.classes == before.classes
        assert summary.splits[split] == len(after.records)
        assert_same_objects(after, before)
        own = [uri.startswith(str(tmp_path)) for uri in (record.image_uri for record in after.records)]
        assert all(own) if to in COPYING else not any(own)
    assert (summary.copied_images > 0) == (to in COPYING)
    assert (summary.errors, summary.images) == ({}, sum(summary.splits.values()))


@pytest.mark.parametrize("to", WITH_BOXES)
@pytest.mark.parametrize("inside", ["", "blood/"])
def test_a_folder_and_its_archive_are_the_same(tmp_path, real_sets, to, inside):
    folder, archive_uri = tmp_path / "blood", str(tmp_path / "packed.zip")
    converted(*real_sets["blood"], to, folder)
    with zipfile.ZipFile(archive_uri, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in filter(lambda path: path.is_file(), folder.rglob("*")):
            archive.write(path, inside + str(path.relative_to(folder)))
        archive.writestr(f"__MACOSX/{inside}._train.json", b"\0")
        archive.writestr(f"{inside}.DS_Store", b"\0")
    from_folder = read_dataset(str(folder), to, "train")
    from_archive = read_dataset(archive_uri, to, "train", strict=True)
    assert [record.objects for record in from_archive.records] == [record.objects for record in from_folder.records]
    converted(archive_uri, to, "coco", tmp_path / "again")
    again = read_dataset(str(tmp_path / "again"), "coco", "train", strict=True)
    if to in COPYING:
        assert all(name.startswith("images/") for name in names_below(tmp_path / "again", again))
    assert_same_objects(again, read_dataset(str(real_sets["blood"][0]), "voc", "train"))


def test_classes_of_folders_are_kept(tmp_path, real_sets):
    data, format_name = real_sets["runway"]
    files = {}
    for split in ("train", "val"):
        for number, record in enumerate(read_dataset(str(data), format_name, split).records):
            files[f"{split}/{record.objects[0].label}/{number}.jpg"] = read(record.image_uri)
    write(tmp_path / "classes", files)
    for to in ("folders", "coco", "csv", "parquet"):
        converted(tmp_path / "classes", "folders", to, tmp_path / to)
        for split in ("train", "val"):
            after = read_dataset(str(tmp_path / to), to, split, strict=True)
            labels = {posixpath.basename(one.image_uri)[:-4]: one.objects[0].label for one in after.records}
            expected = [name.split("/") for name in files if name.startswith(split)]
            assert len(after.records) == len(expected)
            assert sorted(labels.values()) == sorted(label for _, label, _ in expected)
            assert to == "folders" or {(one.width_px, one.height_px) for one in after.records} == {(300, 300)}


def test_pycocotools_reads_what_is_written(tmp_path, real_sets):
    converted(*real_sets["blood"], "coco", tmp_path)
    coco = COCO(str(tmp_path / "annotations/instances_train.json"))
    assert len(coco.getImgIds()) == 8
    assert all(entry["width"] == 640 for entry in coco.loadImgs(coco.getImgIds()))


def image_bytes(width=40, height=20, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def coco_files(annotations, *, images=("a.jpg",), sides=None, split="train"):
    return {
        f"{split}.json": json.dumps(
            {
                "images": [{"id": at, "file_name": name, **(sides or {})} for at, name in enumerate(images)],
                "annotations": [{"id": at, "category_id": 1, **each} for at, each in enumerate(annotations)],
                "categories": [{"id": 1, "name": "cow"}, {"id": 2, "name": "a/b"}],
            }
        )
    }


BOX = {"image_id": 0, "bbox": [0, 0, 10, 10]}


def test_boxes_of_a_turned_image_are_upright_in_yolo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = coco_files([BOX], sides={"width": 40, "height": 20})
    write(tmp_path / "data", {**files, "a.jpg": image_bytes(exif=exif)})
    converted(tmp_path / "data", "coco", "yolo", tmp_path / "out")
    (record,) = read_dataset(str(tmp_path / "out"), "yolo", "train").records
    assert record.objects[0].box_xyxy_px == (0.5, 0, 1, 0.25)


def test_relative_boxes_become_pixels_and_unknown_sizes_known(tmp_path):
    write(tmp_path / "yolo", {"images/train/a.jpg": image_bytes(), "labels/train/a.txt": "0 .5 .5 .5 .5"})
    write(tmp_path / "yolo", {"data.yaml": "names: [cow]"})
    write(tmp_path / "csv", {"train.csv": "filename,class,xmin,ymin,xmax,ymax\na.jpg,cow,10,5,99,15\n"})
    write(tmp_path / "csv", {"a.jpg": image_bytes()})
    for data, box in (("yolo", (10, 5, 30, 15)), ("csv", (10, 5, 40, 15))):
        converted(tmp_path / data, data, "coco", tmp_path / f"{data}-out")
        (record,) = read_dataset(str(tmp_path / f"{data}-out"), "coco", "train").records
        assert (record.width_px, record.height_px, record.objects[0].box_xyxy_px) == (40, 20, box)


def test_images_with_the_same_name_get_unique_names():
    uris = ["/x/a.jpg", "/y/a.png", "/y/A.jpg", "/z/a-2.jpg", "s3://b/.a\n", "s3://b/x.v2", "/z/ü b.JPEG"]
    assert list(unique_names([*uris, "/x/a.jpg"]).values()) == [
        *("a.jpg", "a-2.png", "A-3.jpg", "a-2-2.jpg", "a_.jpg", "x.v2.jpg", "ü b.JPEG")
    ]  # fmt: skip


def test_crowds_are_skipped_where_a_format_has_none(tmp_path):
    write(tmp_path / "data", {**coco_files([BOX, BOX | {"iscrowd": 1}]), "a.jpg": image_bytes()})
    assert converted(tmp_path / "data", "coco", "parquet", tmp_path / "parquet").skipped == {}
    assert converted(tmp_path / "data", "coco", "voc", tmp_path / "voc").skipped == {"crowd": 1}
    with pytest.raises(UsageError, match=r"train.json, image 0: crowd\. Found in split 'train': 1 x crowd"):
        converted(tmp_path / "data", "coco", "voc", tmp_path / "strict", strict=True)


@pytest.mark.parametrize(
    ("annotations", "to", "message"),
    [
        ([BOX], "folders", "folders can't hold boxes. Found in split 'train', .*/a.jpg. Expected --to coco or csv or"),
        ([{"image_id": 0}], "voc", "voc can't hold objects without a box.* Expected --to coco or csv or folders or"),
        ([{"image_id": 0, "category_id": 2}], "folders", "can't hold classes whose name can't be a folder's"),
        ([{"image_id": 0}, {"image_id": 0, "category_id": 2}], "folders", "objects of several classes"),
        ([], "regions", "can't hold images without objects"),
        ([], "folders", "can't hold images without objects"),
    ],
)
def test_data_that_a_format_cannot_hold_is_an_error(tmp_path, annotations, to, message):
    write(tmp_path / "data", {**coco_files(annotations), "a.jpg": image_bytes()})
    with pytest.raises(UsageError, match=message):
        converted(tmp_path / "data", "coco", to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_annotated_differently_in_two_splits_has_no_voc_file(tmp_path):
    files = coco_files([BOX]) | coco_files([BOX | {"bbox": [1, 1, 2, 2]}], split="val")
    write(tmp_path / "data", {**files, "a.jpg": image_bytes()})
    with pytest.raises(UsageError, match="different annotations of this image in several splits"):
        converted(tmp_path / "data", "coco", "voc", tmp_path / "out")
    converted(tmp_path / "data", "coco", "yolo", tmp_path / "yolo")


def test_broken_images_are_counted_and_an_error_under_strict(tmp_path):
    images = {"a.jpg": image_bytes(), "b.jpg": image_bytes()[:-200], "c.jpg": b""}
    boxes = [BOX | {"image_id": at} for at in range(3)]
    write(tmp_path / "data", {**coco_files(boxes, images=images), **images})
    summary = converted(tmp_path / "data", "coco", "yolo", tmp_path / "out")
    assert (summary.images, summary.copied_images, summary.errors) == (1, 1, {"empty_file": 1, "truncated": 1})
    assert names_below(tmp_path / "out", read_dataset(str(tmp_path / "out"), "yolo", "train")) == ["images/train/a.jpg"]
    with pytest.raises(UsageError, match=r"data/[bc].jpg: (truncated|empty_file) \(.*as --strict demands"):
        converted(tmp_path / "data", "coco", "yolo", tmp_path / "strict", strict=True)


def test_an_output_that_is_not_empty_is_refused(tmp_path):
    write(tmp_path / "data", {**coco_files([BOX]), "a.jpg": image_bytes()})
    write(tmp_path, {"full/x": "", "file": ""})
    (tmp_path / "empty").mkdir()
    for output, message in (("full", "is not empty"), ("file", "is a file"), ("data/out", "lies in the data set")):
        with pytest.raises(UsageError, match=message):
            converted(tmp_path / "data", "coco", "yolo", tmp_path / output)
    converted(tmp_path / "data", "coco", "yolo", tmp_path / "empty")
    with pytest.raises(UsageError, match="Found no splits in"):
        converted(tmp_path / "full", "coco", "yolo", tmp_path / "out")


def test_from_one_bucket_to_another(s3_bucket):
    files = {**coco_files([BOX], images=["a.jpg", "gone.jpg"]), "a.jpg": image_bytes()}
    for name, data in files.items():
        s3_bucket.put(f"data/{name}", data if isinstance(data, bytes) else data.encode())
    assert converted(f"{s3_bucket.uri}/data", "coco", "yolo", f"{s3_bucket.uri}/yolo").copied_images == 1
    converted(f"{s3_bucket.uri}/yolo", "yolo", "csv", f"{s3_bucket.uri}/csv")
    (record,) = read_dataset(f"{s3_bucket.uri}/csv", "csv", "train").records
    assert record.image_uri == f"{s3_bucket.uri}/yolo/images/train/a.jpg"
    assert record.objects[0].box_xyxy_px == (0, 0, 10, 10)
    with pytest.raises(UsageError, match="is not empty"):
        converted(f"{s3_bucket.uri}/data", "coco", "yolo", f"{s3_bucket.uri}/yolo")


def test_every_format_but_that_of_predictions_is_writable():
    assert WRITABLE.keys() == FORMATS.keys() - {"predictions"}
