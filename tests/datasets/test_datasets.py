import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray import storage
from locray.datasets import FORMATS, Annotation, Dataset, Record, list_splits, read_dataset, split_for_validation
from locray.datasets.coco import write_coco
from locray.datasets.csv_boxes import write_csv
from locray.datasets.parquet import write_parquet
from locray.datasets.records import ImageAnnotations
from locray.errors import UsageError


def dataset_of(names, folder="/data"):
    records = tuple(Record(f"{folder}/{name}", (Annotation("cow", (0, 0, 1, 1)),), None, None) for name in names)
    return Dataset("data", "train", records, ("cow",), {"empty_box": 2}, 1)


def file_names(dataset):
    return {record.image_uri.rpartition("/")[2] for record in dataset.records}


NUMBERED = [f"{number:04}.jpg" for number in range(1000)]


@pytest.mark.parametrize(
    ("format_name", "message"),
    [
        ("vox", r"'vox'. Expected one of: coco, csv, .*, voc, yolo; did you mean 'voc'\?"),
        ("?", "Expected one of: coco, csv, .*, yolo$"),
    ],
)
def test_an_unknown_format_lists_the_known_ones(tmp_path, format_name, message):
    with pytest.raises(UsageError, match=message):
        read_dataset(str(tmp_path), format_name, "train")
    with pytest.raises(UsageError, match=message):
        list_splits(str(tmp_path), format_name)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", ["absent", "absent.zip"])
def test_missing_data_is_an_error(tmp_path, format_name, name):
    with pytest.raises(UsageError, match=f"{name} does not exist"):
        read_dataset(str(tmp_path / name), format_name, "train")
    with pytest.raises(UsageError, match=f"{name} does not exist"):
        list_splits(str(tmp_path / name), format_name)


@pytest.mark.s3
def test_a_missing_prefix_is_an_error(s3_bucket):
    for name in ("absent", "absent.zip"):
        with pytest.raises(UsageError, match=f"{name} does not exist"):
            read_dataset(f"{s3_bucket.uri}/{name}", "voc", "train")


def test_an_unknown_split_lists_the_existing_ones(real_data):
    with pytest.raises(UsageError, match=r"no split 'vall' in .*It has: test, train, val; did you mean 'val'\?"):
        read_dataset(str(real_data / "runway"), "voc", "vall")


def test_paths_are_normalised(real_data, monkeypatch):
    monkeypatch.chdir(real_data)
    dataset = read_dataset("./boards/", "csv", "test")
    assert dataset.name == "boards"
    assert dataset.records[0].image_uri.startswith(str(real_data.resolve()))


@given(st.lists(st.text(min_size=1), min_size=2, max_size=30, unique=True), st.floats(0.01, 0.99))
def test_both_parts_together_are_the_whole_and_neither_is_empty(names, fraction):
    whole = dataset_of(names)
    training, validation = split_for_validation(whole, fraction)
    assert training.records
    assert validation.records
    chosen = set(validation.records)
    assert training.records == tuple(record for record in whole.records if record not in chosen)
    assert set(training.records) | chosen == set(whole.records)


def test_the_validation_part_has_the_expected_share():
    training, validation = split_for_validation(dataset_of(NUMBERED), 0.2)
    assert 150 < len(validation.records) < 250
    assert (training.split, validation.split) == ("train", "val")
    assert training.classes == validation.classes == ("cow",)
    assert (training.skipped, training.num_clipped_boxes) == ({"empty_box": 2}, 1)
    assert (validation.skipped, validation.num_clipped_boxes) == ({}, 0), "counted once, with the training part"


def test_images_keep_their_part_when_the_data_grows_or_moves():
    _, before = split_for_validation(dataset_of(NUMBERED[:300]), 0.2)
    _, after = split_for_validation(dataset_of(reversed(NUMBERED), folder="s3://bucket/moved"), 0.2)
    assert file_names(before) == file_names(after) & set(NUMBERED[:300])


def test_the_validation_part_is_pinned():
    _, validation = split_for_validation(dataset_of(NUMBERED[:10]), 0.2)
    assert file_names(validation) == {"0001.jpg", "0006.jpg"}


def test_one_image_cannot_be_split():
    with pytest.raises(UsageError, match="Found 1 image in split 'train'"):
        split_for_validation(dataset_of(["a.jpg"]), 0.5)


@pytest.mark.s3
def test_a_bucket_is_read_like_a_folder(s3_bucket, real_data):
    """Unusual names are included; the images themselves are never fetched."""
    name = "boards of 100%/#1 ü"
    for path in sorted((real_data / "boards/images").rglob("*")):
        if path.suffix in {".csv", ".xml", ".jpg"} and path.parent.name != "train":
            key = f"{name}/{path.relative_to(real_data / 'boards')}"
            data = b"" if path.suffix == ".jpg" else path.read_bytes()
            s3_bucket.put(key, data)
    uri = f"{s3_bucket.uri}/{name}"
    for format_name in ("csv", "voc"):
        remote = read_dataset(uri, format_name, "test")
        local = read_dataset(str(real_data / "boards"), format_name, "test")
        assert remote.name == "#1 ü"
        assert [record.image_uri for record in remote.records] == [
            record.image_uri.replace(str(real_data / "boards"), uri) for record in local.records
        ]
        assert [record.objects for record in remote.records] == [record.objects for record in local.records]


def test_strict_names_the_first_place_and_counts_all(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    rows = ["filename,class,xmin,ymin,xmax,ymax", "a.jpg,cow,1,2,3,4", "a.jpg,cow,5,2,3,4", "a.jpg,ant,5,2,5,4"]
    (tmp_path / "train.csv").write_text("\n".join([*rows, "gone.jpg,cow,1,2,3,4", "gone too.jpg,cow,1,2,3,4"]))
    assert len(read_dataset(str(tmp_path), "csv", "train").records) == 1
    with pytest.raises(UsageError) as raised:
        read_dataset(str(tmp_path), "csv", "train", strict=True)
    assert str(raised.value).startswith(
        f"{tmp_path}/train.csv, image 'a.jpg', line 3, box of 'cow': 5 2 3 4: inverted_box. "
        "Found in split 'train': 1 x empty_box, 1 x inverted_box, 2 x no_image. Expected"
    )


def test_strict_accepts_clipped_boxes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax"
    (tmp_path / "train.csv").write_text(f"{header}\na.jpg,10,10,cow,1,2,30,4\n")
    dataset = read_dataset(str(tmp_path), "csv", "train", strict=True)
    assert (dataset.skipped, dataset.num_clipped_boxes) == ({}, 1)


def test_aliases_of_split_names(tmp_path):
    for split in ("training", "valid", "test"):
        (tmp_path / split / "cow").mkdir(parents=True)
        (tmp_path / split / "cow" / f"{split}.jpg").write_bytes(b"")
    assert list_splits(str(tmp_path), "folders") == ["test", "train", "val"]
    for split, folder in (("train", "training"), ("val", "valid"), ("valid", "valid"), ("test", "test")):
        dataset = read_dataset(str(tmp_path), "folders", split)
        assert file_names(dataset) == {f"{folder}.jpg"}
        assert dataset.split == split

    assert read_dataset(str(tmp_path), "folders", "validation").split == "validation"
    assert file_names(read_dataset(str(tmp_path), "folders", "Test")) == {"test.jpg"}

    (tmp_path / "val" / "cow").mkdir(parents=True)
    (tmp_path / "val" / "cow" / "val.jpg").write_bytes(b"")
    assert list_splits(str(tmp_path), "folders") == ["test", "train", "val", "valid"]
    assert file_names(read_dataset(str(tmp_path), "folders", "val")) == {"val.jpg"}


@pytest.mark.s3
def test_an_archive_in_a_bucket_is_read_like_a_folder(s3_bucket, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("pets/train/cow/1.jpg", "pets/train/ant/2.jpg", "pets/test/cow/3.jpg"):
            archive.writestr(name, b"x")
    s3_bucket.put("x.zip", (tmp_path / "x.zip").read_bytes())
    dataset = read_dataset(f"{s3_bucket.uri}/x.zip", "folders", "train")
    assert dataset.classes == ("ant", "cow")
    assert dataset.records[1].image_uri == f"zip:{s3_bucket.uri}/x.zip!/pets/train/cow/1.jpg"


WRITERS = {"coco": (write_coco, ".json"), "csv": (lambda images: write_csv(images).encode(), ".csv")}
WRITERS["parquet"] = (write_parquet, ".parquet")


def write_naming(folder, format_name, *names):
    """Annotations of images with these names."""
    writer, ending = WRITERS[format_name]
    folder.mkdir()
    cow = Annotation("cow", (1, 2, 3, 4))
    (folder / f"train{ending}").write_bytes(writer([ImageAnnotations(name, (cow,)) for name in names]))


@pytest.mark.s3
@pytest.mark.parametrize("format_name", WRITERS)
def test_local_annotations_of_images_in_a_bucket(s3_bucket, tmp_path, format_name):
    """Missing images are noticed only when they are fetched."""
    names = [f"{s3_bucket.uri}/100%/#1 ü.JPG", f"{s3_bucket.uri}/gone.jpg"]
    s3_bucket.put("100%/#1 ü.JPG", b"x")
    write_naming(tmp_path / "data", format_name, *names)
    dataset = read_dataset(str(tmp_path / "data"), format_name, "train")
    assert [record.image_uri for record in dataset.records] == names
    assert dataset.skipped == {}
    assert storage.read_bytes(names[0]) == b"x"


@pytest.mark.parametrize("format_name", ["coco", "csv"])
def test_annotations_of_images_by_absolute_path(tmp_path, format_name):
    """Paths of another machine are missing images."""
    elsewhere = tmp_path / "elsewhere" / "1.jpg"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"x")
    write_naming(tmp_path / "data", format_name, str(elsewhere), "/gone/2.jpg", "C:\\data\\3.jpg")
    dataset = read_dataset(str(tmp_path / "data"), format_name, "train")
    assert [record.image_uri for record in dataset.records] == [str(elsewhere)]
    assert dataset.skipped == {"no_image": 2}
