import pytest

from locray.datasets import Annotation, list_splits, read_dataset
from locray.datasets.folders import places_of
from locray.errors import UsageError
from tests.helpers.annotated import names_below, write


def places(*paths):
    found = places_of([tuple(path.split("/")) if path else () for path in paths])
    return {"/".join(folder): place for folder, place in found.items()}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train/cow", "train/ant/deep", "Val/cow"],
         {"train/cow": ("train", "cow"), "train/ant/deep": ("train", "ant"), "Val/cow": ("Val", "cow")}),
        (["pets/v1/test/cow", "pets/v1/train/test"],
         {"pets/v1/test/cow": ("test", "cow"), "pets/v1/train/test": ("train", "test")}),
        (["train", "train/cow", "docs"], {"train": ("train", None), "train/cow": ("train", "cow")}),
        (["cow", "ant", ""], {"cow": ("train", "cow"), "ant": ("train", "ant"), "": ("train", None)}),
        (["pets/cow", "pets/ant/1", "pets/ant/2"],
         {"pets/cow": ("train", "cow"), "pets/ant/1": ("train", "ant"), "pets/ant/2": ("train", "ant")}),
        (["fold1/cow", "fold1/ant", "fold2/cow"],
         {"fold1/cow": ("fold1", "cow"), "fold1/ant": ("fold1", "ant"), "fold2/cow": ("fold2", "cow")}),
        (["fold1/cow", "fold2/cow", ""], {"fold1/cow": ("fold1", "cow"), "fold2/cow": ("fold2", "cow")}),
        (["cow/1", "ant/2"], {"cow/1": ("train", "cow"), "ant/2": ("train", "ant")}),
        (["cow", "test"], {"cow": ("train", "cow"), "test": ("train", "test")}),
        (["images/train", "images/test"], {"images/train": ("train", None), "images/test": ("test", None)}),
        (["images", "images/val"], {"images/val": ("val", None)}),
        (["train/images", "val/images"], {"train/images": ("train", None), "val/images": ("val", None)}),
        (["car", "train"], {"car": ("train", "car"), "train": ("train", "train")}),
        ([""], {"": ("train", None)}),
        ([], {}),
    ],
)  # fmt: skip
def test_split_and_class_from_folder_names(paths, expected):
    assert places(*paths) == expected


def test_image_extensions_in_any_case(tmp_path):
    names = ["train/cow/1.JPG", "train/cow/2.webp", "train/ant/3.jpeg", "test/cow/4.png"]
    others = [
        "train/cow/Thumbs.db",
        "train/cow/.hidden.jpg",
        "train/.ipynb_checkpoints/cow/4.jpg",
        "train/__MACOSX/cow/5.jpg",
        "README.md",
    ]
    write(tmp_path, dict.fromkeys([*names, *others, "train/stray.jpg"], ""))
    assert list_splits(str(tmp_path), "folders") == ["test", "train"]
    dataset = read_dataset(str(tmp_path), "folders", "train")
    assert sorted(names_below(tmp_path, dataset)) == sorted(names[:3])
    assert dataset.classes == ("ant", "cow")
    assert dataset.records[0].objects == (Annotation("ant", None),)
    assert (dataset.records[0].width_px, dataset.records[0].height_px) == (None, None)
    assert dataset.skipped == {"no_annotation": 1}
    with pytest.raises(UsageError, match=r"no split 'tset' in .*It has: test, train; did you mean 'test'"):
        read_dataset(str(tmp_path), "folders", "tset")


def test_images_beside_the_class_folders_are_counted(tmp_path):
    write(tmp_path, dict.fromkeys(["cow/1.jpg", "ant/1.jpg", "cover.png", "README.md"], ""))
    dataset = read_dataset(str(tmp_path), "folders", "train")
    assert names_below(tmp_path, dataset) == ["ant/1.jpg", "cow/1.jpg"]
    assert dataset.skipped == {"no_annotation": 1}
    place = f"{tmp_path}/cover.png: lies beside the class folders"
    assert dataset.skip_examples == {"no_annotation": (place,)}


def test_folders_of_splits_are_no_classes(tmp_path):
    write(tmp_path, dict.fromkeys(["images/train/1.jpg", "images/test/2.jpg", "README.md"], ""))
    assert list_splits(str(tmp_path), "folders") == []
    with pytest.raises(UsageError, match=r"Found no splits in .*Expected: images in <split>/<class>/ or in <class>/"):
        read_dataset(str(tmp_path), "folders", "train")


def test_images_without_folders_are_no_data_set(tmp_path):
    write(tmp_path, dict.fromkeys(["1.jpg", "2.jpg"], ""))
    assert list_splits(str(tmp_path), "folders") == []
    with pytest.raises(UsageError, match=r"Found no splits in .*Expected: images in <split>/<class>/ or in <class>/"):
        read_dataset(str(tmp_path), "folders", "train")


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 50_000), ("test", 10_000)])
def test_cifar10_is_read_from_its_archive(real_data, split, count):
    dataset = read_dataset(str(real_data / "cifar10.zip"), "folders", split)
    assert len(dataset.records) == count
    assert len(dataset.classes) == 10
    assert dataset.skipped == {}
    first = dataset.records[0]
    assert first.objects == (Annotation("airplane", None),)
    assert first.image_uri == f"zip:{real_data}/cifar10.zip!/cifar10/{split}/airplane/0000.jpg"


def test_cutlery_is_read_by_its_folders(real_data):
    assert list_splits(str(real_data / "cutlery"), "folders") == ["train"]
    dataset = read_dataset(str(real_data / "cutlery"), "folders", "train")
    assert len(dataset.records) == 41
    assert dataset.classes == ("fork", "scissors", "test")
