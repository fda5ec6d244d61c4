"""Arguments of the scripts, and the facts that they record.

Imports no torch: `locray label` imports none in its first process, and must not be slowed down by the benchmark.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

BATCH_SIZE = 32
NOTHING_FOUND = -1
"""Label id of an image without a detection."""
BOX = ("xmin", "ymin", "xmax", "ymax")
TICKS = "ticks.txt"
NOTES = "notes.json"
ROWS = "rows"
"""Folder of the Parquet files."""


@dataclass(frozen=True, slots=True)
class Job:
    """Files to label and settings."""

    images: Path
    model: str
    output: Path
    tuned: bool = False
    """bfloat16 if it is faster, channels_last memory, and a thread per core. Nothing else changes."""
    compiled: str = "never"
    """The --compiled of `locray label`."""

    @classmethod
    def from_arguments(cls) -> "Job":
        """Reads the arguments of this process."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--images", type=Path, required=True)
        parser.add_argument("--model", required=True)
        parser.add_argument("--output", type=Path, required=True)
        parser.add_argument("--tuned", action="store_true")
        parser.add_argument("--compiled", default="never")
        return cls(**vars(parser.parse_args()))

    def arguments(self) -> list[str]:
        """The arguments for another process."""
        tuned = ["--tuned"] if self.tuned else []
        paths = ["--images", str(self.images), "--model", self.model, "--output", str(self.output)]
        return [*paths, "--compiled", self.compiled, *tuned]

    def paths(self) -> list[str]:
        """The files to label."""
        return [str(path) for path in sorted(self.images.iterdir())]

    def note(self, **facts: str) -> None:
        """Records facts about the script's run."""
        (self.output / NOTES).write_text(json.dumps(facts), encoding="utf-8")


class Ticks:
    """Records the number of finished images over time."""

    def __init__(self, output: Path) -> None:
        self._path = output / TICKS
        self._done = 0

    def add(self, num_images: int) -> None:
        """Adds finished images."""
        self.reached(self._done + num_images)

    def reached(self, num_images: int) -> None:
        """Sets the number of finished images."""
        self._done = num_images
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{time.time()} {num_images}\n")


def num_cores() -> int:
    """Number of cores of this process."""
    return len(os.sched_getaffinity(0))
