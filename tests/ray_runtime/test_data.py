"""Executions of Ray Data: their threads end with them, and their loop pauses."""

import sys
import threading
import time
from collections.abc import Generator

import pyarrow as pa
import pytest

from locray.ray_runtime import data
from locray.ray_runtime.data import closing_execution, pause_between_steps

pytestmark = pytest.mark.slow

CALLBACK_MODULE = "ray.data._internal.execution.execution_callback"


def test_arguments_without_a_default_get_the_public_one() -> None:
    def public(fn: object, *, batch_size: int = 1, memory: float | None = None, fn_args: object = ()) -> None: ...

    def private(fn: object, *, batch_size: int, memory: float | None, concurrency: int = 3) -> None: ...

    assert data._missing_defaults(private, public) == {"batch_size": 1, "memory": None}
    assert data._missing_defaults(public, public) == {}


def test_an_interrupted_execution_ends_its_threads() -> None:
    from ray.data._internal.block_batching.util import iter_threaded

    def interrupted() -> Generator[pa.Table]:
        batches = iter_threaded(iter(range(9)), lambda items: items)
        for item in batches:
            yield item
            raise KeyboardInterrupt

    # The exception keeps its frames alive, and with them everything open there.
    with pytest.raises(KeyboardInterrupt) as held, closing_execution(interrupted()) as items:
        list(items)
    assert "iter_threaded" not in {thread.name for thread in threading.enumerate()}, held


@pytest.mark.parametrize(("name", "is_awaited"), [("Prefetcher", False), ("a name of the next version", True)])
def test_a_thread_that_never_ends_costs_time_at_most(
    name: str, is_awaited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_THREADS_END_WITHIN_S", 1.0)
    ended, code_of_ray_data = threading.Event(), {"__name__": "ray.data._internal.anything"}
    exec("def park(wait): wait()", code_of_ray_data)
    thread = threading.Thread(target=code_of_ray_data["park"], args=(ended.wait,), name=name)  # type: ignore[arg-type]
    before = time.monotonic()
    with closing_execution(item for item in [0]):
        thread.start()
    assert (time.monotonic() - before >= 1) is is_awaited
    ended.set()
    thread.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own defaults
def test_executions_pause_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    monkeypatch.setattr(context, "custom_execution_callback_classes", [])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, CALLBACK_MODULE, None)
        pause_between_steps(0.2)
    assert context.custom_execution_callback_classes == []
    pause_between_steps(0.2)
    (callback,) = context.custom_execution_callback_classes
    before = time.monotonic()
    callback().on_execution_step(None)  # type: ignore[arg-type]
    assert time.monotonic() - before >= 0.2
