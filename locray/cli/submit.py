"""`locray submit`: runs a command as a job on a cluster, from submission to exit code."""

import logging
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

from locray.cli.console import Console
from locray.cli.submission import JobOutput, Submission
from locray.config import SubmitConfig
from locray.errors import ExitCode
from locray.ray_runtime.jobs import JobEnd, Jobs
from locray.signals import on_first_signal

_log = logging.getLogger(__name__)


def submit(config: SubmitConfig, console: Console) -> int:
    """Returns the exit code of the job; with `--detach`, 0 once it is submitted.

    Raises:
        UsageError: the command is invalid, the cluster can't be reached or refuses the job.
        StoreError: the cluster no longer answers.
    """
    submission = None if config.follow else Submission.of(config.command, as_json=config.json_output)
    jobs, stop = Jobs(config.address), threading.Event()
    with on_first_signal(lambda number: _ask_to_stop(stop, number.name)):
        if submission is None:
            submission_id = str(config.follow)
            jobs.check_exists(submission_id)
        else:
            submission_id = config.id or _new_id(submission.verb)
            jobs.submit(
                submission.entry_point(),
                submission_id,
                stop_timeout_s=config.stop_timeout_s,
                upload=Path(__file__).parents[1] if config.upload else None,
                working_dir=config.working_dir,
            )
            if config.detach:
                console.result({"submission_id": submission_id}, {"submission_id": submission_id})
                return ExitCode.DONE
            _log.info(f"submitted {submission_id} to {jobs.url}")
        as_json = config.json_output if submission is None else submission.prints_json
        try:
            return _wait(jobs, submission_id, JobOutput(as_json), stop)
        except KeyboardInterrupt:
            _log.error(
                f"left the job, which is still ending. To wait for it: locray submit --address {jobs.url} --follow "
                f"{submission_id}"
            )
            return ExitCode.UNEXPECTED


def _new_id(verb: str) -> str:
    return f"locray-{verb}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def _ask_to_stop(stop: threading.Event, signal_name: str) -> None:
    stop.set()
    _log.warning(f"{signal_name}: the job is asked to stop, and ends in order; a second one leaves it to that")


def _wait(jobs: Jobs, submission_id: str, output: JobOutput, stop: threading.Event) -> int:
    """Shows the output of the job until its end, and returns its exit code."""
    stream = sys.stderr if output.as_json else sys.stdout
    for line in jobs.output(submission_id, stop):
        shown = output.add(line)
        if shown is not None:
            print(shown, file=stream, flush=True)
        if output.exit_code is not None:
            break  # the job's last line: Ray needs another 5 s to tell
    end = jobs.end(submission_id)
    if output.result is not None:
        print(output.result, flush=True)  # noqa: T201
    return _exit_code(end, output)


def _exit_code(end: JobEnd, output: JobOutput) -> int:
    """The job's own exit code: Ray's report of it, else that of the output; 1 if there is none."""
    for code in (end.exit_code, output.exit_code):
        if code is not None:
            return code
    if end.status == "STOPPED":
        _log.error("the job was killed before it had ended in order. Commits that it made before stay")
    else:
        last = end.message.strip().rsplit("\n", 1)[-1][:300]
        _log.error(f"the job ended without an exit code ({end.status}): {last}")
    return ExitCode.UNEXPECTED
