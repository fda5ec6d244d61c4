"""Images that crash or hang a decoder or a network, and the broken decoder and network themselves.

The decoder is Pillow's for GIF with a bug that a comment in the file triggers. The network is `small_cnn`, and a red
image kills its process; with NO_ROOM_FOR_THE_MODEL in the environment, building it does. With GPU_IS_LOST, a red
image raises torch's error for a lost GPU instead. Python loads them at startup as `sitecustomize`, so they are in the
processes that a test starts, but not in the test's own. If the environment sets FAULT_LOG, they log each fault
before it happens.
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

FAULTS = {
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
    fault = image.info.get("comment")
    if fault in FAULTS:
        if "FAULT_LOG" in os.environ:
            with open(os.environ["FAULT_LOG"], "ab") as log:
                log.write(fault + b"\\n")
        FAULTS[fault]()
    return load(image)

GifImageFile.load = broken_load
"""

BROKEN_NETWORK = """
import os, signal, sys
from importlib.machinery import PathFinder

RED = (255, 0, 0)

class Breaker(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "locray.models.small_cnn":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_break(module):
            load(module)
            module.SmallCnn.forward = broken(module.SmallCnn.forward)
            if "NO_ROOM_FOR_THE_MODEL" in os.environ:
                module.SmallCnn.__init__ = lambda self, *given, **named: be_killed()

        spec.loader.exec_module = load_and_break
        return spec

def broken(forward):
    def forward_unless_red(self, images_u8):
        if (images_u8 == images_u8.new_tensor(RED).view(1, 3, 1, 1)).flatten(1).all(1).any():
            if "GPU_IS_LOST" in os.environ:
                lose_the_gpu()
            be_killed()
        return forward(self, images_u8)
    return forward_unless_red

def lose_the_gpu():
    import torch

    with open(os.environ["FAULT_LOG"], "ab") as log:
        log.write(b"lose the GPU\\n")
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

def be_killed():
    with open(os.environ["FAULT_LOG"], "ab") as log:
        log.write(b"be killed\\n")
    os.kill(os.getpid(), signal.SIGKILL)

sys.meta_path.insert(0, Breaker)  # the module loads torch: not before somebody wants it
"""


def install_broken_decoder(folder: Path) -> str:
    """Prepares a folder that, on PYTHONPATH or `sys.path`, breaks the decoder of all new processes."""
    return _install(BROKEN_DECODER, folder)


def install_broken_network(folder: Path) -> str:
    """Does the same for the network `small_cnn`."""
    return _install(BROKEN_NETWORK, folder)


def _install(sitecustomize: str, folder: Path) -> str:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(sitecustomize)
    return str(folder)


def break_decoder(folder: str) -> None:
    """Breaks the decoder of this process and of all processes that it starts."""
    sys.path.insert(0, folder)
    runpy.run_path(os.path.join(folder, "sitecustomize.py"))


def poison(fault: str) -> bytes:
    """Returns a valid GIF of 40 x 30 pixels that triggers a fault of the broken decoder."""
    buffer = io.BytesIO()
    Image.new("P", (40, 30)).save(buffer, "GIF", comment=fault.encode())
    return buffer.getvalue()


def plain_picture(colour: str) -> bytes:
    """Returns a PNG of 32 x 32 pixels in one colour. A `red` one crashes the broken network's process."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()
