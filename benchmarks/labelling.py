"""Labelling speed beside what people would use instead, and beside what the machine gives. Called by the command line.

Every contender labels the same files with the same network in processes of its own, in turn, several times: a machine
that slows down slows all of them.
"""

import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import locray
from benchmarks.agreement import Agreement, Answers, compare, read_rows, read_table, reference
from benchmarks.breakdown import breakdown
from benchmarks.config import BenchmarkConfig
from benchmarks.network import compile_beforehand, trained_network
from benchmarks.peers.job import NOTES, ROWS, TICKS, Job
from benchmarks.processes import run_measured
from benchmarks.tiers import Tier, make_tiers
from locray import storage
from locray.errors import UsageError
from locray.models.artifact import load_artifact
from locray.progress import Progress, Report

LOCRAY, CEILING, RAY, DAFT, LOADER = "locray", "ceiling", "ray_data", "daft", "dataloader"
PACKAGES = "packages"
"""Folder of the network that was compiled beforehand."""
STEADY_FROM, STEADY_TO = 0.2, 0.9
"""The steady state: from the batch that completes a fifth of the images to that which completes nine tenths."""
SHORTEST_STEADY_S = 0.25
"""What takes less is no steady state: what was ready before it begins comes out at once."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to label."""

    name: str
    module: str
    tuned: bool
    read: Callable[[Path], Answers]
    packages: Path | None = None
    """A folder of packages that it needs beside, or instead of, those of this environment."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one contender did once."""

    images_per_s_steady: float | None
    images_per_s: float
    images_per_cpu_s: float
    startup_s: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Result:
    """All that is known of a contender on a tier."""

    tier: str
    contender: str
    precision: str
    agreement: Agreement
    runs: list[Run]

    def median(self, figure: str) -> float | None:
        """Of the rounds; None where one of them has none, or where the contender labels something else."""
        values = self.values(figure)
        return statistics.median(values) if len(values) == len(self.runs) and self.agreement.counts else None

    def values(self, figure: str) -> list[float]:
        """Of each round."""
        return [value for run in self.runs if (value := getattr(run, figure)) is not None]


@dataclass(frozen=True, slots=True)
class LabellingSpeed:
    """All results, as `--json` prints them."""

    machine: str
    version: str
    images: Mapping[str, int]
    results: list[Result]
    ratios: Mapping[str, float | None]
    skipped: Mapping[str, str]
    one_image_s: Mapping[str, list[float]]
    breakdown_ms: Mapping[str, Mapping[str, float]]
    """By tier and step: milliseconds of a core for each image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def benchmark(config: BenchmarkConfig, report: Report) -> LabellingSpeed:
    """Makes the images and the network, runs everyone in turn, `--rounds` times, and compares.

    Raises:
        UsageError: the images, the model or an option is not what it should be, or a contender failed.
    """
    contenders, skipped = _contenders(config)
    if config.model is not None:
        load_artifact(config.model)  # a damaged one is told at once
    with tempfile.TemporaryDirectory(prefix="locray-benchmark-") as name:
        folder = Path(name)
        report(Progress("making images"))
        images = None if config.images is None else Path(config.images)
        tiers = make_tiers(images, folder, config.small_images, config.large_images)
        report(Progress("making the network"))
        model = storage.normalise(config.model or trained_network(folder))
        if not config.no_compile:
            report(Progress("compiling the network"))
            reason = compile_beforehand(model, folder / PACKAGES)
            skipped |= {"the compiled network of locray": reason} if reason else {}
        wanted = {tier.name: reference(tier.folder, model) for tier in tiers}
        results: dict[tuple[str, str], Result] = {}
        turns = [(tier, contender) for _ in range(config.rounds) for tier in tiers for contender in contenders]
        for number, (tier, contender) in enumerate(turns):
            report(Progress(f"{contender.name}, {tier.name} images", number, len(turns)))
            result = _run(contender, tier, model, folder, wanted[tier.name])
            before = results.get((tier.name, contender.name))
            results[tier.name, contender.name] = _joined(before, result)
        one = _one_image(config, tiers[0], model, folder, report)
        report(Progress("where the time goes"))
        steps = {
            tier.name: breakdown(
                tier.folder, model, str(folder / PACKAGES), results[tier.name, LOCRAY].median("images_per_s_steady")
            )
            for tier in tiers
        }
    found = list(results.values())
    counts = {tier.name: tier.count for tier in tiers}
    return LabellingSpeed(_machine(), locray.__version__, counts, found, ratios(found), skipped, one, steps)


def _contenders(config: BenchmarkConfig) -> tuple[list[Contender], dict[str, str]]:
    skipped, names = {}, [RAY, DAFT, LOADER]
    if config.daft is None and importlib.util.find_spec("daft") is None:
        names.remove(DAFT)
        skipped[DAFT] = "not installed; see --daft"
    elif config.daft is not None and not (config.daft / "daft").is_dir():
        raise UsageError(f"{config.daft} holds no daft: pip install --target {config.daft} daft 'pyarrow<26'")
    modules = {RAY: RAY, DAFT: "daft_frame", LOADER: LOADER}
    packages = {DAFT: config.daft}
    peers = [
        Contender(f"{name}{' tuned' if tuned else ''}", modules[name], tuned, read_rows, packages.get(name))
        for name in names
        for tuned in (False, True)
    ]
    others = [*peers, Contender(CEILING, CEILING, not config.no_compile, read_rows)]
    own = Contender(LOCRAY, "own", False, read_table)
    if config.contenders is None:
        return [*others, own], skipped
    wanted = {name.strip() for name in config.contenders.split(",")}
    unknown = sorted(wanted - {one.name for one in [*others, own]})
    if unknown:
        known = ", ".join(one.name for one in others)
        raise UsageError(f"--contenders: there is no {unknown[0]!r}; expected some of: {known}")
    return [*(one for one in others if one.name in wanted), own], {}


def _run(contender: Contender, tier: Tier, model: str, folder: Path, wanted: Answers) -> Result:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name)
        job = Job(tier.folder, model, output, contender.tuned, str(folder / PACKAGES))
        command = [sys.executable, "-m", f"benchmarks.peers.{contender.module}", *job.arguments()]
        measured = run_measured(command, _environment(contender, folder))
        ticks = [
            (float(at), int(done))
            for at, done in (line.split() for line in (output / TICKS).read_text(encoding="ascii").splitlines())
        ]
        run = Run(
            images_per_s_steady=steady(ticks, tier.count),
            images_per_s=tier.count / measured.wall_s,
            images_per_cpu_s=tier.count / measured.cpu_s,
            startup_s=ticks[0][0] - measured.started,
            peak_mib=measured.peak_bytes / 2**20,
        )
        notes = output / NOTES
        precision = json.loads(notes.read_text(encoding="utf-8"))["precision"] if notes.exists() else ""
        return Result(tier.name, contender.name, precision, compare(contender.read(output / ROWS), wanted), [run])


def steady(ticks: list[tuple[float, int]], total: int) -> float | None:
    """Images a second between two moments that are chosen in the same way for everyone; None for too few images."""
    first = next((tick for tick in ticks if tick[1] >= STEADY_FROM * total), ticks[-1])
    last = next((tick for tick in ticks if tick[1] >= STEADY_TO * total), ticks[-1])
    seconds = last[0] - first[0]
    return (last[1] - first[1]) / seconds if seconds >= SHORTEST_STEADY_S else None


def _environment(contender: Contender, folder: Path) -> dict[str, str]:
    """That of this process, packages of the contender's own first. What was compiled in one round serves the next."""
    here = str(Path(locray.__file__).parents[1])
    paths = [*([str(contender.packages.absolute())] if contender.packages else []), here]
    # The waiting threads of the ceiling's network sleep, as locray's do: its decoders need the cores.
    own = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "OMP_WAIT_POLICY": "PASSIVE"}
    chosen = own if contender.module == CEILING else {}
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)} | chosen


def _joined(before: Result | None, result: Result) -> Result:
    """The runs of all rounds with the worst agreement of them."""
    if before is None:
        return result
    worst = min(before.agreement, result.agreement, key=lambda one: (one.counts, one.same_class + one.same_box))
    return replace(result, agreement=worst, runs=[*before.runs, *result.runs])


def ratios(results: list[Result]) -> dict[str, float | None]:
    """Medians of locray beside those of others; None where one of the two has no figure."""
    found: dict[str, float | None] = {}
    for tier in dict.fromkeys(result.tier for result in results):
        by_name = {result.contender: result for result in results if result.tier == tier}
        own = by_name[LOCRAY]
        tuned = [one for name, one in by_name.items() if name.endswith(" tuned") and one.agreement.counts]
        # One that was too fast to have a steady state is the best, and leaves the ratio without a figure.
        best = max(tuned, key=lambda one: one.median("images_per_s_steady") or math.inf, default=None)
        others = {
            CEILING: (by_name.get(CEILING), "images_per_s_steady"),
            "best tuned peer": (best, "images_per_s_steady"),
            RAY: (by_name.get(RAY), "images_per_s_steady"),
            f"{LOADER} tuned, end to end": (by_name.get(f"{LOADER} tuned"), "images_per_s"),
        }
        for name, (other, figure) in others.items():
            if other is not None:
                found[f"{tier}: locray / {name}"] = _ratio(own, other, figure)
    return found


def _ratio(one: Result, other: Result, figure: str) -> float | None:
    above, below = one.median(figure), other.median(figure)
    return round(above / below, 3) if above and below else None


def _one_image(config: BenchmarkConfig, tier: Tier, model: str, folder: Path, report: Report) -> dict[str, list[float]]:
    """Seconds to label a single image, and those that Ray and torch take by themselves."""
    if config.contenders is not None:
        return {}
    alone = folder / "one"
    alone.mkdir()
    (alone / "one.jpg").write_bytes(next(iter(sorted(tier.folder.iterdir()))).read_bytes())
    seconds: dict[str, list[float]] = {"locray label": [], "ray.init and a worker that imports torch": []}
    environment = _environment(Contender(LOCRAY, "own", False, read_table), folder)
    for number in range(config.rounds):
        report(Progress("a single image", number, config.rounds))
        flags = ["--images", str(alone), "--model", model, "--table", str(folder / f"table-{number}")]
        flags += ["--compiled", str(folder / PACKAGES)]
        commands = [["locray", "label", *flags], ["benchmarks.peers.bare"]]
        for name, command in zip(seconds, commands, strict=True):
            seconds[name].append(round(run_measured([sys.executable, "-m", *command], environment).wall_s, 2))
    return seconds


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{len(os.sched_getaffinity(0))} cores, {names[0] if names else 'unknown'}, {' '.join(known)}"
