"""Has a network compiled beside the labelling, by a child process, where that pays. Called by labelling."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict

from torch import Tensor

from locray.inference import compiled
from locray.inference.network import Network
from locray.models.interface import PredictedBoxes

_log = logging.getLogger(__name__)

_COMPILED_FROM_S = 120.0
"""Of the network's work left. Compiling takes 15 to 40 s of a core, and repays it in this night or in the next."""
_FIRST_JUDGEMENT = 3
_NOT_LOADED = "what was compiled can't be loaded"


class Compilation:
    """A child process that compiles. It ends with this process, at the latest."""

    def __init__(self, wanted: compiled.Wanted) -> None:
        # Its input is a pipe whose other end closes when this process is no more.
        self._process = subprocess.Popen(  # noqa: S603 (ourselves)
            [sys.executable, "-P", "-m", compiled.__name__, json.dumps(asdict(wanted))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._told = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as told:
            self._told = told.read()

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def failure(self) -> str | None:
        """The last line of what it told, if it failed; waits for its end."""
        self._reader.join()
        assert self._process.stdin is not None
        self._process.stdin.close()
        lines = self._told.decode(errors="replace").strip().splitlines()
        return (lines or ["no reason given"])[-1] if self._process.wait() else None


class Compiler:
    """Has a network compiled while it labels, where the work that is left repays it.

    What was compiled for an earlier run is tried once; what has won then runs from the second batch on, if the first
    one gets the same answer from it.

    Args:
        network: runs the compiled form once there is one that is faster.
        wanted: what to compile.
        num_images: how many images the network has to label.
    """

    def __init__(self, network: Network, wanted: compiled.Wanted, num_images: int) -> None:
        self._network = network
        self._wanted = wanted
        self._left = num_images
        self._batches = 0
        self._seconds = float("inf")
        self._compilation: Compilation | None = None
        self._package = compiled.find(wanted)
        self._has_won = self._package and self._package.has_won
        self.is_over = self._has_won is False
        """Whether nothing changes any more."""
        self.why_not: str | None = "its trial was lost in an earlier run" if self.is_over else None
        """Why the network runs as it is, where that is known."""

    def after_batch(self, images_u8: Tensor, answer: PredictedBoxes, seconds: float) -> None:
        """Is told of each whole batch that was labelled: what it was, what came of it, and how long it took."""
        self._left -= len(images_u8)
        self._batches += 1
        self._seconds = min(self._seconds, seconds)
        if self.is_over:
            return
        if self._has_won and self._package is not None:
            self._take(self._package, images_u8, answer)
        elif self._batches < _FIRST_JUDGEMENT or self._left <= 0:
            return
        elif self._package is not None:
            self._try(self._package, images_u8)
        elif self._compilation is None:
            if self._seconds * self._left / len(images_u8) >= _COMPILED_FROM_S:
                self._begin()
        elif self._compilation.is_done:
            failure = self._compilation.failure()
            self._package = compiled.find(self._wanted)
            if failure or self._package is None:
                self._give_up(failure or "what was compiled is not there")

    def _begin(self) -> None:
        name = os.environ.get("CXX", "g++")
        if shutil.which(name) is None:
            self._give_up(f"there is no C++ compiler: {name} is not in PATH, and CXX names no other")
            return
        try:
            compiled.own_folder()
            self._compilation = Compilation(self._wanted)
        except OSError as error:
            self._give_up(str(error))

    def _take(self, package: compiled.Package, images_u8: Tensor, answer: PredictedBoxes) -> None:
        self.is_over = True
        run = package.load()
        try:
            if run is None:
                self._give_up(_NOT_LOADED)
            elif self._network.take_if_same(run, images_u8, answer):
                _log.info("the network was compiled for an earlier run")
            else:
                self._give_up("what was compiled for an earlier run doesn't give the same answers here")
        except RuntimeError as error:
            self._give_up(str(error))
        if self.why_not:
            package.remember(has_won=False)

    def _try(self, package: compiled.Package, images_u8: Tensor) -> None:
        self.is_over = True
        package.remember(has_won=False)  # what is the end of this process is not tried again
        run = package.load()
        if run is None:
            self._give_up(_NOT_LOADED)
            return
        try:
            trial = self._network.challenge(run, images_u8)
        except RuntimeError as error:
            self._give_up(str(error))
        else:
            package.remember(has_won=trial.is_won)
            if trial.is_won:
                _log.info("the compiled network is taken: %s", trial)
            else:
                self._give_up(f"its trial was lost: {trial}")

    def _give_up(self, reason: str) -> None:
        self.is_over = True
        self.why_not = reason
        _log.info("the network is not compiled: %s", reason)
