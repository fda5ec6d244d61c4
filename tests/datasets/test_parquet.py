import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray import schema
from locray.datasets import Annotation, SkipReason, list_splits, read_dataset
from locray.datasets.parquet import parse_table, read_table, to_table, write_parquet
from locray.datasets.records import ImageAnnotations
from locray.errors import UsageError
from tests.helpers.annotated import annotations, corners, images, names_below, write

COW = Annotation("cow", (1, 2, 3, 4))


def parsed(columns):
    return parse_table(pa.table(columns), "train.parquet")


@given(images(annotations(corners | st.none(), st.booleans())))
def test_writer_and_parser_are_inverse(described):
    for table in (to_table(described), pq.read_table(pa.BufferReader(write_parquet(described)))):
        found = parse_table(table, "train.parquet")
        assert found.images == described
        assert found.skipped == []


@given(images(), st.integers(0, 5), st.integers(0, 5))
def test_a_slice_of_a_table_has_its_own_rows(described, start, length):
    table = to_table([*described, *described]).slice(start, length)
    chunked = pa.concat_tables([table, table])
    rows = [*described, *described][start : start + length]
    assert parse_table(chunked, "train.parquet").images == [*rows, *rows]


def test_other_types_missing_columns_and_nulls():
    """Files of other tools: dictionaries, small integers, no frame, no crowds. Null is not the same as empty."""
    kind = pa.struct([("label", pa.string()), *((name, pa.int16()) for name in ("xmin", "ymin", "xmax", "ymax"))])
    box = {"label": "cow", "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
    objects = pa.array([[box], None, [], [box, box]], pa.large_list(kind))
    names = pa.array(["a", "b", "c", "d"]).dictionary_encode()
    found = parsed({"filename": names, "objects": objects, "width": pa.array([0, 1, None, 64], pa.int8())})
    assert found.images == [
        ImageAnnotations("a", (COW,)),
        ImageAnnotations("c", ()),
        ImageAnnotations("d", (COW, COW), 64),
    ]
    assert found.skipped == [(SkipReason.NO_ANNOTATION, "train.parquet, row 1: objects is null")]

    (image,) = parsed({"image_uri": ["a"], "objects": [[{"label": "cow"}]]}).images
    assert image.objects == (Annotation("cow", None),)


BOX = {"label": "cow", "xmin": 1.0, "ymin": 2.0, "xmax": 3.0, "ymax": 4.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": ["a"]}, "train.parquet: found the columns uri; missing image_uri"),
        ({"image_uri": ["a"]}, "found the columns image_uri; missing objects"),
        (
            {"image_uri": ["a"], "objects": [1]},
            "column objects: found int64, expected a list of structs of label, xmin",
        ),
        (
            {"image_uri": ["a"], "objects": [[{"label": "a", "xmin": 1}]]},
            "found the fields .*; missing ymin, xmax, ymax",
        ),
        ({"image_uri": ["a"], "objects": [[{"name": "a"}]]}, "found the fields name; missing label"),
        ({"image_uri": ["a"], "objects": [[BOX | {"xmax": "x"}]]}, "objects.xmax: found string, expected double"),
        ({"image_uri": ["a"], "objects": [[BOX | {"label": None}]]}, "an object without label"),
        ({"image_uri": ["a"], "objects": [[BOX, BOX | {"ymin": None}]]}, "'cow' with some of its corners"),
        ({"image_uri": ["a"], "objects": [[BOX | {"ymin": float("nan")}]]}, "expected finite numbers"),
        ({"image_uri": ["a", None], "objects": [[BOX], [BOX]]}, "row 1: found no image"),
        ({"image_uri": ["a"], "objects": [[BOX]], "width": ["wide"]}, "column width: found string, expected int64"),
    ],
)
def test_errors_name_the_column(columns, message):
    with pytest.raises(UsageError, match=message):
        parsed(columns)


def test_a_file_that_is_not_parquet(tmp_path):
    write(tmp_path, {"train.parquet": "no table"})
    with pytest.raises(UsageError, match=r"train.parquet: no Parquet file that can be read"):
        read_table(str(tmp_path / "train.parquet"))


def test_splits_are_files_folders_or_shards(tmp_path):
    def table(*names):
        return write_parquet([ImageAnnotations(name, (COW,), 10, 10) for name in names])

    elsewhere = ["s3://bucket/a b.jpg", "/not/looked/for.jpg", "zip:/x.zip!/a.jpg"]
    tables = {
        "train-00000-of-00002.parquet": table("images/a.jpg", *elsewhere),
        "train-00001-of-00002.PARQUET": table("images/b.JPG", "images/gone.jpg"),
        "val/part-1.parquet": table("c.jpg", "images/a.jpg"),
        "test.parquet": table("images/a.jpg"),
    }
    write(tmp_path, {**tables, "images/a.jpg": "", "images/b.jpg": "", "val/c.jpg": ""})
    assert list_splits(str(tmp_path), "parquet") == ["test", "train", "val"]
    dataset = read_dataset(str(tmp_path), "parquet", "train")
    assert names_below(tmp_path, dataset) == ["images/a.jpg", *elsewhere, "images/b.jpg"]
    assert dataset.skipped == {"no_image": 1}
    assert names_below(tmp_path, read_dataset(str(tmp_path), "parquet", "val")) == ["val/c.jpg", "images/a.jpg"]


def test_skipped_entries_are_counted(tmp_path):
    boxes = [(1, 1, 1, 5), (5, 5, 4, 6), (20, 1, 30, 5), (5, 5, 20, 6)]
    objects = tuple(Annotation("cow", box) for box in boxes)
    again = ImageAnnotations("a.jpg", (Annotation("cow", (5, 5, 10, 6)),))
    rows = [ImageAnnotations("a.jpg", objects, 10, 10), ImageAnnotations("b.jpg", ()), again]
    write(tmp_path, {"train.parquet": write_parquet(rows), "a.jpg": "", "b.jpg": ""})
    dataset = read_dataset(str(tmp_path), "parquet", "train")
    assert [len(record.objects) for record in dataset.records] == [1, 0]
    assert dataset.skipped == {"duplicate_id": 1, "empty_box": 1, "inverted_box": 1, "outside_box": 1}
    assert dataset.num_clipped_boxes == 1


def test_several_rows_of_an_image_are_one_image(tmp_path):
    cow, ant = Annotation("cow", (1, 1, 5, 5)), Annotation("ant", (1, 1, 5, 5))
    rows = [ImageAnnotations(name, (one,)) for name, one in (("a.jpg", cow), ("./a.jpg", ant))]
    write(tmp_path, {"train.parquet": write_parquet(rows), "a.jpg": ""})
    (record,) = read_dataset(str(tmp_path), "parquet", "train", strict=True).records
    assert record.objects == (cow, ant)


def test_shards_of_several_splits_in_one_folder(tmp_path):
    for split in ("train", "test"):
        table = write_parquet([ImageAnnotations(f"{split}.jpg", ())])
        write(tmp_path, {f"data/{split}-00000-of-00001.parquet": table, f"data/{split}.jpg": ""})
    assert list_splits(str(tmp_path), "parquet") == ["test", "train"]
    assert names_below(tmp_path, read_dataset(str(tmp_path), "parquet", "train")) == ["data/train.jpg"]


def test_the_schema_is_the_documented_one():
    assert to_table([]).schema == schema.ANNOTATED_SCHEMA
