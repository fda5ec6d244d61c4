"""Temporary folders are always deleted, but never while they are in use."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from locray.storage import temporary_folder
from tests.helpers.commands import PROJECT_ROOT, killed_at_the_end

HOLDER = """
import sys
from pathlib import Path
from locray.storage import temporary_folder
with temporary_folder() as folder:
    Path(folder, "listing").write_bytes(b"of images")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@contextmanager
def holder() -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that holds a folder with a file in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    with killed_at_the_end(process):
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def killed() -> Path:
    """A folder left by a killed process."""
    with holder() as (process, files):
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert (files / "listing").is_file()
    return files.parent


def test_a_folder_is_deleted_with_its_content(temporary: Path) -> None:
    with temporary_folder() as first, temporary_folder() as second:
        for folder in (first, second):
            assert list(Path(folder).iterdir()) == []
            (Path(folder) / "below").mkdir()
            (Path(folder) / "below" / "file").write_bytes(b"x")
    with pytest.raises(FileNotFoundError), temporary_folder() as folder:
        (Path(folder) / "absent").read_bytes()
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_leftovers_of_killed_processes_are_deleted_and_used_ones_kept(temporary: Path) -> None:
    dead = killed()
    with holder() as (process, files):
        assert not dead.exists()
        os.kill(process.pid, signal.SIGSTOP)
        with temporary_folder() as own:
            assert {path.parent for path in temporary.glob("*/files")} == {files.parent, Path(own).parent}
        assert (files / "listing").read_bytes() == b"of images"
        os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert list(temporary.iterdir()) == []


def test_other_files_and_folders_are_left_alone(temporary: Path, tmp_path: Path) -> None:
    dead = killed()
    name = dead.name[:-1]
    elsewhere = dead.rename(tmp_path / "elsewhere")
    (temporary / f"{name}A").symlink_to(elsewhere)
    (temporary / f"{name}B" / "files").mkdir(parents=True)  # without a lock
    (temporary / f"{name}C").write_bytes(b"a file")
    for other in ("locray-new-A", "locray-benchmark-A", f"other-{name}", name.replace("locray-", "locray-x", 1)):
        (temporary / other / "files").mkdir(parents=True)
        (temporary / other / "lock").write_bytes(b"")
    if os.geteuid() == 0:
        (temporary / f"{name}D").mkdir()
        (temporary / f"{name}D" / "lock").write_bytes(b"")
        os.chown(temporary / f"{name}D", 65534, 65534)
    before = sorted(temporary.rglob("*"))
    with temporary_folder():
        pass
    assert sorted(temporary.rglob("*")) == before
    assert (elsewhere / "files" / "listing").is_file()


def test_a_link_in_a_dead_folder_is_deleted_and_not_followed(temporary: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"x")
    dead = killed()
    (dead / "files" / "link").symlink_to(kept)
    with temporary_folder():
        assert not dead.exists()
    assert (kept / "file").is_file()
    assert list(temporary.iterdir()) == []


def test_many_threads_make_folders_at_once(temporary: Path) -> None:
    def use(number: int) -> None:
        for _ in range(20):
            with temporary_folder() as folder:
                file = Path(folder) / "file"
                file.write_text(str(number))
                assert file.read_text() == str(number)

    dead = killed()
    for number in range(20):
        (temporary / f"{dead.name}{number}" / "files").mkdir(parents=True)
        (temporary / f"{dead.name}{number}" / "lock").write_bytes(b"")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert list(temporary.iterdir()) == []
