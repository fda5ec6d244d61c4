import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.datasets import list_splits, read_dataset
from locray.datasets.csv_boxes import parse_csv, write_csv
from locray.datasets.records import Annotation, ImageAnnotations
from locray.errors import UsageError

HEADER = "filename,class,xmin,ymin,xmax,ymax"

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
annotations = st.builds(
    Annotation,
    label=texts.map(str.strip).filter(bool),
    box_xyxy_px=st.tuples(numbers, numbers, numbers, numbers),
)
sides = st.none() | st.integers(1, 100_000)
images = st.builds(
    ImageAnnotations,
    filename=texts.filter(str.strip),
    objects=st.lists(annotations, max_size=4).map(tuple),
    width_px=sides,
    height_px=sides,
)


@given(st.lists(images, unique_by=lambda image: image.filename, max_size=6))
def test_writer_and_parser_are_inverse(described):
    assert parse_csv(write_csv(described), "labels.csv") == described


def test_the_written_text():
    described = [
        ImageAnnotations("a, b.jpg", (Annotation("cow", (1.0, 2.5, 30.0, 40.0)),), 64, 48),
        ImageAnnotations("empty.jpg", ()),
    ]
    assert write_csv(described) == (
        "filename,width,height,class,xmin,ymin,xmax,ymax\r\n"
        '"a, b.jpg",64,48,cow,1,2.5,30,40\r\n'
        "empty.jpg,,,,,,,\r\n"
    )  # fmt: skip


def test_columns_in_any_order_and_rows_grouped_by_image():
    text = (
        "\ufeffymax, xmax ,confidence,filename,xmin,ymin,class\r\n"
        "40,30,0.9,a.jpg,10,20, cow \r\n"
        "\r\n"
        "4,3,0.8,b.jpg,1,2,ant\r\n"
        "41,31,0.7,a.jpg,11,21,bee\r\n"
    ).removeprefix("\ufeff")
    assert parse_csv(text, "labels.csv") == [
        ImageAnnotations("a.jpg", (Annotation("cow", (10, 20, 30, 40)), Annotation("bee", (11, 21, 31, 41)))),
        ImageAnnotations("b.jpg", (Annotation("ant", (1, 2, 3, 4)),)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels.csv, line 1: found the columns \(none\); missing filename, class, xmin"),
        ("filename,label,xmin,ymin,xmax,ymax\n", "found the columns filename, label, .*; missing class. Expected"),
        (f"{HEADER}\na.jpg,cow,1,2,3,4\nb.jpg,cow,1,2,3\n", "line 3: found 5 fields, expected 6"),
        (f"{HEADER}\na.jpg,cow,1,2,three,4\n", "line 2, field xmax: found 'three', expected a number"),
        (f"{HEADER}\na.jpg,cow,1,,3,4\n", "line 2, field ymin: found nothing, expected a number"),
        (f"{HEADER}\na.jpg,,1,2,3,4\n", "line 2, field class: found nothing beside a box"),
        (f"{HEADER}\n,cow,1,2,3,4\n", "line 2, field filename: found nothing"),
        (f"{HEADER},width,height\na.jpg,cow,1,2,3,4,wide,5\n", "line 2, field width: found 'wide'"),
        (f"{HEADER},width,height\na.jpg,cow,1,2,3,4,1e300,5\n", r"line 2, field width: found 1e\+300, expected a side"),
        (
            f"{HEADER},width,height\na.jpg,cow,1,2,3,4,10,20\na.jpg,cow,1,2,3,4,20,10\n",
            r"line 3, fields width and height: found 20 x 10 for 'a.jpg', but 10 x 20",
        ),
        (f'{HEADER}\n"a.jpg"x,cow,1,2,3,4\n', "line 2: not a CSV row"),
    ],
)
def test_errors_name_line_and_field(text, message):
    with pytest.raises(UsageError, match=message):
        parse_csv(text, "labels.csv")


def test_folders_in_which_images_are_found(tmp_path):
    names = ["beside.jpg", "images/one.jpg", "train/two.jpg", "images/train/three.jpg", "images/ü #1 %.JPG"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = [f"{file},cow,1,2,3,4" for file in ["beside.jpg", "one.jpg", "two.jpg", "three.jpg", "ü #1 %.JPG"]]
    absent = ["gone.jpg,cow,1,2,3,4", "../other/gone.jpg,cow,1,2,3,4", f"{tmp_path}/gone.jpg,cow,1,2,3,4"]
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *rows, *absent]), encoding="utf-8-sig")

    dataset = read_dataset(str(tmp_path), "csv", "train")

    assert [record.image_uri for record in dataset.records] == [str(tmp_path / name) for name in names]
    assert dataset.skipped == {"no_image": 3}
    assert dataset.name == tmp_path.name


def test_splits_by_file_names(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ["train.csv", "train_labels.csv", "val_labels.csv", "images/test_labels.csv", "images/notes.csv"]:
        (tmp_path / name).write_text(f"{HEADER}\n{name}.jpg,cow,1,2,3,4\n")
    assert list_splits(str(tmp_path), "csv") == ["test", "train", "val"]

    (tmp_path / "train.csv.jpg").write_bytes(b"x")
    assert read_dataset(str(tmp_path), "csv", "train").records[0].image_uri == str(tmp_path / "train.csv.jpg")


def test_a_folder_without_splits_names_the_expected_files(tmp_path):
    with pytest.raises(UsageError, match=r"Found no splits in .*Expected: <split>.csv"):
        read_dataset(str(tmp_path), "csv", "train")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "train.csv").write_bytes(f"{HEADER}\n".encode() + b"\xff\xfe")
    with pytest.raises(UsageError, match=r"train.csv, byte 35: not UTF-8"):
        read_dataset(str(tmp_path), "csv", "train")


def test_the_boards_are_read(real_data):
    dataset = read_dataset(str(real_data / "boards"), "csv", "train")
    assert len(dataset.records) == 142
    assert sum(len(record.objects) for record in dataset.records) == 170
    assert dataset.classes == ("Arduino_Nano", "ESP8266", "Heltec_ESP32_Lora", "Raspberry_Pi_3")
    assert dataset.skipped == {}
    first = dataset.records[0]
    assert first.image_uri == str(real_data / "boards/images/train/IMG_20181228_101826.jpg")
    assert first.objects == (Annotation("Arduino_Nano", (317, 265, 556, 342)),)
    assert (first.width_px, first.height_px) == (800, 600)


def test_objects_without_a_box():
    described = [ImageAnnotations("a.jpg", (Annotation("cow", None), Annotation("ant", (1, 2, 3, 4))), None, 48)]
    text = write_csv(described)
    assert text.splitlines()[1] == "a.jpg,,48,cow,,,,"
    assert parse_csv(text, "labels.csv") == described


def test_file_names_written_on_windows_are_found(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.JPG", "b.jpeg"):
        (tmp_path / "images" / name).write_bytes(b"")
    rows = ["images\\a.jpg,cow,1,2,3,4", "./images/b.JPEG,cow,1,2,3,4", "images/a.JPG,ant,1,2,3,4"]
    (tmp_path / "TRAIN_LABELS.CSV").write_text("\n".join([HEADER, *rows]))
    assert list_splits(str(tmp_path), "csv") == ["train"]
    dataset = read_dataset(str(tmp_path), "csv", "TRAIN")
    assert [record.image_uri for record in dataset.records] == [
        str(tmp_path / "images/a.JPG"), str(tmp_path / "images/b.jpeg")
    ]  # fmt: skip
    assert [one.label for one in dataset.records[0].objects] == ["cow", "ant"], "the same image under another name"
    assert dataset.skipped == {}


def test_corners_between_0_and_1_are_no_pixels(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    shares, pixels = "a.jpg,cow,.1,.2,.3,.4", "a.jpg,cow,1,2,3,4"
    (tmp_path / "train.csv").write_text("\n".join([HEADER, shares, pixels, "a.jpg,ant,5,6,7,8", "a.jpg,ant,0,0,1,1"]))
    dataset = read_dataset(str(tmp_path), "csv", "train")
    assert dataset.skipped == {"relative_box": 1}
    assert len(dataset.records[0].objects) == 3, "a whole pixel is a box"
    (tmp_path / "train.csv").write_text("\n".join([HEADER, shares, pixels]))
    message = r"line 2, box of 'cow': 0.1 0.2 0.3 0.4: found corners between 0 and 1 in 1 of 2 boxes .*Expected pixels"
    with pytest.raises(UsageError, match=message):
        read_dataset(str(tmp_path), "csv", "train")


def test_an_object_that_comes_again_is_skipped(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    rows = ["a.jpg,cow,1,2,3,4", "./a.jpg,cow,1,2,3,4", "a.jpg,ant,1,2,3,4", "a.jpg,cow,1,2,3,4", "a.jpg,bee,,,,"]
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *rows, "./a.jpg,bee,,,,"]))
    dataset = read_dataset(str(tmp_path), "csv", "train")
    assert [one.label for one in dataset.records[0].objects] == ["cow", "ant", "bee"]
    assert dataset.skipped == {"duplicate_id": 3}


def test_an_image_again_in_another_frame_is_skipped(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    rows = ["a.jpg,cow,1,2,3,4,100,80", "./a.jpg,ant,1,2,3,4,50,40"]
    (tmp_path / "train.csv").write_text("\n".join([f"{HEADER},width,height", *rows]))
    dataset = read_dataset(str(tmp_path), "csv", "train")
    assert dataset.classes == ("cow",)
    assert "again, in a frame of 50 x 40 instead of 100 x 80" in dataset.skip_examples["duplicate_id"][0]


@pytest.mark.parametrize(("written", "stored"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")])
def test_names_in_both_forms_of_unicode(tmp_path, written, stored):
    (tmp_path / f"{stored}.jpg").write_bytes(b"")
    rows = [f"{written}.jpg,{label},1,2,3,4" for label in (written, stored)]
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    dataset = read_dataset(str(tmp_path), "csv", "train")
    assert dataset.classes == ("caf\u00e9",)
    assert dataset.skipped == {"duplicate_id": 1}, "one class"


def test_skip_examples_name_lines(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "train.csv").write_text(f"{HEADER}\na.jpg,cow,1,2,3,4\na.jpg,cow,5,2,3,4\ngone.jpg,cow,1,2,3,4\n")
    dataset = read_dataset(str(tmp_path), "csv", "train")
    image = f"{tmp_path}/train.csv, image 'a.jpg'"
    assert dataset.skip_examples["inverted_box"] == (f"{image}, line 3, box of 'cow': 5 2 3 4",)
    assert dataset.skip_examples["no_image"] == (
        f"{tmp_path}/train.csv, image 'gone.jpg': there is no image 'gone.jpg'",
    )


def test_boxes_outside_a_known_frame_are_skipped(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    rows = ["a.jpg,cow,100,0,120,50,100,50", "a.jpg,ant,-9,5,0.5,60,100,50", "a.jpg,cow,5,-9,9,-1,100,50"]
    unknown = ["b.jpg,cow,100,0,120,50,,", "b.jpg,cow,5,-9,9,-1,,", "b.jpg,ant,5,-9,9,1,,"]
    (tmp_path / "train.csv").write_text("\n".join([f"{HEADER},width,height", *rows, *unknown]))
    dataset = read_dataset(str(tmp_path), "csv", "train")
    assert [record.objects for record in dataset.records] == [
        (Annotation("ant", (0, 5, 0.5, 50)),),
        (Annotation("cow", (100, 0, 120, 50)), Annotation("ant", (5, 0, 9, 1))),
    ]
    assert (dataset.skipped, dataset.num_clipped_boxes) == ({"outside_box": 3}, 2)
    file = f"{tmp_path}/train.csv"
    assert dataset.skip_examples["outside_box"] == (
        f"{file}, image 'a.jpg', line 2, box of 'cow': 100 0 120 50 in a frame of 100 x 50",
        f"{file}, image 'a.jpg', line 4, box of 'cow': 5 -9 9 -1 in a frame of 100 x 50",
        f"{file}, image 'b.jpg', line 6, box of 'cow': 5 -9 9 -1",
    )
