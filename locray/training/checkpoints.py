"""The checkpoints of a run, on a disk or in a bucket. Each is one file, with the hash of its content in its name.

Ray Train has checkpoints, too, but can't resume a run whose newest one is damaged, or whose list of checkpoints was
truncated (docs/decisions/training.md). Here each file is written atomically and can be used on its own.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from locray import storage
from locray.progress import Progress

_HASH_DIGITS = 16
_NAME = re.compile(r"epoch-(\d+)-step-(\d+)-([0-9a-f]{16})\.pt$")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Progress of a run: finished epochs, and finished steps of the next one."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest intact checkpoint.

    Attributes:
        place: Where to resume.
        state: None if there is no intact checkpoint.
        damaged: Names of newer checkpoints, which are damaged.
    """

    place: Place
    state: dict[str, Any] | None
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one run below a URI."""

    uri: str

    def save(self, place: Place, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes all others but the previous one.

        Args:
            place: Progress of the run.
            state: Tensors and plain values.

        Raises:
            StoreError: the store can't be written to.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        name = f"epoch-{place.epoch:06d}-step-{place.step:09d}-{hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]}.pt"
        storage.write_bytes(storage.join(self.uri, name), data)
        others = [uri for uri in self._uris() if not uri.endswith(f"/{name}")]
        earlier = [uri for uri in others if _place(uri) < place]
        storage.delete(uri for uri in others if uri != next(reversed(earlier), None))

    def latest(self) -> Latest:
        """Reads the newest checkpoint whose content has the hash of its name.

        Raises:
            StoreError: the store can't be read.
        """
        damaged: list[str] = []
        for uri in reversed(self._uris()):
            data = storage.read_bytes(uri)
            if hashlib.sha256(data).hexdigest().startswith(_parts(uri)[3]):
                state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                return Latest(_place(uri), state, tuple(damaged))
            damaged.append(uri.rsplit("/", 1)[-1])
        return Latest(Place(0, 0), None, tuple(damaged))

    def _uris(self) -> list[str]:
        """Checkpoints by progress, the newest last."""
        return sorted((uri for uri in storage.list_uris(self.uri) if _NAME.search(uri)), key=_place)


def _place(uri: str) -> Place:
    _, epoch, step, _ = _parts(uri)
    return Place(int(epoch), int(step))


def _parts(uri: str) -> tuple[str, str, str, str]:
    """Name, epoch, step, hash."""
    found = _NAME.search(uri)
    assert found is not None, uri
    return found[0], found[1], found[2], found[3]


def report_damaged(latest: Latest, report: Callable[[Progress], object], known: Sequence[str] = ()) -> None:
    """Reports the checkpoints that are damaged, except for those that are `known`."""
    for name in latest.damaged:
        if name not in known:
            resumed = f"resuming from epoch {latest.place.epoch}" if latest.state else "starting again"
            report(Progress(f"the checkpoint {name} is damaged: {resumed}"))
