"""From file, environment and flags to one validated configuration.

Values come from a YAML file, then the environment (`LOCRAY_<OPTION>`), then flags, later ones winning.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from locray.config.commands import COMMANDS, option_names
from locray.config.common import CommandConfig
from locray.errors import UsageError, nearest

ENVIRONMENT_PREFIX = "LOCRAY_"
NOT_OPTIONS = frozenset({"LOCRAY_TEST_DATA"})

_OUR_OWN = "Value error, "
"""Pydantic's prefix for the messages of our own validators."""

Config = TypeVar("Config", bound=CommandConfig)


def load_config(
    config_class: type[Config],
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Merges file, environment and flags into one validated configuration.

    Raises:
        UsageError: an unknown key (named with its nearest known one), a missing option, or a value out of range.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        values |= _read_yaml(config_file, set(option_names(config_class)))
    values |= _from_environment(environment or {}, set(option_names(config_class)))
    values |= flags or {}
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise UsageError(_describe(error, set(option_names(config_class)))) from None


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the configuration file {path} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration file {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"the configuration file {path} holds a {type(content).__name__}; expected `option: value` lines"
        )
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in values.keys() - known:
        raise UsageError(f"unknown option {key!r} in {path}. {_suggestion(key, known)}")
    return values


def _from_environment(environment: Mapping[str, str], known: set[str]) -> dict[str, Any]:
    """Returns the options of this command. A variable that resembles an option but is none is an error.

    Other variables are ignored: a Kubernetes service named locray sets some such as LOCRAY_SERVICE_HOST.
    """
    all_known = {name for config_class in COMMANDS.values() for name in option_names(config_class)}
    values = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NOT_OPTIONS:
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key in known:
            values[key] = value
        elif key not in all_known and nearest(key, all_known):
            raise UsageError(f"unknown option in the environment: {variable}. {_suggestion(key, all_known)}")
    return values


def _suggestion(key: str, known: set[str]) -> str:
    found = nearest(key, known)
    return f"Did you mean {found!r}?" if found else f"Known options: {', '.join(sorted(known))}."


def _describe(error: ValidationError, known: set[str]) -> str:
    """Returns all problems in one line, options named as on the command line."""
    lines = []
    for problem in error.errors():
        option = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else ""
        if problem["type"] == "missing":
            lines.append(f"{option} is required")
        elif problem["type"] == "extra_forbidden":
            key = str(problem["loc"][0])
            lines.append(f"unknown option {key!r}. {_suggestion(key, known)}")
        elif option:
            lines.append(f"{option}: {_expectation(problem)}")
        else:
            lines.append(problem["msg"].removeprefix(_OUR_OWN))
    return "; ".join(lines)


def _expectation(problem: Any) -> str:
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix(_OUR_OWN)
    expected = "expected a date, YYYY-MM-DD" if problem["type"].startswith("date") else problem["msg"].lower()
    return f"{expected}; found {problem['input']!r}"
