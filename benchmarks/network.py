"""The network of a benchmark: one with opinions, where none was given, and its compiled form. Called by `labelling`.

The classes of random weights are ties, on which no two ways of computing agree: the weights must have learned.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.peers.job import BATCH_SIZE, num_cores
from locray.demo.images import write_dataset
from locray.errors import UsageError
from locray.inference.compiled import Wanted
from locray.inference.compiling import Compiler
from locray.inference.network import Network
from locray.inference.precision import fastest_dtype
from locray.models.artifact import load_artifact

ARCHITECTURE = "localizer/resnet18"
_COUNTS = {"train": 160, "val": 32}
_EPOCHS = 4
_PLENTY = 10**9
"""Images that are said to be left, so that compiling pays."""
_BETWEEN_BATCHES_S = 0.5


def trained_network(folder: Path) -> str:
    """Trains on drawn pictures for a minute or two, and gives the artifact's folder.

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


def compile_beforehand(model: str) -> dict[str, str]:
    """Compiles a network into the cache and tries it there, as longer nights do for those after them.

    Returns:
        Why it could not be compiled, if so, by what is missing then.
    """
    artifact, cpu = load_artifact(model), torch.device("cpu")
    if torch.cuda.is_available() or artifact.info.int8_ranges is not None:
        return {}
    torch.set_num_threads(num_cores())
    dtype = fastest_dtype(cpu)
    wanted = Wanted(model, artifact.model_id, str(dtype).removeprefix("torch."), BATCH_SIZE, num_cores())
    size = artifact.info.input_size
    noise = torch.randint(0, 256, (BATCH_SIZE, size, size, 3), dtype=torch.uint8)
    network = Network(artifact.model, cpu, dtype)
    compiler = Compiler(network, wanted, num_images=_PLENTY)
    while not compiler.is_over:
        compiler.after_batch(noise, network.predict(noise), seconds=1)
        time.sleep(_BETWEEN_BATCHES_S)
    return {"the compiled network of locray": compiler.why_not} if compiler.why_not else {}
