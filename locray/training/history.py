"""`metrics.jsonl` beside an artifact: one line an epoch. Written by the loop, read by `run`."""

import json
from collections.abc import Sequence

from locray import storage

HISTORY_FILE = "metrics.jsonl"


def write_history(output_uri: str, history: Sequence[dict[str, float]]) -> None:
    """Writes the metrics of all epochs so far, a JSON object a line.

    Raises:
        StoreError: the output can't be written.
    """
    lines = [json.dumps({name: round(value, 6) for name, value in epoch.items()}) for epoch in history]
    storage.write_bytes(storage.join(output_uri, HISTORY_FILE), "".join(f"{line}\n" for line in lines).encode())


def read_history(output_uri: str) -> list[dict[str, float]]:
    """The metrics of all epochs so far; none where no epoch has ended.

    Raises:
        StoreError: the output can't be read.
    """
    uri = storage.join(output_uri, HISTORY_FILE)
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()]
