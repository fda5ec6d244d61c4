"""The source for a URI."""

from pathlib import Path

import pytest

from locray.errors import UsageError
from locray.schema import IMAGE_URI, SIZE_BYTES
from locray.sources import SOURCES, Source, open_source
from locray.sources.folder import FolderSource
from locray.sources.glob import GlobSource, ObjectGlobSource
from locray.sources.inventory import InventorySource
from locray.sources.object_store import ObjectStoreSource
from locray.sources.uri_table import UriTableSource
from tests.helpers.listings import listed, uris


def test_each_kind_of_source_is_found(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "list.CSV").write_text("uri\n")
    (tmp_path / "odd.csv").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "folder-manifest.json").mkdir()
    expected = {
        "photos": FolderSource,
        "photos/": FolderSource,
        "odd.csv": FolderSource,
        "manifest.json": InventorySource,
        "folder-manifest.json": FolderSource,
        "list.CSV": UriTableSource,
        "photos/*.jpg": GlobSource,
        "no/such/**": GlobSource,
    }
    assert {name: type(open_source(str(tmp_path / name))) for name in expected} == {
        str(name): kind for name, kind in expected.items()
    }
    assert open_source("s3://b/photos/*") == ObjectGlobSource(
        "s3://b/photos/*", ObjectStoreSource("b", "photos/"), ("*",)
    )
    assert open_source("s3://b") == ObjectStoreSource("b", "")
    assert open_source("s3://b/list.parquet") == UriTableSource("s3://b/list.parquet", None)
    assert open_source("s3://b/inventory/2024-05-06/manifest.json") == InventorySource(
        "s3://b/inventory/2024-05-06/manifest.json"
    )
    assert len(SOURCES) == 7


def test_a_path_that_exists_as_it_is_written_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1]*").mkdir()
    assert open_source(str(tmp_path / "a[1]*")) == FolderSource(str(tmp_path / "a[1]*"))


def test_an_absent_name_suggests_the_most_similar_one(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    with pytest.raises(UsageError, match=r"has no 'photograps'; did you mean 'photographs'\?"):
        open_source(str(tmp_path / "photograps"))
    with pytest.raises(UsageError, match=r"did you mean 'photographs'.*Expected a folder.*s3://.*\*\.csv"):
        open_source(str(tmp_path / "photograps" / "2024" / "05"))


def test_a_single_image_is_a_source_of_one(tmp_path: Path) -> None:
    (tmp_path / "one[1].jpg").write_bytes(b"123")
    source = open_source(str(tmp_path / "one[1].jpg"))
    source.check()
    (row,) = listed(source)
    assert (row[IMAGE_URI], row[SIZE_BYTES]) == (f"{tmp_path}/one[1].jpg", 3)
    assert source.lists(row[IMAGE_URI])
    assert not source.lists(f"{tmp_path}/other.jpg")
    (tmp_path / "one[1].jpg").unlink()
    assert uris(source) == []


@pytest.mark.parametrize("name", ["list.txt", "list.json", "list.xlsx", "list"])
def test_a_file_that_is_neither_image_nor_table_is_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a.jpg")
    with pytest.raises(UsageError, match="a file that is no table"):
        open_source(str(tmp_path / name))


def test_a_scheme_that_is_not_supported() -> None:
    with pytest.raises(UsageError, match="'gs' is not supported"):
        open_source("gs://bucket/photos")


def test_a_uri_column_needs_a_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--uri-column is for a table"):
        open_source(str(tmp_path), "path")


@pytest.mark.parametrize(
    ("source", "listed", "not_listed"),
    [
        (FolderSource("/photos"), "/photos/deep/er/t.parquet", "/photos2/t.parquet"),
        (FolderSource("/"), "/photos/t", "s3://photos/t"),
        (GlobSource("/photos", ("*", "*.jpg")), "/photos/a/b.jpg", "/photos/a/deep/b.jpg"),
        (ObjectStoreSource("bucket", "photos/"), "s3://bucket/photos/t", "s3://bucket/photos2/t"),
        (open_source("s3://bucket/photos/*.jpg"), "s3://bucket/photos/t.jpg", "s3://bucket/photos/deep/t.jpg"),
        (open_source("s3://bucket/[x]"), "s3://bucket/[x]/t", "s3://bucket/[x]2/t"),
        (open_source("s3://bucket/**"), "s3://bucket/a/b/t", "s3://bucket2/t"),
        (ObjectStoreSource("bucket", ""), "s3://bucket/t", "s3://bucket2/t"),
    ],
)
def test_a_source_tells_whether_it_would_list_a_uri(source: Source, listed: str, not_listed: str) -> None:
    assert source.lists(listed)
    assert not source.lists(not_listed)
