"""Images that crash or hang the decoder: runs that decode in the worker itself, then in a child process.

Also commands that decode a sample themselves, and an image that kills every model worker.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.labelling.fetch_decode import MAX_CRASHES
from tests.helpers.commands import PROJECT_ROOT, locray
from tests.helpers.fault_images import Done, summary_of
from tests.helpers.made_up import BROKEN_DECODER, without_ray
from tests.helpers.poison import install_broken_decoder, install_broken_network, plain_picture, poison
from tests.helpers.tables import dataset_of


class Accident:
    """A run with broken code, over its own images and with its own Ray."""

    def __init__(self, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)  # workers of another Ray don't have the broken code
        self.images, self.table = tmp_path / "images", str(tmp_path / "table")
        self.images.mkdir()
        self._log = tmp_path / "faults"
        self._environment = {
            "PYTHONPATH": os.pathsep.join([broken, str(PROJECT_ROOT)]), "FAULT_LOG": str(self._log)
        }  # fmt: skip

    def run(self, artifact: str, *options: str, exit_code: int, **environment: str) -> Done:
        where = ("--images", str(self.images), "--model", artifact, "--table", self.table, "--unit-size", "4")
        done = locray("label", *where, "--json", *options, **self._environment, **environment)
        assert done.returncode == exit_code, done
        assert "Traceback" not in done.stderr
        return done

    def rows(self) -> pa.Table:
        return dataset_of(self.table).to_table()

    def faults(self) -> list[str]:
        return self._log.read_text().splitlines()


@pytest.mark.ray
def test_a_poisonous_image_costs_itself_a_row_and_never_the_run(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accident = Accident(tmp_path, install_broken_decoder(tmp_path / "decoder"), monkeypatch)
    faults = {f"{number}.gif": "nothing" for number in range(12)}
    faults |= {"3.gif": "crash", "4.gif": "hang with the lock", "9.gif": "hang"}
    for name, fault in faults.items():
        (accident.images / name).write_bytes(poison(fault))
    done = accident.run(artifact, "--decode-timeout-s", "3", "--max-failure-rate", "1", exit_code=0)
    summary = summary_of(done)
    assert (summary["planned"], summary["ok"], summary["deferred"]) == (12, 9, 0)
    assert summary["errors"] == {"decoder_crash": 1, "decoder_timeout": 2}

    rows = accident.rows()
    codes = {
        os.path.basename(uri): code
        for uri, code in zip(rows[schema.IMAGE_URI].to_pylist(), rows[schema.ERROR_CODE].to_pylist(), strict=True)
    }
    assert len(rows) == len(codes) == 12
    assert {name: code for name, code in codes.items() if code} == {
        "3.gif": "decoder_crash", "4.gif": "decoder_timeout", "9.gif": "decoder_timeout",
    }  # fmt: skip
    # Two images of the second unit are poisonous; it is restarted once. Child processes can't log.
    crashes = accident.faults()
    assert len(crashes) == 2
    assert "hang" in crashes


@pytest.mark.ray
@pytest.mark.parametrize(("said", "fault"), [({}, "be killed"), ({"GPU_IS_LOST": "1"}, "lose the GPU")])
def test_a_unit_that_no_model_worker_outlives_is_left_to_the_next_run(
    said: dict[str, str], fault: str, tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accident = Accident(tmp_path, install_broken_network(tmp_path / "network"), monkeypatch)
    for number in range(12):
        (accident.images / f"{number}.png").write_bytes(plain_picture("red" if number == 5 else "blue"))
    summary = summary_of(accident.run(artifact, exit_code=4, **said))
    assert (summary["planned"], summary["ok"], summary["deferred"]) == (12, 8, 4)
    assert summary["deferred_causes"] == {"worker": 4}
    deferred = summary["deferred_examples"]
    assert str(accident.images / "5.png") in deferred
    (reason,) = set(deferred.values())
    assert reason.startswith(f"{MAX_CRASHES} model workers died over its unit: ")
    assert accident.faults() == [fault] * MAX_CRASHES

    labelled = accident.rows()[schema.IMAGE_URI].to_pylist()
    assert len(labelled) == 8
    assert sorted([*labelled, *deferred]) == sorted(map(str, accident.images.iterdir()))


@pytest.mark.ray
def test_a_model_that_no_process_outlives_the_loading_of_ends_the_run(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accident = Accident(tmp_path, install_broken_network(tmp_path / "network"), monkeypatch)
    (accident.images / "0.png").write_bytes(plain_picture("blue"))
    done = accident.run(artifact, exit_code=1, NO_ROOM_FOR_THE_MODEL="1")
    assert f"{MAX_CRASHES} processes died while they loaded the model" in " ".join(done.stderr.split())
    assert summary_of(done)["deferred_causes"] == {"not_tried": 1}
    assert accident.faults() == ["be killed"] * MAX_CRASHES


@pytest.fixture
def poisonous(tmp_path: Path) -> Path:
    """A folder of images, two of them poisonous."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, fault in enumerate(["nothing", "crash", "nothing", "hang with the lock"]):
        (folder / f"{number}.gif").write_bytes(poison(fault))
    return folder


@pytest.mark.slow
def test_a_plan_leaves_poisonous_images_out_of_its_estimate(poisonous: Path, tmp_path: Path, artifact: str) -> None:
    arguments = ("--images", str(poisonous), "--model", artifact, "--table", str(tmp_path / "table"), "--json")
    broken = {BROKEN_DECODER: install_broken_decoder(tmp_path / "decoder")}
    done = without_ray("plan", *arguments, "--decode-timeout-s", "1", **broken)
    assert done.returncode == 0, done
    planned = json.loads(done.stdout)
    assert (planned["planned"], planned["sampled"]) == (4, 4)
    assert planned["images_per_s"] > 0
    assert planned["sampled_errors"] == {"decoder_crash": 1, "decoder_timeout": 1}
    said = (
        "2 of 4 sampled images can't be labelled (decoder_crash 1, decoder_timeout 1). The estimate counts the others"
    )
    assert said in " ".join(done.stderr.split())

    for path in poisonous.glob("[02].gif"):
        path.unlink()
    done = without_ray("plan", *arguments, "--decode-timeout-s", "1", **broken)
    assert (done.returncode, json.loads(done.stdout)["estimated_s"]) == (0, None), done
    assert "So there is no estimate" in done.stderr


@pytest.mark.slow
def test_a_verification_outlives_images_that_have_become_poisonous(
    poisonous: Path, tmp_path: Path, artifact: str
) -> None:
    (poisonous / "3.gif").unlink()
    where = ("--images", str(poisonous), "--model", artifact, "--table", str(tmp_path / "table"), "--json")
    done = without_ray("label", *where)
    assert done.returncode == 0, done
    broken = {BROKEN_DECODER: install_broken_decoder(tmp_path / "decoder")}
    done = without_ray("verify", *where, **broken)
    found = json.loads(done.stdout)
    assert (done.returncode, found["compared"], found["faults"].keys()) == (6, 3, {"prediction"}), done
    (told,) = found["faults"]["prediction"]["first"]
    assert told.startswith(f"{poisonous / '1.gif'}: now it fails: decoder_crash")
