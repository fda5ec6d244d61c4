import pytest

from locray.datasets import list_splits, read_dataset
from locray.datasets.path_tails import PathTails
from locray.errors import UsageError
from tests.helpers.annotated import names_below, write

LINE = "0 0.5 0.5 0.5 0.25\n"
DARKNET = "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
SPLITS = {"train": ["t0", "t1", "t2"], "val": ["v0", "v1"]}


def make(folder, image_path, label_path, **others):
    """A data set with the images of `SPLITS`; paths with `{split}` and `{name}`."""
    for split, names in SPLITS.items():
        for name in names:
            image, label = (path.format(split=split, name=name) for path in (image_path, label_path))
            write(folder, {image: "", label: LINE})
    write(folder, {name.replace("__", "."): text for name, text in others.items()})


def lists(path):
    """Lists of the images of each split, by split."""
    return {
        split: "".join(f"{path.format(split=split, name=name)}\n" for name in names) for split, names in SPLITS.items()
    }


def check(folder, splits=SPLITS):
    """Each split has its images with their boxes, and nothing is skipped."""
    assert list_splits(str(folder), "yolo") == sorted(splits)
    for split, names in splits.items():
        dataset = read_dataset(str(folder), "yolo", split, strict=True)
        assert [record.image_uri.rpartition("/")[2] for record in dataset.records] == [f"{name}.jpg" for name in names]
        assert all(record.objects for record in dataset.records)


FLAT = ("images/{name}.jpg", "labels/{name}.txt")
LISTED = [
    "images/{name}.jpg", "./images/{name}.jpg", "/home/me/data/images/{name}.jpg", "C:\\data\\images\\{name}.jpg",
    "/elsewhere/photos/{name}.jpg", "../images/{name}.jpg",
]  # fmt: skip


@pytest.mark.parametrize("path", LISTED)
def test_lists_over_one_folder(tmp_path, path):
    texts = lists(path)
    make(tmp_path / "named", *FLAT, train__txt=texts["train"], val__txt=texts["val"],
         data__yaml="path: ../x\ntrain: train.txt\nval: /home/me/data/val.txt\nnames: [cat]")  # fmt: skip
    make(tmp_path / "unnamed", *FLAT, train__txt=texts["train"], valid__txt=texts["val"], classes__txt="cat")
    for folder in ("named", "unnamed"):
        check(tmp_path / folder)


def test_cvat_with_lists_and_without(tmp_path):
    place = ("obj_{split}_data/{name}.jpg", "obj_{split}_data/{name}.txt")
    texts = lists("data/obj_{split}_data/{name}.jpg")
    make(tmp_path / "a", *place, obj__names="cat\n", obj__data=DARKNET,
         train__txt=texts["train"], valid__txt=texts["val"])  # fmt: skip
    make(tmp_path / "b", *place, obj__names="cat\n")
    for folder in "ab":
        check(tmp_path / folder)
    write(tmp_path / "b", {"obj_Nightly_data/n.jpg": "", "obj_Nightly_data/n.txt": LINE})
    check(tmp_path / "b", {**SPLITS, "Nightly": ["n"]})


@pytest.mark.parametrize("folder", ["{split}", "data/{split}", "images/{split}", "deep/{split}/images"])
def test_images_and_labels_side_by_side(tmp_path, folder):
    make(tmp_path, f"{folder}/{{name}}.jpg", f"{folder}/{{name}}.txt", classes__txt="cat\n")
    check(tmp_path)
    write(tmp_path, {f"{folder.format(split='val')}/{name}.txt": LINE for name in ("gone", "notes")})
    write(tmp_path, {f"{folder.format(split='val')}/notes.txt": "Taken in May.\n"})
    assert read_dataset(str(tmp_path), "yolo", "val").skipped == {"no_image": 1}


@pytest.mark.parametrize("labels", ["labels/{name}.txt", "labels/{split}/{name}.txt", "{split}/labels/{name}.txt"])
def test_labels_elsewhere_than_expected(tmp_path, labels):
    make(tmp_path, "{split}/{name}.jpg" if "{split}" in labels else "images/{split}/{name}.jpg", labels,
         classes__txt="cat\n")  # fmt: skip
    check(tmp_path)


@pytest.mark.parametrize("root", ["/home/me/set/", "/home/me/set/images/../", "D:\\set\\", "../"])
@pytest.mark.parametrize("place", ["images/{split}", "{split}/images"])
def test_folders_of_another_machine(tmp_path, root, place):
    label = place.replace("images", "labels")
    folders = {split: f"{root}{place.format(split=split)}" for split in SPLITS}
    yaml = f"path: /home/me/set\ntrain: '{folders['train']}'\nval: '{folders['val']}/*.jpg'\nnames: [cat]"
    make(tmp_path, f"{place}/{{name}}.jpg", f"{label}/{{name}}.txt", data__yaml=yaml)
    check(tmp_path)


@pytest.mark.parametrize("ending", ["2017", "_set", "-images"])
def test_names_of_splits_with_a_year_or_a_word(tmp_path, ending):
    place = f"{{split}}{ending}/{{name}}"
    make(tmp_path, f"{place}.jpg", f"{place}.txt", classes__txt="cat")
    check(tmp_path, {f"{split}{ending}": names for split, names in SPLITS.items()})


def test_a_split_that_is_not_here_does_not_prevent_reading_the_others(tmp_path):
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cat]\nnc: 1\n"
    make(tmp_path, "{split}/images/{name}.jpg", "{split}/labels/{name}.txt", data__yaml=yaml.replace("valid", "val"))
    assert list_splits(str(tmp_path), "yolo") == ["test", "train", "val"]
    assert len(read_dataset(str(tmp_path), "yolo", "val", strict=True).records) == 2
    with pytest.raises(UsageError, match=r"field test: '../test/images' is no folder of images here"):
        read_dataset(str(tmp_path), "yolo", "test")


def test_a_folder_inside_another_split_is_not_part_of_it(tmp_path):
    files = {"images/a.jpg": "", "images/held_out/b.jpg": "", "labels/a.txt": LINE, "labels/held_out/b.txt": LINE}
    write(tmp_path, {**files, "data.yaml": "train: images\nval: images/held_out\nnames: [cat]"})
    check(tmp_path, {"train": ["a"], "val": ["b"]})


def test_a_list_takes_its_images_out_of_the_folder_of_another_split(tmp_path):
    files = {f"images/train/{name}.jpg": "" for name in "abc"} | {f"labels/train/{name}.txt": LINE for name in "abc"}
    write(tmp_path, {**files, "val.txt": "images/train/b.jpg\n", "classes.txt": "cat"})
    check(tmp_path, {"train": ["a", "c"], "val": ["b"]})


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ("/gone/pictures", r"data.yaml, field val: '/gone/pictures' is no folder of images here"),
        ("gone.txt", "data.yaml, field val: 'gone.txt' is not here"),
        ("empty.txt", "empty.txt: 'an image' is not here"),
        ("other.txt", "other.txt, line 1: '/x/images/nowhere.jpg' is not here"),
    ],
)
def test_a_named_split_without_images_is_an_error(tmp_path, val, message):
    yaml = f"train: images\nval: {val}\nnames: [cat]"
    make(tmp_path, *FLAT, data__yaml=yaml, empty__txt="\n", other__txt="/x/images/nowhere.jpg")
    assert list_splits(str(tmp_path), "yolo") == ["train", "val"]
    with pytest.raises(UsageError, match=f"Split 'val' of .*names 1 paths and no image that is here.*{message}"):
        read_dataset(str(tmp_path), "yolo", "val")


def test_paths_of_a_split_that_are_not_here_are_counted(tmp_path):
    texts = lists("images/{name}.jpg")
    make(tmp_path, *FLAT, train__txt=f"{texts['train']}images/gone.jpg\n", classes__txt="cat")
    dataset = read_dataset(str(tmp_path), "yolo", "train")
    assert dataset.skipped == {"no_image": 1}
    assert dataset.skip_examples["no_image"] == (f"{tmp_path}/train.txt, line 4: 'images/gone.jpg' is not here",)


def test_an_image_of_another_split_is_never_taken(tmp_path):
    files = {"images/train/1.jpg": "", "labels/train/1.txt": LINE, "classes.txt": "cat"}
    named = {"train.txt": "/x/train/1.jpg", "val.txt": "/x/val/1.jpg", "test.txt": "/y/a/1.jpg"}
    write(tmp_path, {**files, **named})
    assert names_below(tmp_path, read_dataset(str(tmp_path), "yolo", "train")) == ["images/train/1.jpg"]
    for split in ("val", "test"):
        with pytest.raises(UsageError, match="no image that is here"):
            read_dataset(str(tmp_path), "yolo", split)


def test_names_in_both_forms_of_unicode(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    files = {f"images/{decomposed}.jpg": "", f"labels/{composed}.txt": LINE, "classes.txt": "cat"}
    write(tmp_path, {**files, "train.txt": f"images/{composed}.jpg\n"})
    (record,) = read_dataset(str(tmp_path), "yolo", "train", strict=True).records
    assert record.objects


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a/b/1.jpg", "a/b/1.jpg"),
        ("/x/b/1.jpg", "a/b/1.jpg"),
        ("/x/c/1.JPG", "a/c/1.jpg"),
        ("/x/1.jpg", None),
        ("/x/y/2.jpg", "d/2.jpg"),
        ("/x/val/3.jpg", None),
        ("/x/valid/4.jpg", "val/4.jpg"),
        ("/data/5.jpg", "5.jpg"),
        ("", None),
    ],
)
def test_the_longest_tail(written, found):
    paths = ["a/b/1.jpg", "a/c/1.jpg", "d/2.jpg", "train/3.jpg", "val/4.jpg", "5.jpg", "x/5.jpg"]
    match = PathTails("/root/data", paths).find(written)
    assert (match.path if match else None) == found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["0 .5 .5 .2 .2 .9 17"],
            "7 fields in this and all other lines .*a confidence and a number, no polygons",
        ),
        (["0 .5 .5 .2 .2 .9 1"], "7 fields in this and all other lines .*a confidence and a number, no polygons"),
        (
            ["0 .5 .5 .2 .2", "0 .5 .5 .2 .2 .9 17"],
            "line 2, field 7: found 17 in a line of 7 fields, expected the corn",
        ),
        (
            ["0 .5 .5 1 1 .45 .5 2 .55 .5 1", "0 .5 .5 1 .1"],
            "field 8: found 2 in a line of 11 fields, expected the cor",
        ),
        (["0 .5 .5 .2 .2 .45 .5 1 .55 .5 0"], "11 fields in this and .*key points with their visibility"),
        (["0 .5 .5 .2 .2 .45 .5 .5 .55 .6 .6"] * 10, "11 fields in this and all .*boxes with key points"),
        (["0 120 80 40 90 30 20"], "field 2: found 120 in a line of 7 fields"),
        (["0 .5 .5 .2 .2 1.57"], "line 1, field 6: found 1.57, expected a confidence between 0 and 1"),
    ],
)
def test_lines_that_are_no_polygons(tmp_path, lines, message):
    write(tmp_path, {"images/a.jpg": "", "labels/a.txt": "\n".join(lines), "classes.txt": "cat"})
    with pytest.raises(UsageError, match=f"labels/a.txt, .*{message}"):
        read_dataset(str(tmp_path), "yolo", "train")


@pytest.mark.parametrize(
    "lines",
    [
        ["0 .3 .3 .4 .3 .35 .4"],
        ["0 .3 .3 .4 .3 .35 .4"] * 9 + ["0 .9 .9 .8 .9 .85 .8"],
        ["0 .3 .3 .4 .3 .4 .4 .3 .4"] * 20,
        ["0 .3 .3 .4 .3 .4 .4 .3 .4 .2 .35", "0 .5 .5 .1 .1"],
        ["0 -.02 .3 .4 .3 .35 1.02"],
    ],
)
def test_polygons(tmp_path, lines):
    write(tmp_path, {"images/a.jpg": "", "labels/a.txt": "\n".join(lines), "classes.txt": "cat"})
    assert read_dataset(str(tmp_path), "yolo", "train").records[0].objects
