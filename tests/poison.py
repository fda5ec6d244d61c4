"""Images that a decoder really crashes on or hangs at, and the broken decoder itself.

The decoder is Pillow's for GIF with a bug that a comment in the file sets off. Python loads it at its start, as it does
any `sitecustomize` on its path; so the processes that a test starts have it, and the test's own has not. Where the
environment names a LOG_OF_DEEDS, it writes down what it is about to do.
"""

import io
import os
import runpy
import sys
from pathlib import Path

from PIL import Image

BROKEN_DECODER = """
import ctypes, json, os, resource, signal, tempfile
from PIL.GifImagePlugin import GifImageFile

load = GifImageFile.load

def hang(library):
    library.sleep(1000)

def hang_deaf():
    signal.setitimer(signal.ITIMER_REAL, 0)
    hang(ctypes.CDLL(None))

def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def be_killed_once():
    mark = os.path.join(tempfile.gettempdir(), "was-killed")
    if not os.path.exists(mark):
        open(mark, "w").close()
        be_killed()

def spoil():
    GifImageFile._open = lambda image: ctypes.string_at(0)

def tell():
    open_files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    files = [os.readlink(file) for file in open_files if os.path.exists(file)]
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_AS", "RLIMIT_CORE")}
    raise ValueError(json.dumps({"environment": dict(os.environ), "files": files, "limits": limits}))

DEEDS = {
    b"crash": lambda: ctypes.string_at(0),
    b"exit": lambda: os._exit(3),
    b"hang": lambda: hang(ctypes.CDLL(None)),
    b"hang with the lock": lambda: hang(ctypes.PyDLL(None)),
    b"hang deaf to alarms": hang_deaf,
    b"hog": lambda: bytearray(2**30),
    b"be killed": be_killed,
    b"be killed once": be_killed_once,
    b"spoil": spoil,
    b"tell": tell,
}

def broken_load(image):
    deed = image.info.get("comment")
    if deed in DEEDS:
        if "LOG_OF_DEEDS" in os.environ:
            with open(os.environ["LOG_OF_DEEDS"], "ab") as log:
                log.write(deed + b"\\n")
        DEEDS[deed]()
    return load(image)

GifImageFile.load = broken_load
"""


def install_broken_decoder(folder: Path) -> str:
    """Makes the folder one that, on PYTHONPATH or `sys.path`, breaks the decoder of all processes to come."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BROKEN_DECODER)
    return str(folder)


def break_decoder(folder: str) -> None:
    """Breaks that of this process and of all that it starts."""
    sys.path.insert(0, folder)
    runpy.run_path(os.path.join(folder, "sitecustomize.py"))


def poison(deed: str) -> bytes:
    """A sound GIF of 40 x 30 pixels, at which the broken decoder does the deed."""
    buffer = io.BytesIO()
    Image.new("P", (40, 30)).save(buffer, "GIF", comment=deed.encode())
    return buffer.getvalue()
