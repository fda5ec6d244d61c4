"""Folders: real files, odd names, links, loops."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from locray.errors import StoreAccessError
from locray.schema import ETAG, IMAGE_URI, LAST_MODIFIED, SIZE_BYTES
from locray.sources import open_source
from locray.sources.source import BATCH_ROWS
from tests.helpers.listings import listed, uris


def files_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def test_every_file_is_listed_with_its_version(tree: Path) -> None:
    os.utime(tree / "a.jpg", ns=(0, 1_700_000_000_123_456_789))
    rows = listed(open_source(str(tree)))
    assert [row[IMAGE_URI] for row in rows] == files_below(tree)
    (first,) = [row for row in rows if row[IMAGE_URI] == str(tree / "a.jpg")]
    assert first[ETAG] == "1700000000123456789-5"
    assert first[SIZE_BYTES] == 5
    assert first[LAST_MODIFIED] == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


def test_names_that_are_not_utf8_are_listed(tree: Path) -> None:
    for name in (b"caf\xe9.jpg", b"\xff\xfe%"):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(b"x")
    found = uris(open_source(str(tree)))
    assert [uri for uri in found if uri.startswith("file://")] == [
        f"file://{tree}/%FF%FE%25",
        f"file://{tree}/caf%E9.jpg",
    ]
    assert pa.array(found, pa.string()).validate(full=True) is None


def test_an_empty_folder_lists_nothing(tmp_path: Path) -> None:
    assert listed(open_source(str(tmp_path))) == []


def test_links_are_followed_but_not_in_circles(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jpg").write_bytes(b"far")
    (tree / "to-file").symlink_to(elsewhere / "far.jpg")
    (tree / "to-folder").symlink_to(elsewhere)
    before = files_below(tree)
    (tree / "sub" / "to-top").symlink_to(tree)
    (elsewhere / "to-itself").symlink_to(elsewhere)
    assert uris(open_source(str(tree))) == sorted({*before, str(tree / "to-folder" / "far.jpg")})


def test_broken_links_are_listed_and_pipes_are_not(tree: Path) -> None:
    (tree / "dangling").symlink_to(tree / "gone")
    (tree / "itself").symlink_to(tree / "itself")
    os.mkfifo(tree / "pipe")
    rows = {row[IMAGE_URI]: row[ETAG] for row in listed(open_source(str(tree)))}
    assert rows[str(tree / "dangling")] is None
    assert rows[str(tree / "itself")] is None
    assert str(tree / "pipe") not in rows


@pytest.mark.slow
def test_large_folders_come_in_batches_of_bounded_size(tmp_path: Path) -> None:
    for number in range(BATCH_ROWS + 500):
        (tmp_path / str(number)).touch()
    sizes = [len(batch) for batch in open_source(str(tmp_path)).listing()]
    assert sorted(sizes) == [500, BATCH_ROWS]


@pytest.mark.slow
def test_a_listing_may_be_closed_before_its_end(tmp_path: Path) -> None:
    for number in range(2 * BATCH_ROWS + 1):
        (tmp_path / str(number)).touch()
    batches = open_source(str(tmp_path)).listing()
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # an unclosed folder would be a ResourceWarning


def test_a_folder_that_may_not_be_read_fails_the_listing(unprivileged_folder: Path) -> None:
    (unprivileged_folder / "open").mkdir()
    (unprivileged_folder / "sub").mkdir(mode=0)
    source = open_source(str(unprivileged_folder))
    source.check()
    with pytest.raises(StoreAccessError, match="sub can't be listed: Permission denied"):
        list(source.listing())
    with pytest.raises(StoreAccessError, match="permission denied"):
        open_source(str(unprivileged_folder / "sub")).check()
