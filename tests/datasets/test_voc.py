from collections import Counter

import pytest
from hypothesis import given

from locray.datasets import list_splits, read_dataset
from locray.datasets.records import Annotation, ImageAnnotations
from locray.datasets.voc import parse_voc, write_voc
from locray.errors import UsageError
from tests.helpers.annotated import images

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>4</ymax></bndbox>"
COW = f"<object><name> cow </name>{BOX}</object>"
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"


def annotation(*parts):
    return f"<annotation>{''.join(parts)}</annotation>"


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def uris_below(folder, dataset):
    return [record.image_uri.removeprefix(f"{folder}/") for record in dataset.records]


def test_an_annotation_with_everything():
    person = (
        "<object><part><name>head</name><bndbox><xmin>9</xmin></bndbox></part><difficult>1</difficult>"
        f"<name>person</name>{BOX}</object>"
    )
    xml = annotation("<filename>a.jpg</filename>", SIZE, COW, person)
    expected = (Annotation("cow", (1, 2, 3.5, 4)), Annotation("person", (1, 2, 3.5, 4)))
    assert parse_voc(xml, "a.xml") == ImageAnnotations("a.jpg", expected, 100, 80)


def test_an_annotation_without_optional_fields():
    assert parse_voc("<annotation/>", "a.xml") == ImageAnnotations(None, ())
    no_size = annotation("<size><width>0</width><height></height></size>")
    assert parse_voc(no_size, "a.xml") == ImageAnnotations(None, ())


def test_bytes_are_decoded_as_they_declare():
    xml = '<?xml version="1.0" encoding="iso-8859-1"?>' + annotation("<filename>Kühe.jpg</filename>")
    assert parse_voc(xml.encode("latin-1"), "a.xml").filename == "Kühe.jpg"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", r"a.xml: not well-formed XML \(no element found: line 1, column 0\)"),
        (annotation("\n<object></wrong>"), r"a.xml: not well-formed XML \(mismatched tag: line 2, column 10\)"),
        ("<svg/>", "a.xml: found <svg>, expected a Pascal VOC <annotation>"),
        (annotation(COW, "<object></object>"), "a.xml, object 2, field name: found nothing"),
        (annotation("<object><name>cow</name></object>"), "a.xml, object 1, field bndbox/xmin: found nothing"),
        (annotation(COW.replace("3.5", "3,5")), "a.xml, object 1, field bndbox/xmax: found '3,5', expected a number"),
        (annotation(SIZE.replace("80", "high")), "a.xml, field size/height: found 'high'"),
        (b'<?xml version="1.0" encoding="no-such-code"?><annotation/>', "a.xml: not well-formed XML"),
        (b'<?xml version="1.0" encoding="gb2312"?><annotation/>', "a.xml: not well-formed XML"),
    ],
)
def test_errors_name_the_place(xml, message):
    with pytest.raises(UsageError, match=message):
        parse_voc(xml, "a.xml")


@pytest.mark.parametrize(
    "subset",
    [
        '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        "",
    ],
)
def test_entity_declarations_are_refused(subset):
    xml = f"<!DOCTYPE annotation [{subset}]>" + annotation("<filename>&b;&a;</filename>")
    with pytest.raises(UsageError, match=r"a.xml: found a document type declaration"):
        parse_voc(xml, "a.xml")


def test_the_devkit_layout_and_its_skipped_entries(tmp_path):
    out_of_frame = COW.replace("<xmax>3.5", "<xmax>350").replace("cow", "ant")
    empty = COW.replace("<xmax>3.5", "<xmax>1")
    write(
        tmp_path,
        {
            "ImageSets/Main/train.txt": "a\nb.v2 \nsub/c\n\nd\ne\nf\ng  1\na\nimage 1\n",
            "ImageSets/Main/val.txt": "a 1\n",
            "ImageSets/Main/cow_train.txt": "a  1\nb.v2 -1\n",
            "ImageSets/Main/small_train.txt": "a\n",
            "Annotations/a.xml": annotation("<filename>wrong.png</filename>", SIZE, COW, out_of_frame, empty),
            "Annotations/b.v2.xml": annotation(SIZE),
            "Annotations/sub/c.xml": annotation("<filename>c.png</filename>", COW),
            "Annotations/d.xml": annotation("<filename>C:\\photos\\renamed.jpg</filename>", COW),
            "Annotations/e.xml": annotation("<filename>e.jpg</filename>", COW),
            "Annotations/g.xml": annotation(COW),
            "Annotations/image 1.xml": annotation(COW),
            "JPEGImages/a.JPG": "",
            "JPEGImages/b.v2.jpeg": "",
            "JPEGImages/sub/c.jpg": "",
            "JPEGImages/sub/c.png": "",
            "JPEGImages/renamed.jpg": "",
            "JPEGImages/e.txt": "",
            "JPEGImages/f.jpg": "",
            "JPEGImages/g": "",
            "JPEGImages/image 1.webp": "",
        },
    )
    assert list_splits(str(tmp_path), "voc") == ["small_train", "train", "val"]

    dataset = read_dataset(str(tmp_path), "voc", "train")

    assert uris_below(f"{tmp_path}/JPEGImages", dataset) == [
        "a.JPG", "b.v2.jpeg", "sub/c.png", "renamed.jpg", "g", "image 1.webp"
    ]  # fmt: skip
    assert dataset.records[0].objects == (Annotation("cow", (1, 2, 3.5, 4)), Annotation("ant", (1, 2, 100, 4)))
    assert dataset.records[1].objects == ()
    assert dataset.num_clipped_boxes == 1
    assert dataset.skipped == {"empty_box": 1, "no_image": 1, "no_annotation": 1, "duplicate_id": 1}


@pytest.mark.parametrize("folder", ["train", "images/train"])
def test_annotations_beside_their_images(tmp_path, folder):
    write(
        tmp_path,
        {
            f"{folder}/a.xml": annotation(COW),
            f"{folder}/a.jpg": "",
            f"{folder}/deeper/b.xml": annotation(COW),
            f"{folder}/deeper/b.jpg": "",
            "lonely/c.xml": annotation(COW),
            "README.md": "",
        },
    )
    assert list_splits(str(tmp_path), "voc") == ["train"]
    dataset = read_dataset(str(tmp_path), "voc", "train")
    assert uris_below(tmp_path, dataset) == [f"{folder}/a.jpg", f"{folder}/deeper/b.jpg"]
    with pytest.raises(UsageError, match=r"no split 'lonely' in .*It has: train"):
        read_dataset(str(tmp_path), "voc", "lonely")


def test_the_same_name_in_several_folders_of_a_split(tmp_path):
    folders = ("train", "train/sub1", "train/sub2")
    write(tmp_path, {f"{folder}/a.jpg": "" for folder in folders})
    for number, folder in enumerate(folders):
        content = annotation("<filename>a.jpg</filename>", COW.replace("cow", f"cow{number}"))
        write(tmp_path, {f"{folder}/a.xml": content})
    dataset = read_dataset(str(tmp_path), "voc", "train", strict=True)
    found = {record.image_uri: [one.label for one in record.objects] for record in dataset.records}
    assert found == {f"{tmp_path}/{folder}/a.jpg": [f"cow{number}"] for number, folder in enumerate(folders)}


def test_annotations_and_images_in_folders_of_a_split(tmp_path):
    files = {"train/annotations/a.xml": annotation(COW), "train/images/a.jpg": "", "train/README.md": ""}
    write(tmp_path, files)
    dataset = read_dataset(str(tmp_path), "voc", "train", strict=True)
    assert uris_below(tmp_path, dataset) == ["train/images/a.jpg"]


@pytest.mark.parametrize("listed", ["0001\n0002\n", "IMG_1\nIMG_2\n", "IMG_1.jpg\n/far/JPEGImages/IMG_2.jpg\n"])
def test_annotations_with_another_name_than_their_image(tmp_path, listed):
    for number in (1, 2):
        xml = annotation(f"<filename>IMG_{number}.jpg</filename>", COW)
        beside = {f"train/000{number}.xml": xml, f"train/IMG_{number}.jpg": ""}
        devkit = {f"Annotations/000{number}.xml": xml, f"JPEGImages/IMG_{number}.jpg": ""}
        write(tmp_path, {f"beside/{name}": content for name, content in beside.items()})
        write(tmp_path, {f"devkit/{name}": content for name, content in devkit.items()})
    write(tmp_path, {"devkit/ImageSets/Main/train.txt": listed})
    for layout in ("beside", "devkit"):
        dataset = read_dataset(str(tmp_path / layout), "voc", "train", strict=True)
        names = [record.image_uri.rpartition("/")[2] for record in dataset.records]
        assert names == ["IMG_1.jpg", "IMG_2.jpg"]
        assert all(record.objects for record in dataset.records)


def test_files_with_one_object_each_are_one_image(tmp_path):
    xmls = {f"train/{name}.xml": annotation("<filename>a.jpg</filename>", COW.replace("cow", name)) for name in "xy"}
    write(tmp_path, {**xmls, "train/a.jpg": ""})
    dataset = read_dataset(str(tmp_path), "voc", "train", strict=True)
    assert [one.label for record in dataset.records for one in record.objects] == ["x", "y"]


def test_names_in_both_forms_of_unicode(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    files = {"ImageSets/Main/train.txt": composed, f"Annotations/{decomposed}.xml": annotation(COW)}
    write(tmp_path, {**files, f"JPEGImages/{composed}.jpg": ""})
    assert len(read_dataset(str(tmp_path), "voc", "train", strict=True).records[0].objects) == 1


def test_a_malformed_file_is_an_error(tmp_path):
    write(tmp_path, {"train/a.xml": annotation(COW), "train/b.xml": "<annotation>", "train/b.jpg": ""})
    with pytest.raises(UsageError, match=r"/train/b.xml: not well-formed XML \(.*line 1, column 12\)"):
        read_dataset(str(tmp_path), "voc", "train")


def test_annotations_without_images(tmp_path):
    write(tmp_path, {"ImageSets/Main/train.txt": "a\nb", "Annotations/a.xml": annotation(COW)})
    with pytest.raises(UsageError, match=r"no usable image\. Found: 1 x no_image, 1 x no_annotation"):
        read_dataset(str(tmp_path), "voc", "train")


def test_runway_is_read(real_data):
    dataset = read_dataset(str(real_data / "runway"), "voc", "val")
    assert len(dataset.records) == 400
    assert all(len(record.objects) == 1 for record in dataset.records)
    assert len(dataset.classes) == 10
    first = dataset.records[0]
    assert first.image_uri == str(real_data / "runway/JPEGImages/000718.jpg")
    assert first.objects == (Annotation("Battery", (135.2861, 157.4594, 181.6667, 167.425)),)
    assert (first.width_px, first.height_px) == (300, 300)


def test_the_two_boxes_of_blood_without_area_are_counted(real_data):
    skipped = Counter()
    num_objects = 0
    for split in ("trainval", "test"):
        dataset = read_dataset(str(real_data / "blood"), "voc", split)
        skipped.update(dataset.skipped)
        num_objects += sum(len(record.objects) for record in dataset.records)
    assert skipped == {"empty_box": 2}
    assert num_objects == 4888 - 2


def test_boards_are_the_same_in_both_formats(real_data):
    for split in ("train", "test"):
        from_xml = read_dataset(str(real_data / "boards"), "voc", split)
        from_csv = read_dataset(str(real_data / "boards"), "csv", split)
        assert {record.image_uri: record for record in from_xml.records} == {
            record.image_uri: record for record in from_csv.records
        }


@given(images())
def test_writer_and_parser_are_inverse(described):
    for image in described:
        assert parse_voc(write_voc(image), "a.xml") == image


def test_extensions_in_any_case_and_system_files(tmp_path):
    write(
        tmp_path,
        {
            "ImageSets/Main/train.TXT": "a\nb",
            "ImageSets/Main/.train.txt.swp": "x",
            "Annotations/a.XML": annotation(COW),
            "Annotations/b.Xml": annotation(COW),
            "Annotations/._a.xml": b"\0",
            "JPEGImages/a.JPEG": "",
            "JPEGImages/b.Png": "",
            "JPEGImages/.DS_Store": b"\0",
        },
    )
    assert list_splits(str(tmp_path), "voc") == ["train"]
    dataset = read_dataset(str(tmp_path), "voc", "train", strict=True)
    assert uris_below(f"{tmp_path}/JPEGImages", dataset) == ["a.JPEG", "b.Png"]
