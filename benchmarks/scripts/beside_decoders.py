"""Speed of a network while other processes decode, by their priority. For docs/decisions/inference.md.

Run from the project's root: `python -m benchmarks.scripts.beside_decoders --images FOLDER [--architecture NAME]`, with
OMP_WAIT_POLICY=PASSIVE or without. Two processes decode the folder's images in a loop, as workers of labelling do. The
network takes batches of noise.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

BATCH_SIZE = 32
SECONDS = 8.0
WARM_UP_S = 5.0
NUM_DECODERS = 2


def decode(folder: Path, niceness: int) -> None:
    """Decodes until it is killed."""
    import pyarrow as pa

    from locray.config import InferenceOptions
    from locray.labelling.fetch_decode import decode_rows
    from locray.labelling.model import ModelSpec
    from locray.labelling.worklist import InlineWorklist, num_units
    from locray.sources import open_source
    from locray.table.key import PredictionKey

    os.nice(niceness)
    model = ModelSpec(PredictionKey("benchmark", ""), "", 224, InferenceOptions())
    worklist = InlineWorklist.of(pa.Table.from_batches(open_source(str(folder)).listing()), BATCH_SIZE)
    for unit in itertools.cycle(range(num_units(worklist))):
        decode_rows(worklist.read_unit(unit), model)


def predict(folder: Path, architecture: str) -> None:
    """Prints images per second and processor time per image, alone and beside decoders of two priorities."""
    import torch

    from locray.inference.devices import fastest_dtype, keep_freed_memory
    from locray.inference.network import Network
    from locray.models.architectures import build_model

    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    network = Network(build_model(architecture, 10).eval(), cpu, fastest_dtype(cpu))
    images = torch.randint(0, 256, (BATCH_SIZE, 224, 224, 3), dtype=torch.uint8)

    def measure(seconds: float) -> str:
        started, cpu_started, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - started < seconds:
            network.predict(images)
            count += BATCH_SIZE
        images_per_s = count / (time.perf_counter() - started)
        core_ms = 1000 * (time.process_time() - cpu_started) / count
        return f"{images_per_s:.1f} images/s, {core_ms:.1f} ms of a core per image"

    measure(WARM_UP_S)
    print("alone:", measure(SECONDS), flush=True)
    for niceness in (0, 10):
        script = ["-m", "benchmarks.scripts.beside_decoders"]
        command = [sys.executable, *script, "--images", str(folder), "--decode", str(niceness)]
        decoders = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(NUM_DECODERS)]
        time.sleep(WARM_UP_S)
        print(f"beside {NUM_DECODERS} decoders at nice {niceness}:", measure(SECONDS), flush=True)
        for decoder in decoders:
            decoder.kill()
            decoder.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--architecture", default="localizer/resnet18")
    parser.add_argument("--decode", type=int)
    arguments = parser.parse_args()
    if arguments.decode is not None:
        decode(arguments.images, arguments.decode)
    else:
        predict(arguments.images, arguments.architecture)
