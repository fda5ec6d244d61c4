"""Zip archives as folders: sound and broken ones, on disk and on a real S3 server."""

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray import storage
from locray.errors import ErrorCode, StoreAccessError, UsageError
from locray.images.decode import ImageFailure
from locray.images.fetch import Fetched, FetchRequest, Outcome, fetch_images
from locray.storage.uris import split_archive
from tests.helpers.s3_proxy import s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server

CONTENT = {"a.jpg": b"alpha", "deep/er/b #1%.JPG": b"beta" * 1000, "deep/ü!/c": b"", "deeper/d.png": os.urandom(5000)}


def packed(method: int = zipfile.ZIP_DEFLATED, content: dict[str, bytes] = CONTENT) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        if "deep/ü!/c" in content:
            archive.mkdir("deep")
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def outcome_of(uri: str, etag: str | None = None, max_bytes: int = 1 << 20) -> Outcome:
    ((_, outcome),) = fetch_images([FetchRequest(uri, etag, None)], max_bytes=max_bytes)
    return outcome


def with_flag(data: bytes, flag: int) -> bytes:
    """Returns the archive with a flag bit set in every directory entry."""
    changed = bytearray(data)
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + 8 : at + 10] = struct.pack("<H", struct.unpack_from("<H", data, at + 8)[0] | flag)
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


@given(st.text(st.sampled_from("a!%2135/."), min_size=1), st.text(st.sampled_from("a!%/\n."), max_size=8))
def test_the_uri_of_a_member_round_trips(archive: str, member: str) -> None:
    for archive_uri in (f"/{archive}", f"s3://bucket/{archive}"):
        uri = f"{storage.archive_folder(archive_uri)}/{member}"
        assert storage.is_in_archive(uri)
        assert split_archive(uri) == (archive_uri, member)
        assert not storage.is_remote(uri)
        assert not storage.is_in_archive(archive_uri)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_listed_and_read_like_files(tmp_path: Path, method: int) -> None:
    uri = str(tmp_path / "100%!.ZIP")
    Path(uri).write_bytes(packed(method))
    folder = storage.archive_folder(uri)
    members = {storage.join(folder, name): data for name, data in CONTENT.items()}

    assert storage.is_archive(uri)
    assert storage.list_uris(uri) == storage.list_uris(folder) == sorted(members)
    assert storage.list_uris(storage.join(folder, "deep")) == sorted(m for m in members if "!/deep/" in m)
    assert storage.list_uris(storage.join(folder, "absent")) == []
    assert storage.read_all(list(members)) == list(members.values())
    assert storage.normalise(f"{folder}/deep/") == storage.join(folder, "deep")
    for member, data in members.items():
        assert storage.exists(member)
        assert storage.open_file(member).read() == data
        outcome = outcome_of(member)
        assert isinstance(outcome, Fetched)
        assert (outcome.data, outcome.size_bytes) == (data, len(data))
        assert outcome_of(member, outcome.etag) == outcome
    assert not storage.exists(storage.join(folder, "absent"))
    assert not storage.exists(storage.archive_folder(f"{uri}.zip") + "/a.jpg")


def test_a_folder_named_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    for name in ("x.zip", "x.zip!"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"in a folder")
        uri = storage.normalise(str(tmp_path / name))
        assert not storage.is_archive(uri)
        assert storage.list_uris(uri) == [str(tmp_path / name / "a")]
        assert storage.read_bytes(f"{uri}/a") == b"in a folder"


def test_archives_made_by_other_tools(tmp_path: Path) -> None:
    """Sizes after the data, header and directory that differ in names and extra fields, a program in front."""
    path = tmp_path / "x.zip"
    with path.open("wb") as file:
        file.write(b"#!/bin/sh\n" * 10)

        class Stream(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: object) -> int:
                return file.write(data)  # type: ignore[arg-type]

        with zipfile.ZipFile(Stream(), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("streamed", b"s" * 100)
            entry = zipfile.ZipInfo("extra")
            entry.extra = struct.pack("<HH", 0x7777, 4000) + bytes(4000)
            archive.writestr(entry, b"e" * 100)
            with archive.open("large", "w", force_zip64=True) as member:
                member.write(b"l" * 100)
    folder = storage.archive_folder(str(path))
    for name in ("streamed", "extra", "large"):
        assert storage.read_bytes(storage.join(folder, name)) == name[:1].encode() * 100


def test_an_encrypted_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(with_flag(packed(), 0x1))
    with pytest.raises(UsageError, match=r"x.zip: it is encrypted, and no .* Expected an archive without a password"):
        storage.list_uris(str(path))
    outcome = outcome_of(f"{storage.archive_folder(str(path))}/a.jpg")
    assert isinstance(outcome, ImageFailure)
    assert outcome.code is ErrorCode.ACCESS_DENIED


def test_an_unsupported_method_affects_its_member_only(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good", b"good")
        archive.writestr("odd", b"odd", zipfile.ZIP_BZIP2)
    folder = storage.archive_folder(str(path))
    assert len(storage.list_uris(folder)) == 2
    assert storage.read_bytes(f"{folder}/good") == b"good"
    with pytest.raises(UsageError, match=r"x.zip!/odd: it is compressed by bzip2. Expected"):
        storage.read_bytes(f"{folder}/odd")
    outcome = outcome_of(f"{folder}/odd")
    assert isinstance(outcome, ImageFailure)
    assert outcome.code is ErrorCode.UNSUPPORTED_FORMAT


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    sound = packed()
    for data in (b"", b"no archive", sound[:-30], sound[:100], b"PK\x05\x06" + b"\xff" * 18):
        path.write_bytes(data)
        with pytest.raises(
            UsageError, match=r"x.zip is not a zip archive, or a damaged one \(.*Copy it or create it again"
        ):
            storage.list_uris(str(path))
        outcome = outcome_of(f"{storage.archive_folder(str(path))}/a.jpg")
        assert isinstance(outcome, ImageFailure)
        assert outcome.code is ErrorCode.CORRUPT


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_an_error(tmp_path: Path, method: int) -> None:
    sound = packed(method, {"a": bytes(range(200))})
    path = tmp_path / "x.zip"
    member = f"{storage.archive_folder(str(path))}/a"
    for at in (0, 29, 31, 60, 150):  # signature, length of the extra field, data
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :])
        outcome = outcome_of(member)
        assert isinstance(outcome, ImageFailure), at
        assert outcome.code is ErrorCode.CORRUPT
        with pytest.raises(UsageError, match=r"x.zip!/a is damaged: .* Copy or create the archive again"):
            storage.read_bytes(member)


def test_a_member_larger_than_declared_is_not_decompressed(tmp_path: Path) -> None:
    data = bytearray(packed(content={"a": bytes(50_000_000)}))
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)
    (tmp_path / "x.zip").write_bytes(data)
    tracemalloc.start()
    try:
        outcome = outcome_of(f"{storage.archive_folder(str(tmp_path / 'x.zip'))}/a", max_bytes=2000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, ImageFailure)
    assert outcome.code is ErrorCode.CORRUPT
    assert peak_bytes < 5_000_000


def test_limits_absence_and_versions_work_as_for_files(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(packed())
    folder = storage.archive_folder(str(path))
    requests = [
        (f"{folder}/deeper/d.png", None, ErrorCode.TOO_MANY_BYTES),
        (f"{folder}/absent", None, ErrorCode.NOT_FOUND),
        (f"{folder}/deep", None, ErrorCode.NOT_FOUND),
        (f"{storage.archive_folder(str(tmp_path / 'absent.zip'))}/a", None, ErrorCode.NOT_FOUND),
        (f"{folder}/a.jpg", "0badc0de-5", ErrorCode.CHANGED),
    ]
    for uri, etag, code in requests:
        outcome = outcome_of(uri, etag, max_bytes=4999)
        assert isinstance(outcome, ImageFailure)
        assert outcome.code is code
    with pytest.raises(UsageError, match="has no member of this name"):
        storage.read_bytes(f"{folder}/absent")
    with pytest.raises(StoreAccessError, match=r"absent.zip does not exist"):
        storage.read_bytes(f"{storage.archive_folder(str(tmp_path / 'absent.zip'))}/a")


def test_a_replaced_archive_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    uri = f"{storage.archive_folder(str(path))}/a"
    for data in (b"first", b"second, longer"):
        path.write_bytes(packed(content={"a": data}))
        assert storage.read_bytes(uri) == data


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    content = {f"{number:04}": str(number).encode() * 500 for number in range(300)}
    (tmp_path / "x.zip").write_bytes(packed(content=content))
    folder = storage.archive_folder(str(tmp_path / "x.zip"))
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(storage.read_bytes, [f"{folder}/{name}" for name in content] * 3))
    assert found == list(content.values()) * 3


@pytest.mark.slow
def test_all_of_cifar10(real_data: Path) -> None:
    uris = storage.list_uris(str(real_data / "cifar10.zip"))
    assert len(uris) == 60_000
    outcome = outcome_of(uris[-1])
    assert isinstance(outcome, Fetched)
    with zipfile.ZipFile(real_data / "cifar10.zip") as archive:
        assert outcome.data == archive.read(uris[-1].partition("!/")[2])


@pytest.mark.s3
def test_an_archive_in_a_bucket(s3_bucket: S3Bucket) -> None:
    s3_bucket.put("some dir/100%!.zip", packed())
    uri = f"{s3_bucket.uri}/some dir/100%!.zip"
    folder = storage.archive_folder(uri)
    assert storage.is_archive(uri)
    assert storage.list_uris(uri) == sorted(storage.join(folder, name) for name in CONTENT)
    for name, data in CONTENT.items():
        outcome = outcome_of(storage.join(folder, name))
        assert isinstance(outcome, Fetched)
        assert outcome.data == data
    assert storage.read_all([storage.join(folder, name) for name in CONTENT]) == list(CONTENT.values())

    s3_bucket.put("some dir/100%!.zip", packed(content={"a.jpg": b"another"}))
    outcome = outcome_of(f"{folder}/a.jpg")
    assert isinstance(outcome, ImageFailure), "the directory that is known is of an older version"
    assert outcome.code is ErrorCode.CHANGED
    assert storage.read_bytes(f"{folder}/a.jpg") == b"another"

    absent = outcome_of(f"{storage.archive_folder(f'{s3_bucket.uri}/absent.zip')}/a")
    assert isinstance(absent, ImageFailure)
    assert absent.code is ErrorCode.NOT_FOUND
    assert not storage.is_archive(f"{s3_bucket.uri}/absent.zip")
    s3_bucket.put("broken.zip", b"no archive")
    with pytest.raises(UsageError, match="is not a zip archive"):
        storage.list_uris(f"{s3_bucket.uri}/broken.zip")


@pytest.mark.s3
def test_a_member_in_a_bucket_is_one_request(
    s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {f"{number:03}.jpg": os.urandom(20_000) for number in range(40)}
    s3_bucket.put("x.zip", packed(content=content))
    with s3_proxy(s3_server.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        uris = storage.list_uris(f"{s3_bucket.uri}/x.zip")
        num_for_the_directory = len(proxy.requests)
        for _ in range(2):
            assert storage.read_all(uris) == list(content.values())
    assert num_for_the_directory < 10
    assert [request.method for request in proxy.requests[num_for_the_directory:]] == ["GET"] * 2 * len(uris)


@pytest.mark.s3
def test_a_long_extra_field_in_a_bucket_takes_another_request(s3_bucket: S3Bucket) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("extra")
        entry.extra = struct.pack("<HH", 0x7777, 4000) + bytes(4000)
        archive.writestr(entry, b"e" * 100)
        archive.writestr("plain", b"p" * 100)
    s3_bucket.put("x.zip", buffer.getvalue())
    folder = storage.archive_folder(f"{s3_bucket.uri}/x.zip")
    assert storage.read_all([f"{folder}/extra", f"{folder}/plain"]) == [b"e" * 100, b"p" * 100]


def test_a_forked_process_reads_with_a_position_of_its_own(tmp_path: Path) -> None:
    content = {f"{number:03}": str(number).encode() * 5000 for number in range(100)}
    (tmp_path / "x.zip").write_bytes(packed(zipfile.ZIP_STORED, content))
    program = """
import os, sys
from locray import storage
uris = storage.list_uris(sys.argv[1])
expected = [uri[-3:].lstrip("0").encode() or b"0" for uri in uris]
child = os.fork()
sound = all([data == number * 5000 for data, number in zip(storage.read_all(uris * 20), expected * 20)])
if child == 0:
    os._exit(0 if sound else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not sound)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "x.zip")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
