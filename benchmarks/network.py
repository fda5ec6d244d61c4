"""The network of a benchmark: trained if none was given, and its compiled form.

Random weights are unsuitable: rounding decides between their nearly equal classes, so no two contenders would agree.
"""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.peers.job import BATCH_SIZE
from locray.config import CompileConfig
from locray.convert.compile import compile_model
from locray.demo.images import write_dataset
from locray.errors import UsageError
from locray.models.files import read_artifact_info
from locray.progress import ignore

ARCHITECTURE = "localizer/resnet18"
_COUNTS = {"train": 160, "val": 32}
_EPOCHS = 4


def trained_network(folder: Path) -> str:
    """Trains on drawn pictures for a minute or two, and returns the artifact's folder.

    Raises:
        UsageError: the training failed; the message holds the end of what it wrote.
    """
    data, output = folder / "drawn", folder / "network"
    write_dataset(data, _COUNTS, seed=0)
    options = {"data": data, "format": "csv", "model": ARCHITECTURE, "epochs": _EPOCHS, "batch-size": 16}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "locray", "train", *flags, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"no network could be trained; give one with --model: {done.stderr.strip()[-2000:]}")
    return str(output)


def compile_beforehand(model: str, output: str) -> str | None:
    """Compiles a network as `locray compile` does, into a folder of the benchmark.

    Returns:
        Why there is no package, if there is none.
    """
    if torch.cuda.is_available() or read_artifact_info(model).info.int8_sha256 is not None:
        return "it is not used here"
    config = CompileConfig(model=model, output=output, batch_size=BATCH_SIZE)
    return compile_model(config, ignore).reason
