"""Temporary folders that are deleted even if their process is killed.

A killed process leaves its folder, perhaps with tens of GB in it. The next process that makes one deletes it. A lock
shows which folders are in use: the system releases it when its process ends, for any reason.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LOCK, _FILES = "lock", "files"
_NOT_LOCKED_YET = "locray-new-"


@contextmanager
def temporary_folder() -> Iterator[str]:
    """An empty folder in TMPDIR, deleted afterwards. Folders that dead processes have left are deleted before.

    Only those of this user and this machine: TMPDIR may be shared.

    Raises:
        OSError: it can't be made.
    """
    parent = Path(tempfile.gettempdir())
    _delete_dead(parent)
    with ExitStack() as at_the_end:
        folder = Path(tempfile.mkdtemp(prefix=_NOT_LOCKED_YET, dir=parent))
        at_the_end.callback(_delete, folder)
        lock = at_the_end.enter_context((folder / _LOCK).open("xb"))
        with suppress(OSError):  # on a disk without locks it keeps its name, which no process deletes
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = folder.rename(parent / f"{_locked_prefix()}{folder.name.removeprefix(_NOT_LOCKED_YET)}")
        at_the_end.callback(_delete, folder)
        files = folder / _FILES
        files.mkdir()
        yield str(files)


def _locked_prefix() -> str:
    """The start of the names of folders whose lock shows whether they are in use."""
    return f"locray-{os.uname().nodename}-{os.geteuid()}-"


def _delete_dead(parent: Path) -> None:
    with suppress(OSError):
        for name in os.listdir(parent):
            if name.startswith(_locked_prefix()):
                with suppress(OSError):  # in use, or another process deletes it
                    _delete_if_dead(parent / name)


def _delete_if_dead(folder: Path) -> None:
    with _opened(folder, os.O_DIRECTORY) as directory:
        if os.fstat(directory).st_uid == os.geteuid():
            with _opened(_LOCK, os.O_RDWR, directory) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(folder)


def _delete(folder: Path) -> None:
    """Deletes a folder, its lock last, so that the next process deletes what is left if this fails."""
    with suppress(OSError), _opened(folder, os.O_DIRECTORY) as directory:
        with suppress(FileNotFoundError):
            shutil.rmtree(_FILES, dir_fd=directory)
        with suppress(FileNotFoundError):
            os.unlink(_LOCK, dir_fd=directory)
        os.rmdir(folder)


@contextmanager
def _opened(path: Path | str, flags: int, folder: int | None = None) -> Iterator[int]:
    """A descriptor of a file or folder that is no symbolic link."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
