"""Training speed of locray and of a plain PyTorch loop, on the same files with the same network.

All three run in processes of their own, in turn, several times, so that a machine that slows down slows all of them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.config import BenchmarkTrainingConfig
from benchmarks.plain_loop import PlainSettings
from locray.datasets import read_dataset
from locray.errors import UsageError
from locray.models.architectures import default_input_size_px
from locray.progress import Progress, Report
from locray.training.history import read_history

EPOCHS = 3
"""The first one is a warm-up, and not counted."""

LOCRAY, PLAIN, TUNED = "locray", "plain_fp32", "plain_bf16"


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """Images per second of every round, and the ratios of medians, as `--json` prints them."""

    model: str
    input_size: int
    images_per_s: Mapping[str, list[float]]
    ratio_to_plain_fp32: float
    ratio_to_plain_bf16: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def benchmark(config: BenchmarkTrainingConfig, report: Report) -> TrainingSpeed:
    """Runs the three in turn, `--rounds` times.

    Raises:
        UsageError: there is no such data, or one of them failed; the message holds the end of its output.
        StoreError: the annotations can't be read.
    """
    read_dataset(config.data, config.format, config.split)
    size = config.input_size or default_input_size_px(config.model)
    plain = PlainSettings(
        config.data, config.format, config.split, config.model, size, config.batch_size, EPOCHS, tuned=False
    )
    rounds: dict[str, list[float]] = {LOCRAY: [], PLAIN: [], TUNED: []}
    for number in range(config.rounds):
        report(Progress("measuring", number, config.rounds, {name: _median(rounds[name]) for name in rounds}))
        rounds[LOCRAY].append(_locray(config, size))
        rounds[PLAIN].append(_plain(plain))
        rounds[TUNED].append(_plain(replace(plain, tuned=True)))
    return TrainingSpeed(
        model=config.model,
        input_size=size,
        images_per_s={name: [round(speed, 2) for speed in speeds] for name, speeds in rounds.items()},
        ratio_to_plain_fp32=round(_median(rounds[LOCRAY]) / _median(rounds[PLAIN]), 3),
        ratio_to_plain_bf16=round(_median(rounds[LOCRAY]) / _median(rounds[TUNED]), 3),
    )


def _median(speeds: list[float]) -> float:
    return statistics.median(speeds) if speeds else 0.0


def _locray(config: BenchmarkTrainingConfig, size: int) -> float:
    """Images per second of `locray train`, augmentation and averaged weights included."""
    with tempfile.TemporaryDirectory(prefix="locray-") as output:
        options = {
            "data": config.data,
            "format": config.format,
            "train-split": config.split,
            "model": config.model,
            "input-size": size,
            "batch-size": config.batch_size,
            "epochs": EPOCHS,
            "output": output,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        _run([sys.executable, "-m", "locray", "train", *flags])
        return _median([epoch["images_per_s"] for epoch in read_history(output)[1:]])


def _plain(settings: PlainSettings) -> float:
    answer = _run([sys.executable, "-m", "benchmarks.plain_loop", json.dumps(asdict(settings))])
    return _median(json.loads(answer.splitlines()[-1])["images_per_s"][1:])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{' '.join(command[:4])} ... ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
