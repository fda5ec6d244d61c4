"""The checkpoints of a run, on a disk or in a bucket: whole or not there, proved by their hash. Called by the loop.

Ray Train keeps checkpoints, too, but a run whose newest one is damaged, or whose list of checkpoints was cut off while
it was written, can't be taken up again at all (docs/decisions/training.md). So each checkpoint here is one file,
written atomically, with place and hash in its name: nothing else has to be right for it to be used.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Any

import torch

from locray import storage

_HASH_DIGITS = 16
_NAME = re.compile(r"epoch-(\d+)-step-(\d+)-([0-9a-f]{16})\.pt$")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """How far a run is: whole epochs, and steps of the next one."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Latest:
    """Where to go on, and with what; no state where there is none that is whole. `damaged` names the newer ones."""

    place: Place
    state: dict[str, Any] | None
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one run. Small: workers carry it."""

    uri: str

    def save(self, place: Place, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes all others but the one before it.

        Args:
            place: where the run is.
            state: tensors and plain values.

        Raises:
            StoreError: the store can't be written to.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        name = f"epoch-{place.epoch:06d}-step-{place.step:09d}-{hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]}.pt"
        storage.write_bytes(storage.join(self.uri, name), data)
        others = [uri for uri in self._uris() if not uri.endswith(f"/{name}")]
        before = [uri for uri in others if _place(uri) < place]
        storage.delete(uri for uri in others if uri != next(reversed(before), None))

    def latest(self) -> Latest:
        """The newest checkpoint whose content has the hash of its name.

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
        """Checkpoints by how far the run was, the newest last."""
        return sorted((uri for uri in storage.list_uris(self.uri) if _NAME.search(uri)), key=_place)


def _place(uri: str) -> Place:
    _, epoch, step, _ = _parts(uri)
    return Place(int(epoch), int(step))


def _parts(uri: str) -> tuple[str, str, str, str]:
    """The whole name, epoch, step, hash."""
    found = _NAME.search(uri)
    assert found is not None, uri
    return found[0], found[1], found[2], found[3]
