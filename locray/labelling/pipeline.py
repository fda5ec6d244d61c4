"""The graph on Ray Data: units -> fetch and decode -> predict -> rows on the driver. Called by the runs.

A block is a unit and a task is a unit: results arrive unit by unit, and a lost node costs its units one more run.
"""

import functools
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa

from locray import schema
from locray.errors import LocrayError, StoreError, WorkersFailedError
from locray.inference.packages import NO_PACKAGES
from locray.labelling.crashes import MAX_CRASHES, defer_unit
from locray.labelling.fetch_decode import DecodeSettings, FetchDecode
from locray.labelling.identity import PredictorSettings
from locray.labelling.worklist import Worklist, num_units
from locray.ray_runtime.crashes import CrashCounter
from locray.ray_runtime.data import closing_execution, map_blocks
from locray.ray_runtime.logs import log_to_worker_file
from locray.ray_runtime.start import check_gpus, start_ray

_log = logging.getLogger(__name__)

UNITS_PER_WAVE = 8192
"""Units of one Ray Data execution: between two, the memory of the driver is what it was."""

_NICENESS = 10
"""Of what fetches and decodes: see docs/decisions/inference.md for what it brings."""

_UNIT = "id"
_ERROR = "locray_error"
"""The only column of a block that stands for a unit, or for all of a worker's, that can't be labelled."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What to run over a worklist, and how."""

    decode: DecodeSettings
    predict: PredictorSettings
    num_predictors: int | None
    verbose: bool = False
    units_per_wave: int = UNITS_PER_WAVE

    def start(self) -> None:
        """Starts Ray, or connects to it, ahead of `rows`: it gets ready while the driver does something else."""
        start_ray(verbose=self.verbose)

    def rows(self, worklist: Worklist) -> Generator[pa.Table]:
        """Predicted rows (`schema.PREDICTED_SCHEMA`) of all units, in whatever order they are done.

        To be closed where it isn't read to its end: Ray Data goes on otherwise, and meets the end of Ray at that of
        the process.

        Raises:
            LocrayError: what a worker met, as if it had been met here.
            StoreError: a node's memory for blocks is full, and so is the disk that Ray spills them to.
            WorkersFailedError: no process outlives the loading of the model.
        """
        self.start()
        from ray.exceptions import OutOfDiskError

        layout = _Layout.for_cluster(self.num_predictors, self.predict)
        crash_counter = CrashCounter()
        total = num_units(worklist)
        try:
            for first_unit in range(0, total, self.units_per_wave):
                units = min(self.units_per_wave, total - first_unit)
                yield from self._wave(worklist, first_unit, units, layout, crash_counter)
        except OutOfDiskError as error:
            raise StoreError(
                "no space is left on a node of the cluster, neither in Ray's object store nor on the disk that it "
                "spills to. Free some there (`ray memory` shows who holds what), or start Ray with "
                "--object-spilling-directory on a larger disk"
            ) from error

    def _wave(
        self, worklist: Worklist, first_unit: int, wave_units: int, layout: "_Layout", crash_counter: CrashCounter
    ) -> Iterator[pa.Table]:
        import ray

        fetch_decode = FetchDecode(worklist, self.decode.for_run(worklist.num_images, layout.num_cpus))

        def decode_unit(block: dict[str, Any]) -> pa.Table:
            log_to_worker_file()
            _lower_priority()
            unit = first_unit + int(block[_UNIT][0])
            with crash_counter.task_attempt(f"decode unit {unit}") as crashes:
                try:
                    return fetch_decode(unit, crashes)
                except LocrayError as error:
                    return _block_of(error)

        units = ray.data.range(wave_units, override_num_blocks=wave_units)
        decoded = units.map_batches(decode_unit, batch_size=None, num_cpus=1)
        predicted = map_blocks(
            decoded,
            _PredictStage,
            max_rows_per_block=worklist.unit_size,
            fn_constructor_args=(self.predict, layout.threads_per_predictor, crash_counter),
            batch_format="pyarrow",
            num_cpus=layout.cpus_per_predictor,
            num_gpus=layout.gpus_per_predictor,
            compute=ray.data.ActorPoolStrategy(size=min(layout.num_predictors, wave_units)),
        )
        blocks = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
        with closing_execution(cast("Generator[pa.Table]", iter(blocks))) as tables:
            for rows in tables:
                if _ERROR in rows.column_names:
                    raise pickle.loads(rows[_ERROR][0].as_py())  # noqa: S301 (from our own worker)
                yield rows


@functools.cache
def _lower_priority() -> None:
    """Lets the model worker go first, in this process from now on; decoders catch up while it waits for them.

    Threads of a network wait for each other after every layer: a core taken from one of them is taken from all.
    """
    os.nice(_NICENESS)


class _PredictStage:
    """A model worker. What stops it, or stopped the stage before it, goes on to the driver as a block."""

    def __init__(self, settings: PredictorSettings, num_threads: int | None, crash_counter: CrashCounter) -> None:
        log_to_worker_file()
        self._crash_counter = crash_counter
        try:
            with _ending_with_the_gpu():
                self._label: Callable[[pa.Table], pa.Table] = self._load(settings, num_threads)
        except LocrayError as error:
            block = _block_of(error)
            self._label = lambda _: block

    def _load(self, settings: PredictorSettings, num_threads: int | None) -> Callable[[pa.Table], pa.Table]:
        import ray

        # The actor's id stays when Ray restarts it.
        with self._crash_counter.attempt(f"load model {ray.get_runtime_context().get_actor_id()}") as crashes:
            if crashes >= MAX_CRASHES:
                raise WorkersFailedError(
                    f"{crashes} processes died over loading the model: too little memory for it, or a crash of its "
                    "libraries. Ray's log folder holds what they said last (`worker-*.err`)"
                )
            if num_threads is not None:
                # Waiting threads of a network sleep. By default they spin, on the cores that decoders need.
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            # Here, as the driver has no use for torch.
            from locray.labelling.predictor import Predictor

            if crashes:  # compiled code that crashes the process here does so when it is loaded and tried
                settings = replace(settings, packages=NO_PACKAGES)
            predictor = Predictor(settings, num_threads)
        _log.info("loaded the model %s on %s", settings.model_uri, predictor.device)
        return predictor

    def __call__(self, decoded: pa.Table) -> pa.Table:
        if _ERROR in decoded.column_names:
            return decoded.select([_ERROR]).filter(decoded[_ERROR].is_valid()).slice(0, 1)
        unit = f"predict unit from {decoded[schema.ORDINAL][0].as_py()}"
        with self._crash_counter.attempt(unit) as crashes, _ending_with_the_gpu():
            return self._label(defer_unit(decoded, crashes) if crashes >= MAX_CRASHES else decoded)


@contextmanager
def _ending_with_the_gpu() -> Iterator[None]:
    """Ends the process where its GPU has failed or has no room: what it was to do is begun again in another one."""
    try:
        yield
    except LocrayError:
        raise
    except Exception as error:
        from locray.inference.cuda import GPU_ERRORS

        if isinstance(error, GPU_ERRORS):
            traceback.print_exc()
            os._exit(1)
        raise


def _block_of(error: LocrayError) -> pa.Table:
    return pa.table({_ERROR: [pickle.dumps(error)]})


@dataclass(frozen=True, slots=True)
class _Layout:
    """Who gets which part of the machine."""

    num_cpus: int
    num_predictors: int
    cpus_per_predictor: int
    gpus_per_predictor: int
    threads_per_predictor: int | None

    @classmethod
    def for_cluster(cls, num_predictors: int | None, predict: PredictorSettings) -> "_Layout":
        """One predictor a GPU; without GPUs one a node, which takes no CPU slot: decoding needs them.

        Of GPUs that are still to come there is one, unless it is said how many.
        """
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_cpus, num_gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        device = predict.device
        check_gpus(device, num_gpus)
        if device == "gpu":
            return cls(num_cpus, num_predictors or max(1, num_gpus), 1, 1, None)
        if device == "auto" and num_gpus:
            return cls(num_cpus, min(num_predictors or num_gpus, num_gpus), 1, 1, None)
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        num_nodes = sum(node["Alive"] for node in nodes)
        count = num_predictors or num_nodes
        threads = max(1, len(os.sched_getaffinity(0)) * num_nodes // count)
        return cls(num_cpus, count, 0, 0, threads)
