"""Paths in a submitted job."""

import os

from locray.config import CommandConfig
from locray.errors import UsageError

_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the entrypoint of a job."""
_PATH_OPTIONS = ("images", "data", "table", "output")


def is_in_job() -> bool:
    """Whether this process is the entrypoint of a submitted job."""
    return _IN_A_JOB in os.environ


def check_job_paths(config: CommandConfig) -> None:
    """Refuses relative paths of a job, which would lie in Ray's folder for its package.

    Raises:
        UsageError: one is relative.
    """
    for name in _PATH_OPTIONS:
        value = getattr(config, name, None)
        if isinstance(value, str) and "://" not in value and not os.path.isabs(value):
            raise UsageError(
                f"--{name} {value} is relative: in a submitted job it would lie in a folder of Ray on one node, which "
                "is deleted after the job. Expected an absolute path that all nodes share, or an s3:// prefix"
            )
