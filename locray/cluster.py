"""How to reach Ray: the arguments of `ray.init`, and an environment in which Ray keeps quiet.

Called by training/loop.py and labelling/pipeline.py, the two modules that import ray.
"""

import logging
import os
from typing import Any


def prepare_environment() -> None:
    """Sets what Ray reads from the environment; call it before ray is imported. What the user has set stays."""
    defaults = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        # Ray ends idle workers beyond one a CPU after a second. Actors that take no CPU slot count too, so that on a
        # small machine every task of ours would start a process and import everything anew.
        "RAY_num_workers_soft_limit": "64",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def init_arguments(*, verbose: bool) -> dict[str, Any]:
    """Arguments for `ray.init`.

    Attaches to a running cluster only where RAY_ADDRESS says so, as it does inside a submitted job; a bare
    `ray.init()` would attach to whatever cluster it finds on the machine.
    """
    arguments: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if "RAY_ADDRESS" not in os.environ:
        arguments |= {"address": "local", "include_dashboard": False}
    return arguments


def quiet_loggers() -> None:
    """Lets only errors of Ray's libraries through to the terminal; their log files stay whole.

    Call it after these libraries are imported: each sets up its logger then.
    """
    for name in ("ray", "ray.data", "ray.train"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.ERROR)
