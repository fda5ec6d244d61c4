"""How a run went, epoch by epoch: `metrics.jsonl` and TensorBoard's event files. Written by workers and by `run`."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from locray import storage
from locray.training.metrics import SCORE

HISTORY_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
WORKERS, PRECISION_BITS = "workers", "precision_bits"
SETTINGS = {WORKERS, PRECISION_BITS}
"""Of an epoch: no metrics, but how it was made."""

Epoch = dict[str, float]


def best_of(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest score; the first of equal ones."""
    return max(history, key=lambda epoch: epoch[SCORE])


def is_over(history: Sequence[Epoch], epochs: int, patience: int | None) -> bool:
    """Whether a run needs no further epoch: all are done, or `patience` of them have brought nothing better."""
    if len(history) >= epochs:
        return True
    return bool(patience and history and len(history) - best_of(history)["epoch"] >= patience)


def write_history(output_uri: str, history: Sequence[Epoch]) -> None:
    """Writes the metrics of all epochs so far, a JSON object a line, and the last epoch's as TensorBoard's events.

    Raises:
        StoreError: the output can't be written.
    """
    storage.write_bytes(storage.join(output_uri, HISTORY_FILE), _lines(history))
    storage.write_bytes(_events_uri(output_uri, history[-1]), _events(history[-1]))


def settle_history(output_uri: str, history: Sequence[Epoch]) -> None:
    """Makes the files those of this run, whatever one that was cut off, or another one, has left in their place.

    Raises:
        StoreError: the output can't be written.
    """
    uri, lines = storage.join(output_uri, HISTORY_FILE), _lines(history)
    is_there = storage.exists(uri) and storage.read_bytes(uri) == lines
    here = set(storage.list_uris(storage.join(output_uri, EVENTS_FOLDER)))
    events = {_events_uri(output_uri, epoch): epoch for epoch in history}
    for events_uri, epoch in events.items():
        if not is_there or events_uri not in here:
            storage.write_bytes(events_uri, _events(epoch))
    storage.delete(sorted(here - events.keys()))
    if not is_there:
        storage.write_bytes(uri, lines)


def read_history(output_uri: str) -> list[Epoch]:
    """The metrics of all epochs so far; none where no epoch has ended.

    Raises:
        StoreError: the output can't be read.
    """
    uri = storage.join(output_uri, HISTORY_FILE)
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()]


def _lines(history: Sequence[Epoch]) -> bytes:
    lines = [json.dumps({name: _plain(value) for name, value in epoch.items()}) for epoch in history]
    return "".join(f"{line}\n" for line in lines).encode()


def _events_uri(output_uri: str, epoch: Epoch) -> str:
    # A file an epoch: an object can't be appended to, and TensorBoard reads files one after the other by name.
    return storage.join(output_uri, EVENTS_FOLDER, f"events.out.tfevents.{int(epoch['epoch']):010d}.locray")


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) and abs(value) >= 1 else float(f"{value:.6g}")


def _events(epoch: Epoch) -> bytes:
    """One epoch's scalars as a TensorBoard event file."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    with tempfile.TemporaryDirectory() as folder:
        writer = EventsWriter(f"{folder}/events")
        for name, value in epoch.items():
            writer.write_event(Event(step=int(epoch["epoch"]), summary=scalar(name, value)))
        writer.close()
        return b"".join(file.read_bytes() for file in Path(folder).iterdir())
