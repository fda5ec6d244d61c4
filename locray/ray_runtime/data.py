"""Features that Ray Data lacks publicly: whole blocks on GPUs, closing an execution, a pause between steps."""

import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

Block = TypeVar("Block")

_MAP_WHOLE_BLOCKS = ("map_batches_internal", "_map_batches_without_batch_size_validation")
"""Private names of `Dataset.map_batches` without its check of the batch size, the newest first."""

_PARKED_THREAD = "Prefetcher"
"""Private name of a thread that never ends if its execution was closed early; it makes no more calls to Ray."""

_THREADS_END_WITHIN_S = 10.0


def map_blocks(dataset: Any, fn: Any, *, max_rows_per_block: int, **options: Any) -> Any:
    """`Dataset.map_batches` over whole blocks, also with GPUs, for which the public call requires a batch size.

    If Ray lacks the private call, `fn` still gets blocks of `max_rows_per_block` rows one by one, but smaller blocks
    may be joined with others, and columns that one of them lacks filled with nulls.
    """
    for name in _MAP_WHOLE_BLOCKS:
        map_batches = getattr(dataset, name, None)
        if map_batches is not None:
            defaults = _missing_defaults(map_batches, dataset.map_batches)
            return map_batches(fn, **(defaults | options | {"batch_size": None, "zero_copy_batch": True}))
    batch_size = max_rows_per_block if options.get("num_gpus") else None
    return dataset.map_batches(fn, batch_size=batch_size, zero_copy_batch=True, **options)


def _missing_defaults(function: Callable[..., Any], public: Callable[..., Any]) -> dict[str, Any]:
    """The public function's defaults for arguments that have none in another one, as before Ray 2.58."""
    known = inspect.signature(public).parameters
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    return {name: known[name].default for name in required if name in known}


@contextmanager
def closing_execution(blocks: Generator[Block]) -> Iterator[Generator[Block]]:
    """Closes an execution of Ray Data with the block, and waits for its threads, which Ray Data does not.

    A thread that asks for its next block after Ray has been stopped would end this process, with exit code 1.
    If the parked thread has another name, this waits the whole `_THREADS_END_WITHIN_S` for it.
    """
    before = set(threading.enumerate())
    try:
        with closing(blocks):
            yield blocks
    except BaseException as error:
        # Ray Data's iterators end with their frames, which a traceback keeps alive.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        until = time.monotonic() + _THREADS_END_WITHIN_S
        for thread in set(threading.enumerate()) - before:
            if thread.name != _PARKED_THREAD and _runs_ray_data(thread):
                thread.join(max(0.0, until - time.monotonic()))


def _runs_ray_data(thread: threading.Thread) -> bool:
    """Whether one of the thread's frames is code of Ray Data."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("ray.data."):
            return True
        frame = frame.f_back
    return False


def pause_between_steps(pause_s: float) -> None:
    """Makes executions of Ray Data that start in this process sleep after each step of their loop.

    Ray 2.60's loop does not wait while no task is running, as when enough blocks are made: its thread then takes as
    much processor time as the training beside it. Without the private class it does.
    """
    try:
        from ray.data._internal.execution.execution_callback import ExecutionCallback
    except ImportError:
        return
    from ray.data import DataContext

    class Pause(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
            time.sleep(pause_s)

    DataContext.get_current().custom_execution_callback_classes = [Pause]
