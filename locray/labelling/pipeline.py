"""The stages on Ray Data: units -> fetch and decode -> predict -> rows on the driver.

A task works on one unit and returns one block: results arrive unit by unit, and a lost node costs its units one more
attempt.
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
from locray.config import InferenceOptions
from locray.errors import LocrayError, StoreError, WorkersFailedError
from locray.inference.packages import NO_PACKAGES
from locray.labelling.fetch_decode import MAX_CRASHES, FetchDecode, defer_decoded
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import Worklist, num_units
from locray.ray_runtime.crashes import CrashCounter
from locray.ray_runtime.data import closing_execution, map_blocks
from locray.ray_runtime.logs import log_to_worker_file
from locray.ray_runtime.start import check_gpus, start_ray

_log = logging.getLogger(__name__)

UNITS_PER_WAVE = 8192
"""Units per execution of Ray Data, whose memory on the driver grows with them."""

_DECODER_NICENESS = 10
"""Its effect is in docs/decisions/inference.md."""

_UNIT = "id"
_ERROR = "locray_error"
"""The only column of a block that carries an error to the driver."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Labels the images of worklists with a model."""

    model: ModelSpec
    units_per_wave: int = UNITS_PER_WAVE

    def start(self) -> None:
        """Starts Ray, or attaches to it, ahead of `rows`, so that it gets ready in the meantime."""
        start_ray(verbose=self.model.options.verbose)

    def rows(self, worklist: Worklist) -> Generator[pa.Table]:
        """Yields the predicted rows of each unit (`schema.PREDICTED_SCHEMA`), in the order in which they are done.

        Close it if it is not read to its end: otherwise the execution would still be running when Ray stops.

        Raises:
            LocrayError: raised in a worker.
            StoreError: Ray's object store on a node is full, and so is the disk that it spills to.
            WorkersFailedError: every process that loads the model dies.
        """
        self.start()
        from ray.exceptions import OutOfDiskError

        layout = _Layout.for_cluster(self.model.options)
        crash_counter = CrashCounter()
        total = num_units(worklist)
        try:
            for first_unit in range(0, total, self.units_per_wave):
                wave = range(first_unit, min(first_unit + self.units_per_wave, total))
                yield from self._wave(worklist, wave, layout, crash_counter)
        except OutOfDiskError as error:
            raise StoreError(
                "no space is left on a node of the cluster, neither in Ray's object store nor on the disk that it "
                "spills to. Free some there (`ray memory` shows what it holds), or start Ray with "
                "--object-spilling-directory on a larger disk"
            ) from error

    def _wave(
        self, worklist: Worklist, wave: range, layout: "_Layout", crash_counter: CrashCounter
    ) -> Iterator[pa.Table]:
        """One execution of Ray Data, over some of the units."""
        import ray

        fetch_decode = FetchDecode(worklist, self.model)

        def decode_unit(block: dict[str, Any]) -> pa.Table:
            log_to_worker_file()
            _lower_priority()
            unit = wave[int(block[_UNIT][0])]
            with crash_counter.task_attempt(f"decode unit {unit}") as crashes:
                try:
                    return fetch_decode(unit, crashes)
                except LocrayError as error:
                    return _error_block(error)

        units = ray.data.range(len(wave), override_num_blocks=len(wave))
        decoded = units.map_batches(decode_unit, batch_size=None, num_cpus=1)
        predicted = map_blocks(
            decoded,
            _PredictStage,
            max_rows_per_block=worklist.unit_size,
            fn_constructor_args=(self.model, layout.threads_per_predictor, crash_counter),
            batch_format="pyarrow",
            num_cpus=layout.cpus_per_predictor,
            num_gpus=layout.gpus_per_predictor,
            compute=ray.data.ActorPoolStrategy(size=min(layout.num_predictors, len(wave))),
        )
        blocks = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
        with closing_execution(cast("Generator[pa.Table]", iter(blocks))) as tables:
            for rows in tables:
                if _ERROR in rows.column_names:
                    raise pickle.loads(rows[_ERROR][0].as_py())  # noqa: S301 (from our own worker)
                yield rows


@functools.cache
def _lower_priority() -> None:
    """Lets the model worker go first; decoders catch up while it waits for them. For the rest of this process.

    Threads of a network wait for each other after every layer: a core taken from one of them is taken from all.
    """
    os.nice(_DECODER_NICENESS)


class _PredictStage:
    """A model worker. Errors, its own and those of the stage before, become blocks for the driver to raise."""

    def __init__(self, model: ModelSpec, num_threads: int | None, crash_counter: CrashCounter) -> None:
        log_to_worker_file()
        self._crash_counter = crash_counter
        try:
            with _exit_on_gpu_errors():
                self._label: Callable[[pa.Table], pa.Table] = self._load(model, num_threads)
        except LocrayError as error:
            block = _error_block(error)
            self._label = lambda _: block

    def _load(self, model: ModelSpec, num_threads: int | None) -> Callable[[pa.Table], pa.Table]:
        import ray

        # The actor's id stays the same when Ray restarts it.
        with self._crash_counter.attempt(f"load model {ray.get_runtime_context().get_actor_id()}") as crashes:
            if crashes >= MAX_CRASHES:
                raise WorkersFailedError(
                    f"{crashes} processes died while they loaded the model: too little memory for it, or a crash of "
                    "its libraries. Their last messages are in Ray's log folder (`worker-*.err`)"
                )
            if num_threads is not None:
                # Let waiting threads of a network sleep. By default they spin, on the cores that decoders need.
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            # Imported here, since the driver needs no torch.
            from locray.labelling.predictor import Predictor

            if crashes:  # compiled code that crashes on this machine does so when it is loaded and tried
                model = replace(model, packages=NO_PACKAGES)
            predictor = Predictor(model, num_threads)
        _log.info("loaded the model %s on %s", model.uri, predictor.device)
        return predictor

    def __call__(self, decoded: pa.Table) -> pa.Table:
        if _ERROR in decoded.column_names:
            return decoded.select([_ERROR]).filter(decoded[_ERROR].is_valid()).slice(0, 1)
        unit = f"predict unit from {decoded[schema.ORDINAL][0].as_py()}"
        with self._crash_counter.attempt(unit) as crashes, _exit_on_gpu_errors():
            return self._label(defer_decoded(decoded, crashes) if crashes >= MAX_CRASHES else decoded)


@contextmanager
def _exit_on_gpu_errors() -> Iterator[None]:
    """Ends the process if its GPU has failed or is out of memory; Ray retries its work in another one."""
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


def _error_block(error: LocrayError) -> pa.Table:
    return pa.table({_ERROR: [pickle.dumps(error)]})


@dataclass(frozen=True, slots=True)
class _Layout:
    """Division of the cluster between the stages."""

    num_predictors: int
    cpus_per_predictor: int
    gpus_per_predictor: int
    threads_per_predictor: int | None

    @classmethod
    def for_cluster(cls, options: InferenceOptions) -> "_Layout":
        """One predictor per GPU; without GPUs one per node, without a CPU slot, since decoding needs them.

        With `--device gpu` and no GPU yet, one predictor unless `--predictors` says otherwise.
        """
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = int(resources.get("GPU", 0))
        check_gpus(options.device, num_gpus)
        if options.device == "gpu":
            return cls(options.predictors or max(1, num_gpus), 1, 1, None)
        if options.device == "auto" and num_gpus:
            return cls(min(options.predictors or num_gpus, num_gpus), 1, 1, None)
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        num_nodes = sum(node["Alive"] for node in nodes)
        num_predictors = options.predictors or num_nodes
        threads = max(1, len(os.sched_getaffinity(0)) * num_nodes // num_predictors)
        return cls(num_predictors, 0, 0, threads)
