"""Metrics of a run can be read back, also from TensorBoard's event files."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from locray.training.history import best_of, is_over, read_history, repair_history, write_history


def epoch(number, score=0.5):
    return {"epoch": float(number), "loss": 1.0 / number, "score": score, "images_per_s": 123.456789}


def events(data: bytes) -> list[Event]:
    """Returns the events of a file. Its records are length, checksum, data, checksum."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return found


def test_epochs_are_read_back(tmp_path):
    history = [epoch(1), epoch(2), epoch(3)]
    for count in (1, 2, 3):
        write_history(str(tmp_path), history[:count])
    found = read_history(str(tmp_path))
    assert [one["epoch"] for one in found] == [1, 2, 3]
    assert found[2]["loss"] == pytest.approx(1 / 3, rel=1e-5)
    assert read_history(str(tmp_path / "absent")) == []


def test_tensorboard_finds_each_epoch_once_and_in_order(tmp_path):
    history = [epoch(1), epoch(2)]
    write_history(str(tmp_path), history[:1])
    write_history(str(tmp_path), history)
    write_history(str(tmp_path), history)  # a run resumed from an older checkpoint
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert all("tfevents" in file.name for file in files)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for file in files
        for event in events(file.read_bytes())
        for value in event.summary.value
    ]
    assert [(step, tag) for step, tag, _ in scalars if tag == "loss"] == [(1, "loss"), (2, "loss")]
    assert {tag for _, tag, _ in scalars} == set(history[0])
    assert scalars[-1][2] == pytest.approx(123.456789)


def test_files_of_another_run_are_replaced(tmp_path):
    other, own = [epoch(1, 0.1), epoch(2, 0.2), epoch(3, 0.3)], [epoch(1, 0.7), epoch(2, 0.8)]
    for count in (1, 2, 3):
        write_history(str(tmp_path), other[:count])
    repair_history(str(tmp_path), own)
    assert [one["score"] for one in read_history(str(tmp_path))] == [0.7, 0.8]
    files = sorted((tmp_path / "tensorboard").iterdir())
    values = [value for file in files for event in events(file.read_bytes()) for value in event.summary.value]
    assert [value.simple_value for value in values if value.tag == "score"] == pytest.approx([0.7, 0.8])


def test_missing_events_are_written_again(tmp_path):
    history = [epoch(1), epoch(2)]
    write_history(str(tmp_path), history)
    repair_history(str(tmp_path), history)
    names = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert len(names) == 3
    repair_history(str(tmp_path), history)
    assert {path: path.stat().st_mtime_ns for path in names} == names


def test_the_best_epoch_is_the_first_of_a_tie_and_patience_counts_from_it():
    history = [epoch(1, 0.1), epoch(2, 0.4), epoch(3, 0.4), epoch(4, 0.2)]
    assert best_of(history)["epoch"] == 2
    assert is_over(history, 4, None)
    assert not is_over(history, 9, None)
    assert not is_over(history, 9, 3)
    assert is_over(history, 9, 2)
    assert not is_over([], 9, 2)
