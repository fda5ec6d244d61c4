"""Location of the workers' log lines."""

import json
import logging
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from locray.ray_runtime.logs import PACKAGE, log_to_worker_file
from tests.helpers.commands import locray


@pytest.mark.ray
def test_info_lines_of_workers_are_in_rays_log_folder(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.jpg")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:  # the path of Ray's sockets must be short
        arguments = ("--images", f"{tmp_path}/images", "--model", artifact, "--table", f"{tmp_path}/table")
        # Nor does Ray need a home folder, into which it would write a token.
        done = locray("label", *arguments, "--device", "cpu", RAY_TMPDIR=folder, HOME="/proc/none")
        assert done.returncode == 0, done
        debug = locray(
            "label", *arguments[:-1], f"{tmp_path}/debug", "--device", "cpu", "--log-level", "debug", "--json"
        )
        logs = list(Path(folder).glob("ray/session_2*/logs/worker-*.err"))
        lines = [line for log in logs for line in log.read_text().splitlines() if f" {PACKAGE}." in line]
    assert any(f"INFO locray.labelling.pipeline: loaded the model {artifact} on cpu" in line for line in lines), lines
    assert "loaded the model" not in done.stdout + done.stderr
    assert debug.returncode == 0, debug
    assert "locray.labelling.pipeline: loaded the model" in debug.stderr
    assert json.loads(debug.stdout)["ok"] == 1


def test_a_second_call_and_other_handlers_add_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(PACKAGE)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    log_to_worker_file()
    assert logger.handlers == []  # pytest has installed its own handlers
    monkeypatch.setattr(logger, "propagate", False)
    log_to_worker_file()
    log_to_worker_file()
    assert len(logger.handlers) == 1
