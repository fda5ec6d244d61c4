"""A network with opinions, for a benchmark that was given none. Called by `labelling`.

The classes of random weights are ties, on which no two ways of computing agree: the weights must have learned.
"""

import subprocess
import sys
from pathlib import Path

from locray.demo.images import write_dataset
from locray.errors import UsageError

ARCHITECTURE = "localizer/resnet18"
_COUNTS = {"train": 160, "val": 32}
_EPOCHS = 4


def trained_network(folder: Path) -> str:
    """Trains on drawn pictures for a minute or two, and gives the artifact's folder.

    Raises:
        UsageError: the training failed; the message holds the end of what it wrote.
    """
    data, output = folder / "drawn", folder / "network"
    write_dataset(data, _COUNTS, seed=0)
    options = {"data": data, "format": "csv", "model": ARCHITECTURE, "epochs": _EPOCHS, "batch-size": 16}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "locray.cli", "train", *flags, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
    if done.returncode:
        raise UsageError(f"no network could be trained; give one with --model: {done.stderr.strip()[-2000:]}")
    return str(output)
