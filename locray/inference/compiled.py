"""Networks compiled for this machine, and kept for the next night. Called by `compiling`, whose child this module is.

What is compiled is code: it is only taken from a folder, and from a file, that belong to this user
and that no one else may write to. A compiled file is named by what it was made for and by its content: one that is
damaged, or was made for something else, is made again.
"""

import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from locray.inference.network import StaticNetwork, static_part
from locray.models.artifact import load_artifact

_NICENESS = 5
_INDUCTOR: dict[str, Any] = {"freezing": True, "compile_threads": 1, "aot_inductor.precompile_headers": False}
_HASH_DIGITS = 24
_KEPT_FOR_S = 60 * 86400
_UNFINISHED_FOR_S = 86400
_UNFINISHED = "making-"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be compiled."""

    model_uri: str
    model_id: str
    precision: str
    """Name of the number format in torch, such as `bfloat16`."""
    batch_size: int
    num_threads: int
    """Of the arithmetic: their number becomes part of the code."""

    @property
    def key(self) -> str:
        """Names all that the compiled code depends on, this processor among it."""
        made_for = asdict(self) | {"torch": torch.__version__, "code": _code(), "processor": _processor()}
        del made_for["model_uri"]
        return hashlib.sha256(json.dumps(made_for).encode()).hexdigest()[:_HASH_DIGITS]


def cache_folder() -> Path:
    """Where compiled networks are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "locray" / "compiled"


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled network of the cache."""

    path: Path

    @property
    def has_won(self) -> bool | None:
        """What came of its trial on this machine; None where there was none yet, or none for long."""
        return next((has_won for has_won in (False, True) if _is_recent(self._note(has_won=has_won))), None)

    def remember(self, *, has_won: bool) -> None:
        """Keeps what came of its trial for the next run, where the cache can be written to."""
        with suppress(OSError):
            self._note(has_won=has_won).touch(mode=0o600)
            self._note(has_won=not has_won).unlink(missing_ok=True)

    def load(self) -> StaticNetwork | None:
        """What it holds, if that can be loaded."""
        # `torch._inductor.aoti_load_package` does the same, but imports the compiler: 1.4 s for what takes 0.04.
        with suppress(Exception):  # no error of a loader is worth a run that goes on without it
            loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(self.path), "model", False, 1, -1)
            return lambda images_u8: tuple(loader.boxed_run([images_u8]))
        return None

    def _note(self, *, has_won: bool) -> Path:
        return self.path.with_suffix(".won" if has_won else ".lost")


def find(wanted: Wanted) -> Package | None:
    """The compiled network of the cache, if there is a sound one."""
    folder = cache_folder()
    if not _is_ours_alone(folder):
        return None
    for path in sorted(folder.glob(f"{wanted.key}-*.pt2")):
        with suppress(OSError):  # another process may be tidying up
            if _is_ours_alone(path) and path.stem.endswith(f"-{_digest(path)}"):
                with suppress(OSError):
                    os.utime(path)
                return Package(path)
    return None


def compile_into_cache(wanted: Wanted) -> None:
    """Compiles, and puts the result in place as a whole. Waits for another process that makes the same."""
    folder = own_folder()
    with (folder / f"{wanted.key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find(wanted) is None:
            _compile_into(folder, wanted)


def _compile_into(folder: Path, wanted: Wanted) -> None:
    artifact = load_artifact(wanted.model_uri)
    assert artifact.model_id == wanted.model_id
    static = static_part(artifact.model, torch.device("cpu"), getattr(torch, wanted.precision))
    size = artifact.info.input_size
    images = torch.zeros(wanted.batch_size, size, size, 3, dtype=torch.uint8)
    program = torch.export.export(static, (images,))
    _tidy(folder)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as name:
        path = Path(name) / "network.pt2"
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(_INDUCTOR))
        path.chmod(0o600)
        path.replace(folder / f"{wanted.key}-{_digest(path)}.pt2")


def own_folder() -> Path:
    """The cache, made where it is not there.

    Raises:
        OSError: it can't be made, or others may write to it.
    """
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours_alone(folder):
        raise PermissionError(f"{folder} is not a folder of this user that no one else may write to")
    return folder


def _tidy(folder: Path) -> None:
    """Deletes what was not used for long, and what was left by processes that were killed."""
    for path in folder.iterdir():
        with suppress(OSError):
            limit_s = _UNFINISHED_FOR_S if path.name.startswith(_UNFINISHED) else _KEPT_FOR_S
            if path.stat().st_mtime < time.time() - limit_s:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_recent(path: Path) -> bool:
    try:
        return path.stat().st_mtime > time.time() - _KEPT_FOR_S
    except OSError:
        return False


def _is_ours_alone(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_MAY_WRITE


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_DIGITS]


@functools.cache
def _code() -> str:
    """What a network computes is in its weights and in the modules beside this one."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _processor() -> list[str]:
    """What code that was compiled for the processor at hand must find again: instructions that are missing kill."""
    lines = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    return [platform.machine(), platform.processor(), *sorted({line for line in lines if line.startswith(names)})]


def _end_with_parent() -> None:
    # Not through sys.stdin: a thread that holds its lock at the end of Python is fatal.
    os.read(0, 1)
    os._exit(1)


def _main(argument: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(_NICENESS)
    given: dict[str, Any] = json.loads(argument)
    wanted = Wanted(**given)
    torch.set_num_threads(wanted.num_threads)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=own_folder()) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        compile_into_cache(wanted)


if __name__ == "__main__":
    _main(sys.argv[1])
