"""URIs, files and folders, local and on a real S3 server."""

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from locray import storage
from locray.errors import StoreAccessError, StoreError, UsageError
from locray.storage.retries import RetryPolicy
from locray.storage.s3 import bare_etag, quoted_etag, store
from locray.storage.uris import is_plain_key
from tests.helpers.s3_server import S3Bucket, S3Server, free_ports

ODD_KEYS = [
    "plain.jpg",
    "two words.JPG",
    "hash#mark",
    "100%",
    "%20",
    "a%2Fb",
    "q?x=1&y=+2",
    "ünï/日本.png",
    "~tilde*<>|:",
    "new\nline",
    "tab\there",
    "bell\x07",
    "no-ending",
    "quote\"'",
    "k" * 255,
    "deep/" * 40 + "x",
]
ODD_FILE_NAMES = [name for name in ODD_KEYS if len(os.fsencode(name)) < 256]


class TestNames:
    @given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
    def test_every_path_has_a_uri_that_arrow_can_hold(self, name: bytes) -> None:
        path = b"/" + name
        uri = storage.local_uri(path)
        assert pa.array([uri], pa.string())[0].as_py() == uri
        assert os.fsencode(storage.local_path(uri)) == path

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_a_path_in_utf8_is_its_own_uri(self, name: str) -> None:
        assert storage.local_uri(f"/{name}") == f"/{name}"

    def test_normalise_gives_one_spelling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a b%").mkdir()
        expected = str(tmp_path / "a b%")
        spellings = ["a b%", "./a b%/", "x/../a b%", expected, f"{expected}//", f"file://{tmp_path}/a%20b%25"]
        assert {storage.normalise(spelling) for spelling in spellings} == {expected}
        assert storage.normalise("~") == str(tmp_path / "~")
        assert storage.normalise("/") == "/"

    def test_a_dot_dot_is_followed_as_the_file_system_does(self, tmp_path: Path) -> None:
        (tmp_path / "far" / "folder").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
        assert storage.normalise(str(tmp_path / "link" / ".." / "x")) == str(tmp_path / "far" / "x")

    def test_keys_are_never_decoded(self) -> None:
        assert storage.normalise("s3://bucket/a%20b#c?d/") == "s3://bucket/a%20b#c?d"
        assert storage.join("s3://bucket/a%20b", "c d", "e#") == "s3://bucket/a%20b/c d/e#"

    @pytest.mark.parametrize("uri", ["gs://b/x", "az://b/x", "http://host/x", "s3a://b/x", "file://host/x"])
    def test_an_unknown_scheme_is_an_error(self, uri: str) -> None:
        with pytest.raises(UsageError, match=r"s3://|file:///"):
            storage.normalise(uri)

    @pytest.mark.parametrize("uri", ["", "s3://", "s3:///key", "/a\0b"])
    def test_an_empty_name_is_an_error(self, uri: str) -> None:
        with pytest.raises(UsageError):
            storage.normalise(uri)

    @given(st.text(st.sampled_from("a./\n\x7f%#~\\ é"), min_size=1, max_size=12))
    def test_a_plain_key_is_one_that_obstore_names_as_it_is(self, key: str) -> None:
        memory = MemoryStore()
        try:
            obstore.put(memory, key, b"")
            named = [entry["path"] for chunk in obstore.list(memory) for entry in chunk] == [key]
        except (ValueError, obstore.exceptions.BaseError):
            named = False
        assert is_plain_key(key) == named

    @given(st.text(st.sampled_from("abc-0123"), min_size=1))
    def test_etags_have_quotes_only_in_http(self, etag: str) -> None:
        assert bare_etag(quoted_etag(etag)) == etag
        assert bare_etag(None) is None
        assert bare_etag(f'W/"{etag}"') == f"W/{etag}"


class TestLocalFiles:
    @pytest.mark.parametrize("name", ODD_FILE_NAMES)
    def test_written_bytes_are_read_back(self, tmp_path: Path, name: str) -> None:
        uri = storage.join(str(tmp_path), "new", name)
        assert not storage.exists(uri)
        storage.write_bytes(uri, b"first")
        storage.write_bytes(uri, b"second")
        assert storage.read_bytes(uri) == b"second"
        assert storage.exists(uri)
        assert storage.list_uris(str(tmp_path)) == [uri]
        storage.delete([uri, uri])
        assert storage.list_uris(str(tmp_path)) == []

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        path = os.fsencode(tmp_path) + b"/caf\xe9 %.jpg"
        uri = storage.local_uri(path)
        assert uri == f"file://{tmp_path}/caf%E9%20%25.jpg"
        storage.write_bytes(uri, b"x")
        assert Path(os.fsdecode(path)).read_bytes() == b"x"
        assert storage.list_uris(str(tmp_path)) == [uri]

    def test_a_write_that_fails_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "taken").mkdir()
        with pytest.raises(StoreAccessError, match="is a folder"):
            storage.write_bytes(str(tmp_path / "taken"), b"x")
        assert os.listdir(tmp_path) == ["taken"]

    def test_missing_files_are_errors(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for uri, reason in [
            (tmp_path / "gone", "does not exist"),
            (tmp_path, "is a folder"),
            (tmp_path / "file" / "x", "is a file"),
        ]:
            with pytest.raises(StoreAccessError, match=reason):
                storage.read_bytes(str(uri))
        assert storage.list_uris(str(tmp_path / "gone")) == []
        assert storage.delete_folder(str(tmp_path / "gone")) == 0
        assert storage.delta_storage_options(str(tmp_path)) is None

    def test_delete_folder_deletes_its_content_and_nothing_else(self, tmp_path: Path) -> None:
        for name in ("scratch/a", "scratch/deep/er/b", "scratch2/c", "linked/d"):
            storage.write_bytes(str(tmp_path / name), b"x")
        (tmp_path / "scratch" / "empty").mkdir()
        assert storage.folder_exists(str(tmp_path / "scratch"))
        assert storage.delete_folder(str(tmp_path / "scratch")) == 2
        assert not storage.folder_exists(str(tmp_path / "scratch"))
        (tmp_path / "scratch2" / "link").symlink_to(tmp_path / "linked")
        assert storage.delete_folder(str(tmp_path / "scratch2")) == 1
        assert (tmp_path / "linked" / "d").read_bytes() == b"x"

    def test_check_readable_folder_names_the_reason(self, tmp_path: Path) -> None:
        storage.check_readable_folder(str(tmp_path))
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreAccessError, match="does not exist"):
            storage.check_readable_folder(str(tmp_path / "gone"))
        with pytest.raises(StoreAccessError, match="is a file: expected a folder"):
            storage.check_readable_folder(str(tmp_path / "file"))

    def test_one_row_group_of_a_parquet_file(self, tmp_path: Path) -> None:
        uri = storage.local_uri(os.fsencode(tmp_path) + b"/\xff.parquet")
        storage.write_bytes(uri, parquet_of_ten_groups())
        file = storage.open_parquet(uri)
        assert file.read_row_group(3)["n"].to_pylist() == list(range(3000, 4000))
        storage.write_bytes(uri, b"no parquet")
        with pytest.raises(pa.ArrowInvalid):
            storage.open_parquet(uri)


def parquet_of_ten_groups() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"n": range(10_000), "ballast": [os.urandom(100) for _ in range(10_000)]}), buffer, 1000)
    return buffer.getvalue()


@pytest.mark.s3
class TestS3:
    def test_written_bytes_are_read_back_under_every_key(self, s3_bucket: S3Bucket) -> None:
        uris = [f"{s3_bucket.uri}/in/{key}" for key in ODD_KEYS]
        for uri in uris:
            assert not storage.exists(uri)
            storage.write_bytes(uri, uri.encode())
            assert storage.exists(uri)
            assert storage.read_bytes(uri) == uri.encode()
        s3_bucket.put("in2/other", b"")
        s3_bucket.put("in/marker/", b"")
        assert storage.list_uris(f"{s3_bucket.uri}/in") == sorted(uris)
        storage.delete([*uris, f"{s3_bucket.uri}/never-there"])
        assert s3_bucket.keys() == ["in/marker/", "in2/other"]

    def test_a_folder_exists_if_an_object_lies_below_it(self, s3_bucket: S3Bucket) -> None:
        assert not storage.folder_exists(s3_bucket.uri)
        s3_bucket.put("in/deep/a", b"")
        s3_bucket.put("in2/b", b"")
        s3_bucket.put("marker/", b"")
        found = {name: storage.folder_exists(f"{s3_bucket.uri}/{name}") for name in ("in", "in/deep", "marker", "i")}
        assert found == {"in": True, "in/deep": True, "marker": True, "i": False}
        assert storage.delete_folder(f"{s3_bucket.uri}/in") == 1
        assert s3_bucket.keys() == ["in2/b", "marker/"]

    def test_a_key_of_1024_bytes(self, s3_bucket: S3Bucket) -> None:
        uri = f"{s3_bucket.uri}/{'/'.join(['k' * 204] * 5)}"
        storage.write_bytes(uri, b"x")
        assert storage.read_bytes(uri) == b"x"
        assert storage.list_uris(s3_bucket.uri) == [uri]

    @pytest.mark.parametrize("key", ["a b#%.parquet", "new\nline.parquet"])
    def test_one_row_group_of_a_parquet_file(self, s3_bucket: S3Bucket, key: str) -> None:
        storage.write_bytes(f"{s3_bucket.uri}/{key}", parquet_of_ten_groups())
        file = storage.open_parquet(f"{s3_bucket.uri}/{key}")
        assert file.num_row_groups == 10
        assert file.read_row_group(3)["n"].to_pylist() == list(range(3000, 4000))

    def test_replacing_an_open_file_is_an_error(self, s3_bucket: S3Bucket) -> None:
        s3_bucket.put("p", parquet_of_ten_groups())
        file = storage.open_parquet(f"{s3_bucket.uri}/p")
        s3_bucket.put("p", parquet_of_ten_groups())
        with pytest.raises(StoreError, match="replaced"):
            file.read_row_group(3)

    def test_a_delta_table_with_the_credentials_of_boto3(self, s3_bucket: S3Bucket) -> None:
        uri = f"{s3_bucket.uri}/table"
        for _ in range(2):
            options = storage.delta_storage_options(uri)
            write_deltalake(uri, pa.table({"n": [1]}), mode="append", storage_options=options)
        assert DeltaTable(uri, storage_options=options).version() == 1

    @pytest.mark.parametrize("call", [storage.read_bytes, storage.open_parquet, storage.open_file])
    def test_an_object_or_bucket_that_is_not_there(self, s3_bucket: S3Bucket, call) -> None:
        for uri in (f"{s3_bucket.uri}/gone", "s3://test-no-such-bucket/x"):
            with pytest.raises(StoreAccessError, match=r"does not exist|there is no bucket"):
                call(uri)


@pytest.mark.s3
class TestCheckOfABucket:
    def test_an_empty_prefix_is_fine(self, s3_bucket: S3Bucket) -> None:
        storage.check_readable_folder(s3_bucket.uri)
        storage.check_readable_folder(f"{s3_bucket.uri}/nothing/here")

    @pytest.mark.usefixtures("s3_server")
    def test_no_such_bucket(self) -> None:
        for uri in ("s3://test-no-such-bucket/prefix", "s3://NOT_A_BUCKET!"):
            with pytest.raises(StoreAccessError, match="there is no bucket"):
                storage.check_readable_folder(uri)

    def test_access_denied(self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in s3_server.stranger.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreAccessError, match=r"denied.*s3:ListBucket"):
            storage.check_readable_folder(s3_bucket.uri)

    @pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    def test_wrong_credentials_are_not_shown(
        self, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(name, "hunter2")
        for call in (storage.check_readable_folder, storage.list_uris, storage.read_bytes):
            with pytest.raises(StoreAccessError, match="no valid AWS credentials") as caught:
                call(f"{s3_bucket.uri}/x")
            assert "hunter2" not in str(caught.value)
            assert os.environ["AWS_ACCESS_KEY_ID"] not in str(caught.value)

    def test_no_credentials(self, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        for call in (storage.check_readable_folder, storage.delta_storage_options, storage.open_file):
            with pytest.raises(StoreAccessError, match="no valid AWS credentials"):
                call(f"{s3_bucket.uri}/x")

    def test_a_profile_that_is_not_there(self, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        for call in (storage.check_readable_folder, storage.delta_storage_options, storage.open_file):
            with pytest.raises(StoreAccessError, match="nobody"):
                call(f"{s3_bucket.uri}/x")

    def test_an_endpoint_that_does_not_answer(self, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        (port,) = free_ports(1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreAccessError, match=f"does not answer at 127.0.0.1:{port}.*AWS_ENDPOINT_URL"):
            storage.check_readable_folder(s3_bucket.uri)

    def test_the_endpoint_of_a_profile_is_used_everywhere(
        self, s3_server: S3Server, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "config").write_text(
            f"[profile lab]\nregion = eu-lab-1\nendpoint_url = {s3_server.endpoint_url}\n"
            f"aws_access_key_id = {s3_server.owner['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {s3_server.owner['AWS_SECRET_ACCESS_KEY']}\n"
        )
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "lab")
        storage.write_bytes(f"{s3_bucket.uri}/x", b"x")
        assert bytes(obstore.get(store(s3_bucket.name), "x").bytes()) == b"x"
        options = storage.delta_storage_options(s3_bucket.uri)
        assert options is not None
        assert options["AWS_ENDPOINT_URL"] == s3_server.endpoint_url
        assert options["AWS_REGION"] == "eu-lab-1"


@pytest.mark.s3
@pytest.mark.usefixtures("s3_server")
def test_a_forked_child_gets_an_error_instead_of_hanging() -> None:
    program = """
import os, sys
from locray.storage.s3 import store
store("bucket")
child = os.fork()
if child == 0:
    try:
        store("bucket")
    except RuntimeError as error:
        os._exit(7 if "spawn" in str(error) else 1)
    os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 7


def test_retries_are_bounded() -> None:
    assert RetryPolicy().max_retries > 0
    assert RetryPolicy().total_s < 300, "obstore signs a request once: it must not outlive its signature"


def test_a_written_file_has_the_users_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    storage.write_bytes(str(tmp_path / "ours"), b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
