"""S3 Inventories: files as the store writes them, beside a local manifest and in a bucket of a real S3 server."""

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from locray.errors import ExitCode, StoreAccessError, UsageError
from locray.schema import ETAG, IMAGE_URI, LAST_MODIFIED, SIZE_BYTES
from locray.sources import open_source
from locray.sources.source import BATCH_ROWS
from tests.helpers.fault_images import label
from tests.helpers.listings import listed, uris
from tests.helpers.s3_server import S3Bucket

ODD_KEYS = ["a b+c%20.JPG", "ünï/日本", "new\nline", '"quoted", with comma', "NULL", "x" * 1024, "no-ending", "/a//b"]
MODIFIED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
FIELDS = (
    "Bucket",
    "Key",
    "VersionId",
    "IsLatest",
    "IsDeleteMarker",
    "Size",
    "LastModifiedDate",
    "ETag",
    "StorageClass",
)
IN_PARQUET = {
    "Bucket": ("bucket", pa.string()),
    "Key": ("key", pa.string()),
    "VersionId": ("version_id", pa.string()),
    "IsLatest": ("is_latest", pa.bool_()),
    "IsDeleteMarker": ("is_delete_marker", pa.bool_()),
    "Size": ("size", pa.int64()),
    "LastModifiedDate": ("last_modified_date", pa.timestamp("ms")),
    "ETag": ("e_tag", pa.string()),
    "StorageClass": ("storage_class", pa.string()),
}
Row = dict[str, Any]


def row(key: str, **fields: object) -> Row:
    version = {"Size": 7, "LastModifiedDate": MODIFIED, "ETag": "abc-2", "IsLatest": True, "IsDeleteMarker": False}
    return {"Bucket": "photos", "Key": key, "VersionId": None, "StorageClass": "STANDARD"} | version | fields


def as_csv(rows: Sequence[Row], fields: Sequence[str]) -> bytes:
    def cell(name: str, value: object) -> str:
        if isinstance(value, datetime):
            return f'"{value:%Y-%m-%dT%H:%M:%S}.000Z"'
        if isinstance(value, bool):
            return f'"{str(value).lower()}"'
        text = "" if value is None else str(value)
        return f'"{quote_plus(text, safe="/") if name == "Key" else text}"'

    return gzip.compress("".join(",".join(cell(name, one[name]) for name in fields) + "\n" for one in rows).encode())


def as_parquet(rows: Sequence[Row], fields: Sequence[str]) -> bytes:
    columns = {}
    for name in fields:
        name_there, type_ = IN_PARQUET[name]
        values = [one[name].replace(tzinfo=None) if name == "LastModifiedDate" else one[name] for one in rows]
        columns[name_there] = pa.array(values, type_)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=1000)
    return buffer.getvalue()


WRITERS = {"CSV": (as_csv, "csv.gz"), "Parquet": (as_parquet, "parquet")}


def manifest_of(format_: str, files: dict[str, bytes], fields: Sequence[str], bucket: str) -> dict[str, Any]:
    return {
        "sourceBucket": "photos",
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": format_,
        "fileSchema": ", ".join(fields) if format_ == "CSV" else "message s3.inventory { ... }",
        "files": [
            {"key": f"photos/all/data/{name}", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}
            for name, data in files.items()
        ],
    }


def write(folder: Path, format_: str, parts: Sequence[Sequence[Row]], fields: Sequence[str] = FIELDS) -> Path:
    """Writes a copy of an inventory as in its bucket: `data/` beside the folder of the day."""
    writer, ending = WRITERS[format_]
    files = {f"{number}.{ending}": writer(rows, fields) for number, rows in enumerate(parts)}
    manifest = folder / "2024-05-06T01-00Z" / "manifest.json"
    for place in (folder / "data", manifest.parent):
        place.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / "data" / name).write_bytes(data)
    manifest.write_text(json.dumps(manifest_of(format_, files, fields, "no-such-bucket")))
    return manifest


@pytest.fixture(params=WRITERS)
def format_(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_keys_and_versions_are_those_of_the_bucket(tmp_path: Path, format_: str) -> None:
    parts = [[row(key) for key in ODD_KEYS[:3]], [], [row(key) for key in ODD_KEYS[3:]]]
    rows = listed(open_source(str(write(tmp_path, format_, parts))))
    assert rows == [
        {IMAGE_URI: uri, ETAG: "abc-2", SIZE_BYTES: 7, LAST_MODIFIED: MODIFIED}
        for uri in sorted(f"s3://photos/{key}" for key in ODD_KEYS)
    ]


def test_only_current_objects_are_listed(tmp_path: Path, format_: str) -> None:
    rows = [
        row("now"),
        row("now", IsLatest=False, ETag="old"),
        row("gone", IsDeleteMarker=True, Size=None, ETag=None),
        row("gone", IsLatest=False),
        row("folder/", Size=0),
        row("slash/"),
        row("empty.jpg", Size=0),
        row("unknown", IsLatest=None, IsDeleteMarker=None, Size=None, ETag=None),
    ]
    found = listed(open_source(str(write(tmp_path, format_, [rows]))))
    assert [(one[IMAGE_URI].removeprefix("s3://photos/"), one[ETAG], one[SIZE_BYTES]) for one in found] == [
        ("empty.jpg", "abc-2", 0),
        ("now", "abc-2", 7),
        ("slash/", "abc-2", 7),
        ("unknown", None, None),
    ]


def test_only_the_key_is_required(tmp_path: Path, format_: str) -> None:
    manifest = write(tmp_path, format_, [[row("a.jpg"), row("folder/", Size=0)]], fields=("Bucket", "Key"))
    rows = listed(open_source(str(manifest)))
    assert [list(one.values()) for one in rows] == [[f"s3://photos/{key}", *[None] * 3] for key in ("a.jpg", "folder/")]
    with pytest.raises(
        UsageError, match=r"no column 'Key' in its fileSchema|0.parquet can't be read .* no column 'key'"
    ):
        listed(open_source(str(write(tmp_path, format_, [[row("a.jpg")]], fields=("Bucket", "Size")))))


def test_many_rows_in_many_files_come_in_batches(tmp_path: Path, format_: str) -> None:
    parts = [[row(f"{part}/{number}") for number in range(BATCH_ROWS // 2)] for part in range(5)]
    source = open_source(str(write(tmp_path, format_, parts)))
    assert uris(source) == sorted(f"s3://photos/{one['Key']}" for part in parts for one in part)
    assert [len(batch) for batch in source.listing()] == [BATCH_ROWS, BATCH_ROWS, BATCH_ROWS // 2]


def test_a_file_with_another_md5_is_an_error(tmp_path: Path, format_: str) -> None:
    manifest = write(tmp_path, format_, [[row("a")], [row("b")]])
    damaged = next((tmp_path / "data").glob("1.*"))
    damaged.write_bytes(WRITERS[format_][0]([row("c")], FIELDS))
    with pytest.raises(UsageError, match=rf"{damaged} is damaged: its MD5 is .*, the manifest says"):
        list(open_source(str(manifest)).listing())


def test_a_file_that_cannot_be_parsed_is_an_error(tmp_path: Path, format_: str) -> None:
    manifest = write(tmp_path, format_, [[row("a")]])
    file = next((tmp_path / "data").glob("0.*"))
    for data in (b"neither", gzip.compress(b'"too","few"\n'), gzip.compress(b'"photos","%FF"' + b',""' * 7 + b"\n")):
        file.write_bytes(data)
        content = json.loads(manifest.read_text())
        content["files"][0]["MD5checksum"] = hashlib.md5(data).hexdigest()
        manifest.write_text(json.dumps(content))
        with pytest.raises(UsageError, match=f"{file} can't be read as a part of an S3 Inventory"):
            list(open_source(str(manifest)).listing())


CUT_OFF, PLAIN = "cut off", "plain"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_", "damage", "told"),
    [
        ("Parquet", CUT_OFF, "0.parquet can't be read as a part of an S3 Inventory: Parquet magic bytes not found"),
        ("CSV", CUT_OFF, "0.csv.gz can't be read as a part of an S3 Inventory: Truncated compressed stream"),
        ("CSV", PLAIN, "0.csv.gz can't be read as a part of an S3 Inventory: zlib inflate failed"),
        ("Parquet", "since it was written", "0.parquet is damaged: its MD5 is"),
        ("ORC", "none", "manifest.json is of an inventory in ORC, which is not read: set its output format to"),
    ],
)
def test_a_damaged_inventory_ends_the_command_before_an_image_is_labelled(
    tmp_path: Path, artifact: str, format_: str, damage: str, told: str
) -> None:
    """The manifest matches each file except the one that was damaged later."""
    is_orc = format_ == "ORC"
    manifest = write(tmp_path, "Parquet" if is_orc else format_, [[row(str(number)) for number in range(1000)]])
    content = json.loads(manifest.read_text()) | ({"fileFormat": format_} if is_orc else {})
    (file,) = (tmp_path / "data").iterdir()
    whole = file.read_bytes()
    data = whole if is_orc else gzip.decompress(whole) if damage == PLAIN else whole[: len(whole) // 2]
    file.write_bytes(data)
    if damage in {CUT_OFF, PLAIN}:
        content["files"][0]["MD5checksum"] = hashlib.md5(data).hexdigest()
    manifest.write_text(json.dumps(content))
    scratch, table = tmp_path / "scratch", tmp_path / "table"
    scratch.mkdir()
    done = label(str(manifest), artifact, str(table), TMPDIR=str(scratch))
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, ""), done
    assert told in " ".join(done.stderr.split()), done
    assert list(scratch.iterdir()) == []
    assert list(table.rglob("*.parquet")) == []


def test_an_inventory_of_an_empty_bucket_lists_nothing(tmp_path: Path, format_: str) -> None:
    assert listed(open_source(str(write(tmp_path, format_, [])))) == []
    assert listed(open_source(str(write(tmp_path, format_, [[]])))) == []


def test_what_is_no_manifest_is_told(tmp_path: Path) -> None:
    manifest = write(tmp_path, "CSV", [[row("a")]])
    content = json.loads(manifest.read_text())
    for broken, told in (
        (content | {"fileFormat": "ORC"}, "in ORC, which is not read: set its output format to Parquet or CSV"),
        ({name: content[name] for name in content if name != "sourceBucket"}, "it has no 'sourceBucket'. Expected"),
        (content | {"files": [{"key": "a.csv.gz"}]}, "it has no 'MD5checksum'"),
        (content | {"files": 3}, "is no manifest of an S3 Inventory"),
        ([], "is no manifest of an S3 Inventory"),
    ):
        manifest.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match=told):
            open_source(str(manifest)).check()
    manifest.write_text("{")
    with pytest.raises(UsageError, match="is no manifest of an S3 Inventory"):
        open_source(str(manifest)).check()


def test_copies_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    source = open_source(str(write(tmp_path, format_, [[row(str(number)) for number in range(25_000)]])))
    batches = source.listing()
    next(batches)
    assert len(list((tmp_path / "scratch").glob("*/files/*"))) == 1
    batches.close()  # type: ignore[attr-defined]
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.s3
def test_an_inventory_in_a_bucket(s3_bucket: S3Bucket, format_: str) -> None:
    writer, ending = WRITERS[format_]
    files = {f"{part}.{ending}": writer([row(f"{part}/{key}") for key in ODD_KEYS], FIELDS) for part in range(3)}
    manifest = json.dumps(manifest_of(format_, files, FIELDS, s3_bucket.name)).encode()
    s3_bucket.put("photos/all/2024-05-06T01-00Z/manifest.json", manifest)
    source = open_source(f"{s3_bucket.uri}/photos/all/2024-05-06T01-00Z/manifest.json")
    with pytest.raises(StoreAccessError, match=rf"{s3_bucket.uri}/photos/all/data/0.{ending} does not exist"):
        source.check()
    for name, data in files.items():
        s3_bucket.put(f"photos/all/data/{name}", data)
    assert uris(source) == sorted(f"s3://photos/{part}/{key}" for part in range(3) for key in ODD_KEYS)
    assert not source.lists("s3://photos/0/no-ending")
