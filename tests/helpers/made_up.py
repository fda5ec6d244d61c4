"""Labelling commands with made-up rows instead of Ray and the network; all access to the table is real."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import locray.cli.commands
import locray.labelling.plan
import locray.nightly.run
import locray.report.nightly  # noqa: F401 (these four before the fork)
from locray import schema
from locray.cli.main import main as cli
from locray.labelling import run
from locray.labelling.worklist import Worklist, num_units
from locray.sources import Source
from tests.helpers.in_process import InProcess
from tests.helpers.poison import break_decoder

BROKEN, MENDED = "broken", "TEST_ALL_IMAGES_ARE_MENDED"
BROKEN_DECODER = "TEST_FOLDER_OF_BROKEN_DECODER"
ENDS_WITHIN_S = 120
STDOUT = ".stdout"
IMPORTED_IN = os.getpid()


@dataclass
class MadeUpPipeline:
    """Replaces `Pipeline`: one box per image, or a failure if the image's name says that it is broken.

    Units come in reverse order, one of them twice, as after the loss of a node.
    """

    model: Any = None

    def check(self, source: Source) -> None:
        """There are no other nodes."""

    def start(self) -> None:
        """There is no Ray to start."""

    def rows(self, worklist: Worklist) -> Iterator[pa.Table]:
        units = range(num_units(worklist))
        for unit in [*reversed(units), *units[-1:]]:
            yield made_up_rows(worklist.read_unit(unit))


def made_up_rows(images: pa.Table) -> pa.Table:
    """Returns rows of `schema.PREDICTED_SCHEMA` for images of a worklist."""
    box = {schema.LABEL_ID: 0, schema.LABEL: "disc", schema.SCORE: 0.5}
    box |= {schema.XMIN: 1.0, schema.YMIN: 2.0, schema.XMAX: 3.0, schema.YMAX: 4.0}
    ok = {
        schema.WIDTH: 10,
        schema.HEIGHT: 10,
        schema.FORMAT: "jpeg",
        schema.STATUS: schema.STATUS_OK,
        schema.DETECTIONS: [box],
    }
    failed = {schema.STATUS: schema.STATUS_FAILED, schema.ERROR_CODE: "corrupt", schema.ERROR_MESSAGE: "made up"}
    mended = MENDED in os.environ
    rows = [
        row | (failed if BROKEN in os.path.basename(row[schema.IMAGE_URI]) and not mended else ok)
        for row in images.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=schema.PREDICTED_SCHEMA)


PipelineClass = type[MadeUpPipeline] | type[InProcess]


def run_command(pipeline: PipelineClass, arguments: Sequence[str], environment: dict[str, str], log: str) -> None:
    """Main function of the process. Exits with the command's exit code."""
    assert os.getpid() != IMPORTED_IN, "forked from a server that has not imported this module"
    for descriptor, name in ((1, log + STDOUT), (2, log)):
        with open(name, "ab") as output:
            os.dup2(output.fileno(), descriptor)
    os.environ.update(environment)
    if BROKEN_DECODER in environment:
        break_decoder(environment[BROKEN_DECODER])
    run.Pipeline = pipeline  # type: ignore[misc, assignment]
    sys.exit(cli(arguments))


_processes = get_context("forkserver")
_processes.set_forkserver_preload([__name__, "tests.helpers.frozen"])


def ensure_server() -> None:
    """Starts the server that forks drivers. Python 3.11 gives it no `sys.path`, and ignores failed imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


class Driver:
    """A command in its own process, without Ray. Forked from a process with all imports done, so it starts at once.

    Its output is in the file `log`.
    """

    def __init__(
        self,
        log: Path,
        *arguments: str,
        pipeline: PipelineClass = MadeUpPipeline,
        **environment: str,
    ) -> None:
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self.log = log
        log.write_bytes(b"")
        ensure_server()
        self._process = _processes.Process(
            target=run_command, args=(pipeline, arguments, aws | environment, str(log)), daemon=True
        )
        self._process.start()
        self._joining = threading.Lock()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    def wait(self) -> int:
        """Waits for the end. Returns the exit code, or minus the number of the signal that ended it."""
        with self._joining:  # the exit status can be read once, by one thread
            self._process.join(ENDS_WITHIN_S)
        assert self._process.exitcode is not None, f"{self.log.read_text()}\nstill running"
        return self._process.exitcode

    def summary(self) -> dict[str, Any]:
        """The summary that it printed with `--json`."""
        return dict(json.loads(self.stdout().splitlines()[-1]))

    def stdout(self) -> str:
        """Its standard output."""
        return Path(f"{self.log}{STDOUT}").read_text()

    def kill(self) -> None:
        """Kills it. Returns when it has ended."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def ask_to_stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def pause(self) -> None:
        """Stops it. Returns when none of its threads runs."""
        stop(self.pid)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def without_ray(
    *arguments: str, pipeline: PipelineClass = InProcess, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end, as `commands.locray` does with Ray."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(Path(folder) / "log", *arguments, pipeline=pipeline, **environment)
        return subprocess.CompletedProcess(arguments, driver.wait(), driver.stdout(), driver.log.read_text())


def stop(pid: int) -> None:
    """Sends SIGSTOP and waits until all threads of the process have stopped."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + ENDS_WITHIN_S
    while _states_of_threads(pid) != {"T"}:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _states_of_threads(pid: int) -> set[str]:
    states = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # the process has ended
            states.add((task / "stat").read_text().rsplit(") ", 1)[1][0])
    return states
