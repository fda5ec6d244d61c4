"""Results of the labelling benchmark: runs, medians and ratios."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.agreement import Agreement

LOCRAY, CEILING, RAY, DAFT, LOADER = "locray", "ceiling", "ray_data", "daft", "dataloader"

STEADY_FROM, STEADY_TO = 0.2, 0.9
"""The steady state: from the batch that completes a fifth of the images to the one that completes nine tenths."""
MIN_STEADY_S = 0.25
"""Minimum duration: in a shorter one, rows finished before it distort the speed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a contender."""

    images_per_s_steady: float | None
    images_per_s: float
    images_per_cpu_s: float
    startup_s: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Result:
    """All runs of a contender on a tier."""

    tier: str
    contender: str
    precision: str
    agreement: Agreement
    """The worst of all runs."""
    runs: list[Run]

    def joined(self, later: "Result") -> "Result":
        """Returns this result with the runs of another one."""
        worst = min(self.agreement, later.agreement, key=lambda one: (one.is_valid, one.same_class + one.same_box))
        return replace(later, agreement=worst, runs=[*self.runs, *later.runs])

    def median(self, measure: str) -> float | None:
        """The median of a field of `Run`; None if a run lacks it, or the contender's labels are wrong."""
        values = self.values(measure)
        return statistics.median(values) if len(values) == len(self.runs) and self.agreement.is_valid else None

    def values(self, measure: str) -> list[float]:
        """The values of a field of `Run`, without missing ones."""
        return [value for run in self.runs if (value := getattr(run, measure)) is not None]


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
    """By tier and step: milliseconds of a core per image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def steady_images_per_s(ticks: Sequence[tuple[float, int]], total: int) -> float | None:
    """Images per second in the steady state; None if it is too short.

    Args:
        ticks: Times in seconds, with the number of images finished so far.
        total: Number of images.
    """
    first = next((tick for tick in ticks if tick[1] >= STEADY_FROM * total), ticks[-1])
    last = next((tick for tick in ticks if tick[1] >= STEADY_TO * total), ticks[-1])
    seconds = last[0] - first[0]
    return (last[1] - first[1]) / seconds if seconds >= MIN_STEADY_S else None


def ratios(results: Sequence[Result]) -> dict[str, float | None]:
    """Medians of locray relative to those of others; None if one of the two is missing."""
    found: dict[str, float | None] = {}
    for tier in dict.fromkeys(result.tier for result in results):
        by_name = {result.contender: result for result in results if result.tier == tier}
        tuned = [one for name, one in by_name.items() if name.endswith(" tuned") and one.agreement.is_valid]
        # A contender too fast for a steady state is the best, so the ratio has no value.
        best = max(tuned, key=lambda one: one.median("images_per_s_steady") or math.inf, default=None)
        others = {
            CEILING: (by_name.get(CEILING), "images_per_s_steady"),
            "best tuned peer": (best, "images_per_s_steady"),
            RAY: (by_name.get(RAY), "images_per_s_steady"),
            f"{LOADER} tuned, end to end": (by_name.get(f"{LOADER} tuned"), "images_per_s"),
        }
        for name, (other, measure) in others.items():
            if other is not None:
                found[f"{tier}: locray / {name}"] = _ratio(by_name[LOCRAY], other, measure)
    return found


def _ratio(one: Result, other: Result, measure: str) -> float | None:
    above, below = one.median(measure), other.median(measure)
    return round(above / below, 3) if above and below else None
