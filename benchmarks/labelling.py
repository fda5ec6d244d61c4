"""Labelling speed of locray, of its alternatives, and of a program written by hand for this machine.

Every contender labels the same files with the same network in processes of its own, in turn, several times, so that a
machine that slows down slows all of them.
"""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import locray
from benchmarks.agreement import Predictions, compare, predict_plainly, read_rows, read_table
from benchmarks.breakdown import breakdown
from benchmarks.config import BenchmarkConfig
from benchmarks.network import compile_beforehand, trained_network
from benchmarks.peers.job import NOTES, ROWS, TICKS, Job
from benchmarks.processes import run_measured
from benchmarks.results import (
    CEILING,
    DAFT,
    LOADER,
    LOCRAY,
    RAY,
    LabellingSpeed,
    Result,
    Run,
    ratios,
    steady_images_per_s,
)
from benchmarks.tiers import Tier, make_tiers
from locray import storage
from locray.errors import UsageError
from locray.models.artifact import load_artifact
from locray.progress import Progress, Report


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that labels."""

    name: str
    module: str
    """Module in `benchmarks.peers`."""
    read: Callable[[Path], Predictions]
    """Reads its output."""
    tuned: bool = False
    packages: Path | None = None
    """Folder of Python packages that take precedence over those of this environment."""


OWN = Contender(LOCRAY, "own", read_table)


@dataclass(frozen=True, slots=True)
class _Setup:
    """Common inputs of all contenders."""

    folder: Path
    """Folder for all files of the benchmark."""
    model: str

    @property
    def compiled(self) -> str:
        """The folder of the network in compiled form, as `label --compiled` takes it."""
        return str(self.folder / "packages")

    def environment(self, contender: Contender) -> dict[str, str]:
        """The environment variables of a contender's process. All rounds share one cache of compiled code."""
        paths = [*filter(None, [contender.packages]), Path(locray.__file__).parents[1]]
        variables = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(str(path.absolute()) for path in paths)}
        if contender.module == CEILING:
            # Waiting threads of its network sleep, as locray's do: its decoders need the cores.
            variables |= {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"), "OMP_WAIT_POLICY": "PASSIVE"}
        return variables


def benchmark(config: BenchmarkConfig, report: Report) -> LabellingSpeed:
    """Makes the images and the network, runs all contenders in turn, `--rounds` times, and compares.

    Raises:
        UsageError: the images, the model or an option is wrong, or a contender failed.
    """
    contenders, skipped = _contenders(config)
    if config.model is not None:
        load_artifact(config.model)  # fails early if it is damaged
    with tempfile.TemporaryDirectory(prefix="locray-benchmark-") as name:
        folder = Path(name)
        report(Progress("making images"))
        images = None if config.images is None else Path(config.images)
        tiers = make_tiers(images, folder, config.small_images, config.large_images)
        report(Progress("making the network"))
        setup = _Setup(folder, storage.normalise(config.model or trained_network(folder)))
        if not config.no_compile:
            report(Progress("compiling the network"))
            reason = compile_beforehand(setup.model, setup.compiled)
            skipped |= {"locray's compiled network": reason} if reason else {}
        expected = {tier.name: predict_plainly(tier.folder, setup.model) for tier in tiers}
        results: dict[tuple[str, str], Result] = {}
        turns = [(tier, contender) for _ in range(config.rounds) for tier in tiers for contender in contenders]
        for number, (tier, contender) in enumerate(turns):
            report(Progress(f"{contender.name}, {tier.name} images", number, len(turns)))
            result = _run(contender, tier, setup, expected[tier.name])
            previous = results.get((tier.name, contender.name))
            results[tier.name, contender.name] = result if previous is None else previous.joined(result)
        one_image_s = {} if config.contenders else _one_image(config.rounds, tiers[0], setup, report)
        report(Progress("where the time goes"))
        steps = {
            tier.name: breakdown(
                tier.folder, setup.model, setup.compiled, results[tier.name, LOCRAY].median("images_per_s_steady")
            )
            for tier in tiers
        }
    found = list(results.values())
    counts = {tier.name: tier.count for tier in tiers}
    return LabellingSpeed(_machine(), locray.__version__, counts, found, ratios(found), skipped, one_image_s, steps)


def _contenders(config: BenchmarkConfig) -> tuple[list[Contender], dict[str, str]]:
    """Returns the contenders that run, locray last, and the reasons why others are skipped."""
    skipped, modules = {}, {RAY: RAY, DAFT: "daft_frame", LOADER: LOADER}
    if config.daft is None and importlib.util.find_spec("daft") is None:
        del modules[DAFT]
        skipped[DAFT] = "not installed; see --daft"
    elif config.daft is not None and not (config.daft / "daft").is_dir():
        raise UsageError(f"{config.daft} holds no daft: pip install --target {config.daft} daft 'pyarrow<26'")
    others = [
        Contender(f"{name}{' tuned' if tuned else ''}", module, read_rows, tuned, config.daft if name == DAFT else None)
        for name, module in modules.items()
        for tuned in (False, True)
    ]
    others.append(Contender(CEILING, CEILING, read_rows, tuned=not config.no_compile))
    if config.contenders is None:
        return [*others, OWN], skipped
    chosen = {name.strip() for name in config.contenders.split(",")}
    unknown = sorted(chosen - {LOCRAY, *(one.name for one in others)})
    if unknown:
        known = ", ".join(one.name for one in others)
        raise UsageError(f"--contenders: there is no {unknown[0]!r}; expected some of: {known}")
    return [*(one for one in others if one.name in chosen), OWN], {}


def _run(contender: Contender, tier: Tier, setup: _Setup, expected: Predictions) -> Result:
    with tempfile.TemporaryDirectory(dir=setup.folder) as name:
        output = Path(name)
        job = Job(tier.folder, setup.model, output, contender.tuned, setup.compiled)
        command = [sys.executable, "-m", f"benchmarks.peers.{contender.module}", *job.arguments()]
        measured = run_measured(command, setup.environment(contender))
        lines = (output / TICKS).read_text(encoding="ascii").splitlines()
        ticks = [(float(at_s), int(done)) for at_s, done in map(str.split, lines)]
        run = Run(
            images_per_s_steady=steady_images_per_s(ticks, tier.count),
            images_per_s=tier.count / measured.wall_s,
            images_per_cpu_s=tier.count / measured.cpu_s,
            startup_s=ticks[0][0] - measured.started_at_s,
            peak_mib=measured.peak_bytes / 2**20,
        )
        notes = output / NOTES
        precision = json.loads(notes.read_text(encoding="utf-8"))["precision"] if notes.exists() else ""
        return Result(tier.name, contender.name, precision, compare(contender.read(output / ROWS), expected), [run])


def _one_image(rounds: int, tier: Tier, setup: _Setup, report: Report) -> dict[str, list[float]]:
    """Seconds to label a single image, and to start Ray with a worker that imports torch."""
    folder = setup.folder / "one"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(min(tier.folder.iterdir()).read_bytes())
    seconds: dict[str, list[float]] = {"locray label": [], "ray.init and a worker that imports torch": []}
    for number in range(rounds):
        report(Progress("a single image", number, rounds))
        flags = ["--images", str(folder), "--model", setup.model, "--table", str(setup.folder / f"table-{number}")]
        commands = [["locray", "label", *flags, "--compiled", setup.compiled], ["benchmarks.peers.bare"]]
        for name, command in zip(seconds, commands, strict=True):
            measured = run_measured([sys.executable, "-m", *command], setup.environment(OWN))
            seconds[name].append(round(measured.wall_s, 2))
    return seconds


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{len(os.sched_getaffinity(0))} cores, {names[0] if names else 'unknown'}, {' '.join(known)}"
