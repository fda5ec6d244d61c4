"""The newest intact checkpoint is found; a killed writer leaves the previous one intact."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from locray import storage
from locray.training.checkpoints import CheckpointStore, Place


def state(value: int) -> dict[str, object]:
    return {"weights": torch.full((1000,), float(value)), "history": [{"epoch": 1.0}], "best": None}


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.s3)])
def store(request, tmp_path) -> CheckpointStore:
    if request.param == "folder":
        return CheckpointStore(str(tmp_path / "run"))
    return CheckpointStore(f"{request.getfixturevalue('s3_bucket').uri}/model/checkpoints/run")


def names(store: CheckpointStore) -> list[str]:
    return [uri.rsplit("/", 1)[-1] for uri in storage.list_uris(store.uri)]


def test_an_empty_store_has_no_checkpoint(store):
    latest = store.latest()
    assert (latest.place, latest.state, latest.damaged) == (Place(0, 0), None, ())


def test_the_newest_is_found_and_the_previous_one_kept(store):
    for place in (Place(0, 7), Place(1, 0), Place(2, 0), Place(2, 30), Place(10, 0)):
        store.save(place, state(place.epoch))
    latest = store.latest()
    assert latest.place == Place(10, 0)
    assert latest.state["weights"][0] == 10
    assert [name[:27] for name in names(store)] == ["epoch-000002-step-000000030", "epoch-000010-step-000000000"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:500] + b"x" + data[501:], lambda _: b""]
)
def test_a_damaged_one_is_named_and_the_previous_one_used(store, damage):
    for epoch in (1, 2, 3):
        store.save(Place(epoch, 0), state(epoch))
    newest = storage.list_uris(store.uri)[-1]
    storage.write_bytes(newest, damage(storage.read_bytes(newest)))
    latest = store.latest()
    assert (latest.place, latest.state["weights"][0], len(latest.damaged)) == (Place(2, 0), 2, 1)
    assert latest.damaged[0].startswith("epoch-000003")
    # The run continues: its next checkpoint replaces the damaged one.
    store.save(Place(3, 0), state(33))
    assert (store.latest().state["weights"][0], store.latest().damaged, len(names(store))) == (33, (), 2)


def test_if_all_are_damaged_they_are_named_and_there_is_no_state(store):
    store.save(Place(1, 0), state(1))
    storage.write_bytes(storage.list_uris(store.uri)[0], b"no checkpoint")
    latest = store.latest()
    assert (latest.place, latest.state, len(latest.damaged)) == (Place(0, 0), None, 1)


def test_other_files_are_left_alone(store):
    storage.write_bytes(storage.join(store.uri, "notes.txt"), b"mine")
    for epoch in (1, 2, 3):
        store.save(Place(epoch, 0), state(epoch))
    assert "notes.txt" in names(store)
    assert len(names(store)) == 3


SAVES_FOR_EVER = """
import itertools, sys, torch
from locray.training.checkpoints import CheckpointStore, Place
store = CheckpointStore(sys.argv[1])
for epoch in itertools.count(1):
    store.save(Place(epoch, 0), {"weights": torch.full((2_000_000,), float(epoch))})
    print(epoch, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_the_last_acknowledged_checkpoint(tmp_path: Path) -> None:
    for delay_s in (0.0, 0.005, 0.013, 0.021, 0.034):
        store = CheckpointStore(str(tmp_path / f"run{delay_s}"))
        command = [sys.executable, "-c", SAVES_FOR_EVER, store.uri]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(3)]
            time.sleep(delay_s)
            os.kill(writer.pid, signal.SIGKILL)
            told += [int(line) for line in writer.stdout if line.strip()]
        latest = store.latest()
        assert latest.place.epoch in {told[-1], told[-1] + 1}
        assert latest.state["weights"][0] == latest.place.epoch
        assert latest.damaged == ()
