"""Metrics of a run by epoch: `metrics.jsonl` and TensorBoard event files."""

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
"""Values of an epoch that are not metrics, but describe how it was computed."""

Epoch = dict[str, float]


def best_of(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest score; the first one of a tie."""
    return max(history, key=lambda epoch: epoch[SCORE])


def is_over(history: Sequence[Epoch], epochs: int, patience: int | None) -> bool:
    """Whether a run is over: all epochs are done, or the last `patience` of them were no better."""
    if len(history) >= epochs:
        return True
    return bool(patience and history and len(history) - best_of(history)["epoch"] >= patience)


def write_history(output_uri: str, history: Sequence[Epoch]) -> None:
    """Writes the metrics of all epochs so far, one JSON object per line, and the last epoch's as TensorBoard events.

    Raises:
        StoreError: the output can't be written.
    """
    storage.write_bytes(storage.join(output_uri, HISTORY_FILE), _lines(history))
    storage.write_bytes(_events_uri(output_uri, history[-1]), _events(history[-1]))


def repair_history(output_uri: str, history: Sequence[Epoch]) -> None:
    """Rewrites missing or different files, after an interruption or another run with the same output.

    Raises:
        StoreError: the output can't be written.
    """
    uri, lines = storage.join(output_uri, HISTORY_FILE), _lines(history)
    unchanged = storage.exists(uri) and storage.read_bytes(uri) == lines
    existing = set(storage.list_uris(storage.join(output_uri, EVENTS_FOLDER)))
    events = {_events_uri(output_uri, epoch): epoch for epoch in history}
    for events_uri, epoch in events.items():
        if not unchanged or events_uri not in existing:
            storage.write_bytes(events_uri, _events(epoch))
    storage.delete(sorted(existing - events.keys()))
    if not unchanged:
        storage.write_bytes(uri, lines)


def read_history(output_uri: str) -> list[Epoch]:
    """Metrics of all finished epochs.

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
    # One file per epoch: objects can't be appended to, and TensorBoard reads files in the order of their names.
    return storage.join(output_uri, EVENTS_FOLDER, f"events.out.tfevents.{int(epoch['epoch']):010d}.locray")


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) and abs(value) >= 1 else float(f"{value:.6g}")


def _events(epoch: Epoch) -> bytes:
    """Scalars of one epoch as a TensorBoard event file."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    with tempfile.TemporaryDirectory() as folder:
        writer = EventsWriter(f"{folder}/events")
        for name, value in epoch.items():
            writer.write_event(Event(step=int(epoch["epoch"]), summary=scalar(name, value)))
        writer.close()
        return b"".join(file.read_bytes() for file in Path(folder).iterdir())
