"""The graph on Ray Data: units -> fetch and decode -> predict -> rows on the driver. Called by the runs.

A block is a unit and a task is a unit: results arrive unit by unit, and a lost node costs its units one more run.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from locray import cluster
from locray.labelling.fetch_decode import DecodeSettings, FetchDecode
from locray.labelling.predictor import Predictor, PredictorSettings
from locray.labelling.worklist import Worklist, num_units

UNITS_A_WAVE = 8192
"""Units of one Ray Data execution: between two, the driver's memory is what it was."""

_UNIT = "id"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What to run over a worklist, and how."""

    decode: DecodeSettings
    predict: PredictorSettings
    num_predictors: int | None
    verbose: bool = False

    def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
        """Predicted rows (`schema.PREDICTED_SCHEMA`) of all units, in whatever order they are done."""
        cluster.start_ray(verbose=self.verbose)
        layout = _Layout.for_cluster(self.num_predictors)
        total = num_units(worklist)
        for first_unit in range(0, total, UNITS_A_WAVE):
            units = min(UNITS_A_WAVE, total - first_unit)
            yield from self._wave(worklist, first_unit, units, layout)

    def _wave(self, worklist: Worklist, first_unit: int, wave_units: int, layout: "_Layout") -> Iterator[pa.Table]:
        import ray

        fetch_decode = FetchDecode(worklist, self.decode)

        def decode_unit(block: dict[str, Any]) -> pa.Table:
            return fetch_decode(first_unit + int(block[_UNIT][0]))

        units = ray.data.range(wave_units, override_num_blocks=wave_units)
        decoded = units.map_batches(decode_unit, batch_size=None, num_cpus=1)
        predicted = decoded.map_batches(
            Predictor,
            fn_constructor_args=(self.predict, layout.threads_a_predictor),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=layout.cpus_a_predictor,
            num_gpus=layout.gpus_a_predictor,
            compute=ray.data.ActorPoolStrategy(size=min(layout.num_predictors, wave_units)),
        )
        yield from predicted.iter_batches(batch_size=None, batch_format="pyarrow")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Who gets which part of the machine."""

    num_predictors: int
    cpus_a_predictor: int
    gpus_a_predictor: int
    threads_a_predictor: int | None

    @classmethod
    def for_cluster(cls, num_predictors: int | None) -> "_Layout":
        """One predictor a GPU; without GPUs one a node, which takes no CPU slot: decoding needs them."""
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = int(resources.get("GPU", 0))
        if num_gpus:
            return cls(min(num_predictors or num_gpus, num_gpus), 1, 1, None)
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        num_nodes = sum(node["Alive"] for node in nodes)
        count = num_predictors or num_nodes
        threads = max(1, len(os.sched_getaffinity(0)) * num_nodes // count)
        return cls(count, 0, 0, threads)
