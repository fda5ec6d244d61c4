"""Jobs on a cluster, through the jobs API of its dashboard."""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locray.errors import LocrayError, StoreError, UsageError
from locray.ray_runtime.connection import NO_TOKEN, WRONG_TOKEN, auth_token, check_port

DEFAULT_URL = "http://127.0.0.1:8265"
_URL_VARIABLE = "RAY_API_SERVER_ADDRESS"
_STOP_TIMEOUT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by Ray from the environment of a job's own supervisor, so that the runtime environment of the job can set it."""

_POLL_S = 0.5
_STATUS_EVERY_S = 5.0
_MAX_OUTAGE_S = 120.0
_QUIET_AFTER_END_S = 15.0
"""Ray needs up to 5 s to pass on the last lines."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEnd:
    """End of a job, as Ray reports it."""

    status: str
    exit_code: int | None
    """None if Ray doesn't know it: the job was stopped, or never started."""
    message: str


class Jobs:
    """The jobs of a cluster.

    Args:
        address: URL of its dashboard. Default: RAY_API_SERVER_ADDRESS, else that of this machine.

    Raises:
        UsageError: no dashboard answers there, or it refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        url = address or os.environ.get(_URL_VARIABLE) or DEFAULT_URL
        url = (url if "://" in url else f"http://{url}").rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--address {url}: expected the URL of the cluster's dashboard, such as http://head:8265")
        self.url = url
        check_port(f"--address {url}", url.split("://")[1].split("/")[0], 443 if url.startswith("https") else 80)
        auth_token()  # refuses what Ray would abort at
        os.environ[_URL_VARIABLE] = url  # the client prefers the environment to its argument
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(url)
        except Exception as error:
            raise self._usage_error(error) from error

    def submit(
        self,
        entry_point: str,
        submission_id: str,
        *,
        stop_timeout_s: int,
        upload: Path | None,
        working_dir: Path | None,
    ) -> None:
        """Starts a job.

        Args:
            entry_point: Shell command for the head.
            submission_id: New ID.
            stop_timeout_s: Time that the job gets to end when it is stopped.
            upload: Folder of a Python package to upload.
            working_dir: Folder to upload as the working directory.

        Raises:
            UsageError: a job of this ID exists, or a folder can't be uploaded.
        """
        environment: dict[str, Any] = {"env_vars": {_STOP_TIMEOUT_VARIABLE: str(stop_timeout_s)}}
        if upload is not None:
            environment["py_modules"] = [str(upload)]
        if working_dir is not None:
            environment["working_dir"] = str(working_dir)
        try:
            self._client.submit_job(entrypoint=entry_point, submission_id=submission_id, runtime_env=environment)
        except Exception as error:
            if "already exists" in str(error):
                raise UsageError(
                    f"the cluster has a job {submission_id} already. Choose another --id, or wait for that job: "
                    f"locray submit --address {self.url} --follow {submission_id}"
                ) from None
            raise self._usage_error(error) from error

    def check_exists(self, submission_id: str) -> None:
        """Checks that there is such a job.

        Raises:
            UsageError: there is none.
        """
        try:
            self._client.get_job_info(submission_id)
        except Exception as error:
            if "does not exist" in str(error):
                raise UsageError(f"{self.url} has no job {submission_id}: `ray job list` shows its jobs") from None
            raise self._usage_error(error) from error

    def output(self, submission_id: str, stop: threading.Event) -> Iterator[str]:
        """The lines that a job writes, from the first one on, until it has ended; reconnects where necessary.

        Args:
            submission_id: The job.
            stop: Once it is set, the job is asked to end.

        Raises:
            StoreError: the dashboard has not answered for two minutes.
        """
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._follow, args=(submission_id, lines), name="job-output", daemon=True).start()
        is_stopping, next_check, quiet_since = False, 0.0, None
        while True:
            if stop.is_set() and not is_stopping:
                is_stopping = self._ask_to_stop(submission_id)
            try:
                line = lines.get(timeout=_POLL_S)
            except queue.Empty:
                now = time.monotonic()
                if quiet_since is None and now >= next_check:
                    next_check = now + _STATUS_EVERY_S
                    quiet_since = now if self._has_ended(submission_id) else None
                if quiet_since is not None and now - quiet_since > _QUIET_AFTER_END_S:
                    return  # the connection is dead, without having been closed
                continue
            if line is None:
                return
            quiet_since = None
            yield line

    def end(self, submission_id: str) -> JobEnd:
        """Waits until Ray reports the end of the job, which may be a moment after that of its output.

        Raises:
            StoreError: the dashboard has not answered for two minutes.
        """
        while not self._has_ended(submission_id):
            time.sleep(_POLL_S)
        found = self._info(submission_id)
        return JobEnd(str(found.status), found.driver_exit_code, found.message or "")

    def _ask_to_stop(self, submission_id: str) -> bool:
        """Whether the cluster has heard it."""
        try:
            self._client.stop_job(submission_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next round tries again
            _log.debug("the job %s could not be stopped: %s", submission_id, error)
            return False
        return True

    def _has_ended(self, submission_id: str) -> bool:
        return bool(self._info(submission_id).status.is_terminal())

    def _info(self, submission_id: str) -> Any:
        until = time.monotonic() + _MAX_OUTAGE_S
        while True:
            try:
                return self._client.get_job_info(submission_id)
            except Exception as error:
                if time.monotonic() > until:
                    raise StoreError(
                        f"{self.url} has not answered for {_MAX_OUTAGE_S:.0f} s. The job may still be running: "
                        f"locray submit --address {self.url} --follow {submission_id}"
                    ) from error
                time.sleep(_POLL_S)

    def _follow(self, submission_id: str, lines: "queue.SimpleQueue[str | None]") -> None:
        """Puts the lines into the queue, then None. In a thread of its own."""
        num_read, rest = 0, ""

        async def read() -> None:
            nonlocal num_read, rest
            to_skip = num_read
            async for chunk in self._client.tail_job_logs(submission_id):
                new = chunk[to_skip:]
                to_skip = max(0, to_skip - len(chunk))
                num_read += len(new)
                *whole, rest = (rest + new).split("\n")
                for line in whole:
                    lines.put(line)

        while True:
            try:
                asyncio.run(read())
                if self._has_ended(submission_id):
                    break
            except Exception as error:  # noqa: BLE001 - whatever it is, the other thread gives up if it lasts
                _log.debug("the output of %s was interrupted: %s", submission_id, error)
            time.sleep(_POLL_S)
        if rest:
            lines.put(rest)
        lines.put(None)

    def _usage_error(self, error: Exception) -> LocrayError:
        text = str(error)
        if "Authentication required" in text:
            return UsageError(f"{self.url}: {NO_TOKEN}")
        if "Authentication failed" in text:
            return UsageError(f"{self.url}: {WRONG_TOKEN}")
        reason = next(iter(text.strip().splitlines()), type(error).__name__)[:300]
        return UsageError(f"the jobs API of Ray's dashboard at {self.url} refused the request: {reason}")
