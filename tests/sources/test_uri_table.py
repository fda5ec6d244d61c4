"""Tables of URIs, CSV and Parquet, local and on a real S3 server."""

import csv
import io
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from locray.errors import StoreAccessError, UsageError
from locray.schema import ETAG, IMAGE_URI, LAST_MODIFIED, SIZE_BYTES
from locray.sources import open_source
from tests.helpers.listings import listed, uris
from tests.helpers.s3_server import S3Bucket

ODD_URIS = ["s3://b/a b#%20.JPG", "s3://b/new\nline", 's3://b/"quoted", with comma', "s3://b/ünï", "s3://b//x/../y/"]


def write_csv(path: Path, rows: list[list[str]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def write_parquet(path: Path, /, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_the_uris_of_a_csv_file_are_taken_as_they_are(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "list.csv", [["n", IMAGE_URI], *([str(n), uri] for n, uri in enumerate(ODD_URIS))])
    rows = listed(open_source(table))
    assert [row[IMAGE_URI] for row in rows] == sorted(ODD_URIS)
    assert all(row[ETAG] is row[SIZE_BYTES] is row[LAST_MODIFIED] is None for row in rows)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_the_separator_of_a_csv_file_is_found(tmp_path: Path, separator: str, ending: str) -> None:
    file = tmp_path / f"list.{ending}"
    file.write_text(f"n{separator}uri\n1{separator}s3://b/a b.jpg\n2{separator}s3://b/c.jpg\n")
    assert uris(open_source(str(file))) == ["s3://b/a b.jpg", "s3://b/c.jpg"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path, slash: str) -> None:
    folder = tmp_path / "list.parquet"
    (folder / "day=2").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    write_parquet(folder / "part-0.snappy.parquet", uri=["s3://b/a", "rel.jpg"])
    write_parquet(folder / "day=2" / "part-1.parquet", uri=["s3://b/b"])
    write_parquet(folder / "_temporary" / "part-2.parquet", uri=["s3://b/unfinished"])
    (folder / "_SUCCESS").touch()
    source = open_source(f"{folder}{slash}")
    source.check()
    assert uris(source) == sorted(["s3://b/a", "s3://b/b", f"{tmp_path}/rel.jpg"])


def test_a_folder_of_images_may_be_named_like_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    (tmp_path / "x.parquet" / "a.jpg").write_bytes(b"1")
    assert uris(open_source(str(tmp_path / "x.parquet"))) == [f"{tmp_path}/x.parquet/a.jpg"]


@pytest.mark.s3
def test_a_prefix_of_parquet_files_is_one_table(tmp_path: Path, s3_bucket: S3Bucket) -> None:
    for number in range(2):
        table = write_parquet(tmp_path / "part.parquet", uri=[f"s3://b/{number}"])
        s3_bucket.put(f"list.parquet/part-{number}.parquet", Path(table).read_bytes())
    s3_bucket.put("list.parquet/_SUCCESS", b"")
    for slash in ("", "/"):
        source = open_source(f"{s3_bucket.uri}/list.parquet{slash}")
        source.check()
        assert uris(source) == ["s3://b/0", "s3://b/1"]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_the_uris_of_a_parquet_file_are_taken_as_they_are(tmp_path: Path, type_: pa.DataType) -> None:
    table = write_parquet(tmp_path / "list.parquet", n=range(len(ODD_URIS)), uri=pa.array(ODD_URIS, type_))
    assert uris(open_source(table)) == sorted(ODD_URIS)


def test_versions_are_read_if_the_table_has_them(tmp_path: Path) -> None:
    modified = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    expected = [{IMAGE_URI: "s3://b/k", ETAG: "abc-2", SIZE_BYTES: 12, LAST_MODIFIED: modified}]
    header = ["key", IMAGE_URI, ETAG, SIZE_BYTES, LAST_MODIFIED]
    table = write_csv(tmp_path / "t.csv", [header, ["x", "s3://b/k", '"abc-2"', "12", "2024-05-06T07:08:09Z"]])
    assert listed(open_source(table)) == expected
    columns = {IMAGE_URI: ["s3://b/k"], ETAG: ["abc-2"], SIZE_BYTES: pa.array([12], pa.int32())}
    naive = pa.array([modified.replace(tzinfo=None)], pa.timestamp("ms"))
    table = write_parquet(tmp_path / "t.parquet", **columns, **{LAST_MODIFIED: naive})
    assert listed(open_source(table)) == expected


def test_local_files_are_looked_up_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a b%20.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "photos" / "a b%20.jpg", ns=(0, 1_700_000_000_000_000_001))
    cells = ["photos/a b%20.jpg", str(tmp_path / "gone.jpg"), "photos", "s3://b/k"]
    table = write_csv(tmp_path / "list.csv", [["path", ETAG], *([cell, "stale"] for cell in cells)])
    rows = {row[IMAGE_URI]: row for row in listed(open_source(table))}
    photo = rows[str(tmp_path / "photos" / "a b%20.jpg")]
    assert (photo[ETAG], photo[SIZE_BYTES]) == ("1700000000000000001-5", 5)
    assert photo[LAST_MODIFIED] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert rows[str(tmp_path / "gone.jpg")][ETAG] is None
    assert rows[str(tmp_path / "photos")][ETAG] is None
    assert rows["s3://b/k"][ETAG] == "stale"


def test_a_table_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    write_csv(folder / "list.csv", [["uri"], ["a.jpg"], [f"file://{tmp_path}/caf%E9/b.jpg"]])
    rows = listed(open_source(str(folder / "list.csv")))
    assert [row[IMAGE_URI] for row in rows] == [f"file://{tmp_path}/caf%E9/{name}" for name in ("a.jpg", "b.jpg")]
    assert [row[SIZE_BYTES] for row in rows] == [1, None]


def test_the_column_is_found_or_named(tmp_path: Path) -> None:
    only = write_csv(tmp_path / "only.csv", [["whatever"], ["s3://b/k"]])
    assert uris(open_source(only)) == ["s3://b/k"]
    many = write_parquet(tmp_path / "many.parquet", thumbnail=["s3://b/t"], original=["s3://b/o"], path=["s3://b/p"])
    assert uris(open_source(many)) == ["s3://b/p"]
    assert uris(open_source(many, "original")) == ["s3://b/o"]
    with pytest.raises(UsageError, match=r"no column 'orignal'.*did you mean 'original'"):
        open_source(many, "orignal").check()
    none = write_csv(tmp_path / "none.csv", [["a", "b"], ["1", "2"]])
    with pytest.raises(UsageError, match="columns 'a', 'b': expected one of 'image_uri', 'uri', 'path'"):
        open_source(none).check()


def test_a_list_without_a_header_does_not_lose_its_first_image(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "list.csv", [["s3://b/first.jpg"], ["s3://b/second.jpg"]])
    with pytest.raises(UsageError, match="looks like an image"):
        open_source(table).check()


@pytest.mark.parametrize("cell", ["", None, "s3://bucket", "s3://", "gs://b/k"])
def test_a_row_without_an_image_is_an_error_with_its_number(tmp_path: Path, cell: str | None) -> None:
    filler = [f"s3://b/{number}" for number in range(25_000)]
    table = write_parquet(tmp_path / "t.parquet", uri=pa.array([*filler, cell, "s3://b/k"], pa.string()))
    with pytest.raises(UsageError, match=r"row 25001 of .*column 'uri'"):
        list(open_source(table).listing())
    if cell is not None:
        table = write_csv(tmp_path / "t.csv", [["uri", "n"], ["s3://b/k", "1"], [cell, "2"]])
        with pytest.raises(UsageError, match=r"row 2 of "):
            list(open_source(table).listing())


def test_an_unreadable_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    (tmp_path / "t.csv").write_bytes(b"")
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(UsageError, match="can't be read as a"):
            open_source(str(tmp_path / name)).check()
    table = write_csv(tmp_path / "sizes.csv", [["uri", SIZE_BYTES], ["s3://b/k", "large"]])
    with pytest.raises(UsageError, match="can't be read as a CSV table"):
        list(open_source(table).listing())
    with pytest.raises(UsageError, match="can't be read as a Parquet table"):
        list(open_source(write_parquet(tmp_path / "n.parquet", uri=[["nested"]])).listing())


@pytest.mark.s3
def test_relative_paths_in_tables_on_s3(s3_bucket: S3Bucket) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a b#.jpg", "sub/x.jpg", "s3://other/k", "/local.jpg"]}), buffer)
    s3_bucket.put("lists/a#b.parquet", buffer.getvalue())
    s3_bucket.put("lists/l.csv", b"uri\na b#.jpg\nsub/x.jpg\ns3://other/k\n/local.jpg\n")
    expected = sorted(
        ["/local.jpg", f"{s3_bucket.uri}/lists/a b#.jpg", f"{s3_bucket.uri}/lists/sub/x.jpg", "s3://other/k"]
    )
    for name in ("a#b.parquet", "l.csv"):
        assert uris(open_source(f"{s3_bucket.uri}/lists/{name}")) == expected
    with pytest.raises(StoreAccessError, match="does not exist"):
        open_source(f"{s3_bucket.uri}/lists/gone.csv").check()
