"""Has a network compiled beside the labelling, by a child process, where that pays. Called by labelling."""

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict

from torch import Tensor

from locray.models import compiled
from locray.models.inference import TRIAL_BATCHES, Network

_log = logging.getLogger(__name__)

_GAIN = 0.05
"""The share of the time that a compiled network saves at least; with what is faster than float32 more."""
_COMPILED_FROM_S = 1200.0
"""Of the network's work left. Compiling takes up to a minute of one core."""
_LOADING_S = 1.0
_FIRST_JUDGEMENT = 3


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
        self._has_looked = False
        self._is_over = False

    def after_batch(self, images_u8: Tensor, seconds: float) -> None:
        """Is told of each batch that was labelled, and how long it took."""
        self._left -= len(images_u8)
        self._batches += 1
        self._seconds = min(self._seconds, seconds)
        if self._is_over or self._batches < _FIRST_JUDGEMENT:
            return
        if self._compilation is None:
            self._begin(images_u8, self._seconds * self._left / len(images_u8))
        elif self._compilation.is_done:
            failure = self._compilation.failure()
            if failure or not self._take(images_u8):
                self._give_up(failure or "what was compiled can't be loaded")

    def _begin(self, images_u8: Tensor, seconds_left: float) -> None:
        trial_s = _LOADING_S + TRIAL_BATCHES * self._seconds
        if seconds_left * _GAIN >= trial_s and not self._has_looked:
            self._has_looked = True
            self._take(images_u8)
        if seconds_left >= _COMPILED_FROM_S and not self._is_over:
            try:
                compiled.own_folder()
                self._compilation = Compilation(self._wanted)
            except OSError as error:
                self._give_up(str(error))

    def _take(self, images_u8: Tensor) -> bool:
        run = compiled.find(self._wanted)
        if run is None:
            return False
        self._is_over = True
        try:
            trial = self._network.challenge(run, images_u8)
        except RuntimeError as error:
            self._give_up(str(error))
        else:
            _log.info("the compiled network: %s; %s", trial, "taken" if trial.is_won else "not taken")
        return True

    def _give_up(self, reason: str) -> None:
        self._is_over = True
        _log.info("the network is not compiled: %s", reason)
