"""Which stage limits the speed of a labelling run: fetching, decoding or the network."""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["fetching", "decoding", "predicting"]


@dataclass(frozen=True, slots=True)
class StageCosts:
    """Cost of an image, measured on this machine or, where it says so, on one of the cluster's GPUs."""

    fetch_s: float
    """Time, with all images of a sample requested at once."""
    decode_cpu_s: float
    """Processor time of fetching and decoding."""
    predict_s: float | None
    """Time of one GPU; on processors, of `measured_cpus` of them. None if no GPU could be measured."""
    measured_cpus: int
    """Processors of this machine."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a run has to work with."""

    num_cpus: int
    num_gpus: int
    """0: the network runs on the processors, too."""


@dataclass(frozen=True, slots=True)
class StageRates:
    """Images per second of each stage, were it alone. None: unknown."""

    fetch: float | None = None
    decode: float | None = None
    predict: float | None = None
    total: float | None = None
    """Images per second of all together."""
    bottleneck: Stage | None = None
    """The stage for which more capacity brings most."""


def stage_rates(costs: StageCosts, capacity: Capacity) -> StageRates:
    """Estimates the speed of a run with a certain capacity.

    Fetching is taken to grow with the processors, as network bandwidth does with the size of a machine. GPUs work
    beside the processors, so that the slowest stage decides. Without GPUs, decoding and the network share the
    processors, and their times add up.
    """
    num_cpus = max(1, capacity.num_cpus)
    fetch = num_cpus / costs.measured_cpus / costs.fetch_s
    decode = num_cpus / costs.decode_cpu_s
    if costs.predict_s is None:
        return StageRates(fetch, decode)
    rates: dict[Stage, float]
    if capacity.num_gpus:
        predict = capacity.num_gpus / costs.predict_s
        rates = {"fetching": fetch, "decoding": decode, "predicting": predict}
        bottleneck = min(rates, key=rates.__getitem__)
        return StageRates(fetch, decode, predict, rates[bottleneck], bottleneck)
    predict = num_cpus / costs.measured_cpus / costs.predict_s
    both = 1 / (1 / decode + 1 / predict)
    if fetch < both:
        return StageRates(fetch, decode, predict, fetch, "fetching")
    return StageRates(fetch, decode, predict, both, "decoding" if decode < predict else "predicting")
