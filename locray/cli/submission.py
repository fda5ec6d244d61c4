"""What `locray submit` sends to a cluster: a checked command and its entry point. What it takes out of the output."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from locray.cli.job_paths import check_job_paths
from locray.cli.options import CONFIG_FILE, options_of
from locray.config import COMMANDS, CommandConfig, Positional, load_config
from locray.errors import UsageError, did_you_mean

_ENDED = "locray ended with exit code"
_END_LINE = re.compile(rf"{_ENDED} (\d+)")
_LOG_KEYS = {"time", "level", "logger", "message"}

# Ray signals every process of a job that is stopped, this shell included, and reports no exit code of such a job. So
# the shell waits for the command, and writes its exit code to the output.
_ENTRY_POINT = """\
trap : TERM INT
python -m locray {arguments}
code=$?
if [ $code -eq 127 ]; then
  echo "locray: error: there is no python on the PATH of this cluster's head" >&2; code=2
elif [ $code -eq 1 ] && ! python -c 'import locray' 2>/dev/null; then
  echo "locray: error: locray is not installed on this cluster: install it there, or submit with --upload" >&2; code=2
fi
echo "{ended} $code"
exit $code"""

_ENTRY_LINES = set(_ENTRY_POINT.format(arguments="", ended=_ENDED).splitlines())
_ENTRY_IS_SHOWN = "Running entrypoint for job "
"""Ray begins the output of a job with its entry point, of which only the command is of interest."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A command for the cluster."""

    verb: str
    flags: tuple[str, ...]

    @classmethod
    def of(cls, command: Sequence[str], *, as_json: bool, environment: Mapping[str, str] | None = None) -> "Submission":
        """Checks a command as its own process would.

        Values of its `--config` file and of this machine's environment become flags, since the cluster has neither.

        Args:
            command: Verb and options.
            as_json: Whether to add `--json`.
            environment: Variables of options. Default: those of this process.

        Raises:
            UsageError: unknown verb or option, a missing one, or a value out of range.
        """
        verb, *arguments = command
        others = set(COMMANDS) - {"submit"}
        if verb not in others:
            raise UsageError(
                f"{verb!r} is no command to submit{did_you_mean(verb, others)}. Expected one of {', '.join(others)}"
            )
        parser = click.Command(verb, params=options_of(COMMANDS[verb]), add_help_option=False)
        environment = os.environ if environment is None else environment
        try:
            given = parser.make_context(verb, list(arguments)).params
            config_file = given.pop(CONFIG_FILE)
            flags = {name: value for name, value in given.items() if value is not None}
            if as_json:
                flags["json"] = True
            config = load_config(COMMANDS[verb], config_file=config_file, environment=environment, flags=flags)
            check_job_paths(config)
        except click.ClickException as error:
            raise UsageError(f"{verb}: {error.format_message()}") from None
        except UsageError as error:
            raise UsageError(f"{verb}: {error}") from None
        return cls(verb, tuple(flags_of(config)))

    @property
    def prints_json(self) -> bool:
        """Whether the command prints its result as JSON."""
        return "--json" in self.flags

    def entry_point(self) -> str:
        """Shell command for the head of the cluster."""
        return _ENTRY_POINT.format(arguments=shlex.join([self.verb, *self.flags]), ended=_ENDED)


def flags_of(config: CommandConfig) -> Iterator[str]:
    """The flags that make this configuration."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        is_positional = any(isinstance(mark, Positional) for mark in field.metadata)
        if name not in config.model_fields_set or value is None or value is False or is_positional:
            continue
        yield "--" + (field.alias or name).replace("_", "-")
        if value is not True:
            yield (",".join(map(str, value)) or "none") if type(value) is tuple else str(value)


@dataclass(slots=True)
class JobOutput:
    """Takes the exit code, and with JSON the result, out of the output of a job; the other lines are for the user.

    Ray keeps stdout and stderr of a job in one file.
    """

    as_json: bool
    exit_code: int | None = None
    """As the job reported it; None before its end."""
    result: str | None = None
    """Last JSON object of the output that is no log line."""

    def add(self, line: str) -> str | None:
        """Takes in a line, and returns what to show, if anything."""
        if line in _ENTRY_LINES or line.startswith(_ENTRY_IS_SHOWN):
            return None
        ended = _END_LINE.fullmatch(line.strip())
        if ended:
            self.exit_code = int(ended[1])
            return None
        if self.as_json and _is_result(line):
            self.result, line_before = line.strip(), self.result
            return line_before
        return line.rstrip("\n")


def _is_result(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        value: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and not value.keys() >= _LOG_KEYS
