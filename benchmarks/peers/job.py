"""What a script is told to do, and how it tells what it did. Called by each of them, and by `benchmark.labelling`.

Without torch: `locray label` imports none in its first process, and must not be slowed down for being watched.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

BATCH_SIZE = 32
NOTHING_FOUND = -1
"""The label id of an image without a detection."""
BOX = ("xmin", "ymin", "xmax", "ymax")
TICKS = "ticks.txt"
NOTES = "notes.json"
ROWS = "rows"
"""Folder of the Parquet files."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to label, and how fast it may be made."""

    images: Path
    model: str
    output: Path
    tuned: bool = False
    """bfloat16 where that is faster, channels_last memory, and as many threads as suit. Nothing else changes."""
    packages: str = "never"
    """The --compiled of `locray label`."""

    @classmethod
    def from_arguments(cls) -> "Job":
        """The arguments of this process."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--images", type=Path, required=True)
        parser.add_argument("--model", required=True)
        parser.add_argument("--output", type=Path, required=True)
        parser.add_argument("--tuned", action="store_true")
        parser.add_argument("--packages", default="never")
        return cls(**vars(parser.parse_args()))

    def arguments(self) -> list[str]:
        """The same, for another process."""
        tuned = ["--tuned"] if self.tuned else []
        paths = ["--images", str(self.images), "--model", self.model, "--output", str(self.output)]
        return [*paths, "--packages", self.packages, *tuned]

    def paths(self) -> list[str]:
        """The files to label."""
        return [str(path) for path in sorted(self.images.iterdir())]

    def note(self, **facts: str) -> None:
        """Leaves facts about how the script ran."""
        (self.output / NOTES).write_text(json.dumps(facts), encoding="utf-8")


class Ticks:
    """Notes when how many images were done."""

    def __init__(self, output: Path) -> None:
        self._path = output / TICKS
        self._done = 0

    def add(self, num_images: int) -> None:
        """So many more are done."""
        self.reached(self._done + num_images)

    def reached(self, num_images: int) -> None:
        """So many are done in all."""
        self._done = num_images
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{time.time()} {num_images}\n")


def num_cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0))
