"""Paths in a submitted job."""

import os

from locray.config import CommandConfig
from locray.errors import UsageError

_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the entrypoint of a job."""
_PATH_OPTIONS = ("images", "data", "table", "output")


def check_paths(config: CommandConfig) -> None:
    """Refuses relative paths in a submitted job, where they would lie in Ray's folder for the package of the job.

    Raises:
        UsageError: one is relative.
    """
    if _IN_A_JOB not in os.environ:
        return
    for name in _PATH_OPTIONS:
        value = getattr(config, name, None)
        if isinstance(value, str) and "://" not in value and not os.path.isabs(value):
            raise UsageError(
                f"--{name} {value} is relative: in a submitted job it would be below {os.getcwd()}, a folder of Ray on "
                "one node that is deleted after the job. Expected an absolute path that all nodes share, or an s3:// "
                "prefix"
            )
