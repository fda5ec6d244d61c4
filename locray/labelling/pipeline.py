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
from locray.errors import LocrayError, StoreError, UsageError, WorkersFailedError
from locray.inference.packages import NO_PACKAGES
from locray.labelling.fetch_decode import MAX_CRASHES, FetchDecode, defer_decoded
from locray.labelling.input_check import InputCheck
from locray.labelling.layout import DECODER_CPUS, Layout
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import Worklist, num_units
from locray.ray_runtime.connection import is_attached
from locray.ray_runtime.crashes import CrashCounter
from locray.ray_runtime.data import closing_execution, map_blocks
from locray.ray_runtime.logs import log_to_worker_file
from locray.ray_runtime.node_check import check_nodes
from locray.ray_runtime.nodes import (
    alive_nodes,
    call_on_gpu,
    cpus_of_this_node,
    free_resources,
    gpus_of_this_node,
    max_gpus,
)
from locray.ray_runtime.start import start_ray
from locray.sources import Source

_log = logging.getLogger(__name__)

UNITS_PER_WAVE = 8192
"""Units per execution of Ray Data, whose memory on the driver grows with them."""

_DECODER_NICENESS = 10
"""Its effect is in docs/decisions/inference.md."""

_PROBE_TIMEOUT_S = 60.0

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

    def check(self, source: Source) -> None:
        """Checks what the nodes reach, that the model workers asked for can be placed, and that a GPU works.

        Returns at once where Ray is still to be started on this machine, unless GPUs are asked for.

        Raises:
            UsageError: they can't, a node lacks locray, credentials or files, or with `--device gpu` the GPU fails.
        """
        check_nodes(InputCheck(source, self.model.uri), verbose=self.model.options.verbose)
        device = self.model.options.device
        if not is_attached() and device != "gpu":
            return
        self.start()
        layout = self._layout()
        waits_for = layout.waits_for(alive_nodes(), free_resources())
        if waits_for is not None:
            _log.warning("labelling starts when %s", waits_for)
        if not layout.gpus_per_predictor or waits_for is not None:
            return
        probed = call_on_gpu(_find_gpu_problem, _PROBE_TIMEOUT_S)
        node, problem = probed or ("", None)
        if problem is not None and device == "gpu":
            raise UsageError(gpu_message(node, problem))

    def _layout(self) -> Layout:
        return Layout.for_cluster(self.model.options, alive_nodes(), max_gpus(), can_grow=is_attached())

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

        layout = self._layout()
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

    def _wave(self, worklist: Worklist, wave: range, layout: Layout, crash_counter: CrashCounter) -> Iterator[pa.Table]:
        """One execution of Ray Data, over some of the units."""
        import ray

        fetch_decode = FetchDecode(worklist, self.model)

        def decode_unit(block: dict[str, Any]) -> pa.Table:
            log_to_worker_file()
            _lower_priority()
            unit = int(block[_UNIT][0])
            with crash_counter.task_attempt(f"decode unit {unit}") as crashes:
                try:
                    return fetch_decode(unit, crashes)
                except LocrayError as error:
                    return _error_block(error)

        num_min, num_max = layout.pool_sizes(len(wave))
        # Not `range`, whose tasks take a whole CPU slot and so never start beside a model worker on a node with one.
        units = ray.data.from_items([{_UNIT: unit} for unit in wave], override_num_blocks=len(wave))
        decoded = units.map_batches(decode_unit, batch_size=None, num_cpus=DECODER_CPUS)
        predicted = map_blocks(
            decoded,
            _PredictStage,
            max_rows_per_block=worklist.unit_size,
            fn_constructor_args=(self.model, layout, crash_counter),
            batch_format="pyarrow",
            scheduling_strategy="SPREAD",
            compute=ray.data.ActorPoolStrategy(min_size=num_min, max_size=num_max),
            **layout.resources(),
        )
        blocks = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
        with closing_execution(cast("Generator[pa.Table]", iter(blocks))) as tables:
            for rows in tables:
                if _ERROR in rows.column_names:
                    raise pickle.loads(rows[_ERROR][0].as_py())  # noqa: S301 (from our own worker)
                if layout.gpus_per_predictor:
                    crash_counter.log_warnings()
                yield rows


@functools.cache
def _lower_priority() -> None:
    """Lets the model worker go first; decoders catch up while it waits for them. For the rest of this process.

    Threads of a network wait for each other after every layer: a core taken from one of them is taken from all.
    """
    os.nice(_DECODER_NICENESS)


class _PredictStage:
    """A model worker. Errors, its own and those of the stage before, become blocks for the driver to raise."""

    def __init__(self, model: ModelSpec, layout: Layout, crash_counter: CrashCounter) -> None:
        log_to_worker_file()
        self._crash_counter = crash_counter
        try:
            with _exit_on_gpu_errors():
                self._label: Callable[[pa.Table], pa.Table] = self._load(model, layout)
        except LocrayError as error:
            block = _error_block(error)
            self._label = lambda _: block

    def _load(self, model: ModelSpec, layout: Layout) -> Callable[[pa.Table], pa.Table]:
        import ray

        # The actor's id stays the same when Ray restarts it.
        with self._crash_counter.attempt(f"load model {ray.get_runtime_context().get_actor_id()}") as crashes:
            if crashes >= MAX_CRASHES:
                raise WorkersFailedError(
                    f"{crashes} processes died while they loaded the model: too little memory for it, or a crash of "
                    "its libraries. Their last messages are in Ray's log folder (`worker-*.err`)"
                )
            num_threads = self._num_threads(model, layout)
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

    def _num_threads(self, model: ModelSpec, layout: Layout) -> int | None:
        """Threads of the network on this node's processors; None on a GPU.

        Raises:
            UsageError: with `--device gpu`, this worker's GPU doesn't work.
        """
        per_node = layout.predictors_per_node
        if layout.gpus_per_predictor:
            problem = _find_gpu_problem()
            if problem is None:
                return None
            message = gpu_message(os.uname().nodename, problem)
            if model.options.device == "gpu":
                raise UsageError(message)
            self._crash_counter.warn(f"{message}. Its processors are used instead")
            per_node = gpus_of_this_node() * model.options.predictors_per_gpu
        return max(1, cpus_of_this_node() // per_node)

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


def _find_gpu_problem() -> str | None:
    # Imported here, since the driver needs no torch.
    from locray.inference.devices import find_gpu_problem

    return find_gpu_problem()


def gpu_message(node: str, problem: str) -> str:
    """What to tell of a GPU that Ray has and PyTorch can't use."""
    return f"Ray has a GPU on the node {node}, but PyTorch can't use it: {problem} (`nvidia-smi` there shows more)"


def _error_block(error: LocrayError) -> pa.Table:
    return pa.table({_ERROR: [pickle.dumps(error)]})
