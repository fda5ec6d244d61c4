"""The command line: `locray <verb>`."""

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from locray import __version__
from locray.cli.console import Console
from locray.cli.job_paths import check_job_paths, is_in_job
from locray.cli.options import options_of
from locray.config import COMMANDS, ENVIRONMENT_PREFIX, CommandConfig, load_config
from locray.errors import ExitCode, LocrayError
from locray.ray_runtime.start import stop_ray

_log = logging.getLogger(__name__)

Runner = Callable[[Any, Console], int]
"""Runs a command with its configuration, shows its result and returns the exit code."""

INTERRUPTED = 130
"""Exit code of a shell command that Ctrl-C ended."""


@dataclass(frozen=True, slots=True)
class Command:
    """A verb of the command line."""

    config_class: type[CommandConfig]
    run: Runner


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; a traceback is shown only with --log-level debug.

    Args:
        arguments: Verb and options. Default: those of this process.
    """
    commands = {verb: Command(config_class, _runner(verb)) for verb, config_class in COMMANDS.items()}
    about = "Labels every image of a bucket with classes and boxes, every night, exactly once."
    return run_command_line("locray", about, commands, arguments)


def _runner(verb: str) -> Runner:
    """Returns the function of `cli/commands.py` that is named like the verb. Imports it only when it is called."""

    def run(config: Any, console: Console) -> int:
        runner: Runner = getattr(importlib.import_module("locray.cli.commands"), verb.replace("-", "_"))
        return runner(config, console)

    return run


def run_command_line(
    name: str, about: str, commands: Mapping[str, Command], arguments: Sequence[str] | None = None
) -> int:
    """Runs one of the commands as `name VERB ...` asks for, and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = _group(name, about, commands).main(args=arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except click.Abort:
        click.echo(f"{name}: interrupted", err=True)
        return INTERRUPTED
    return int(result or 0)


def _group(name: str, about: str, commands: Mapping[str, Command]) -> click.Group:
    group = click.Group(
        name,
        help=about,
        epilog=f"Options can also be given in a YAML file (--config) and as environment variables "
        f"({ENVIRONMENT_PREFIX}<OPTION>). Flags take precedence over the environment, the environment over the file.",
    )
    click.version_option(__version__, prog_name="locray", message="%(prog)s %(version)s")(group)
    for verb, command in commands.items():
        group.add_command(_command(verb, command))
    return group


def _command(verb: str, command: Command) -> click.Command:
    def run(config_file: Path | None, **flags: Any) -> int:
        return _run(command, config_file, {name: value for name, value in flags.items() if value is not None})

    summary = (command.config_class.__doc__ or "").split(": ", 1)[-1]
    return click.Command(
        verb,
        params=options_of(command.config_class),
        callback=run,
        help=summary[0].upper() + summary[1:],
        context_settings={"allow_interspersed_args": False},  # what follows the verb of `submit` is the job's
    )


def _run(command: Command, config_file: Path | None, flags: dict[str, Any]) -> int:
    try:
        config = load_config(command.config_class, config_file=config_file, environment=os.environ, flags=flags)
        if is_in_job():
            check_job_paths(config)
    except LocrayError as error:
        log_format = flags.get("log_format") or os.environ.get(f"{ENVIRONMENT_PREFIX}LOG_FORMAT")
        with Console(log_format="json" if log_format == "json" else "text").show_log("error"):
            _log.error(str(error))
        return error.exit_code
    console = Console(as_json=config.json_output, log_format=config.log_format)
    with console.show_log(config.log_level):
        try:
            with _sigterm_as_ctrl_c():
                exit_code = command.run(config, console)
            if not config.verbose:  # at the end of the process, Ray waits for the last lines of its workers
                stop_ray()
            return exit_code
        except LocrayError as error:
            _log.error(str(error))
            return error.exit_code
        except KeyboardInterrupt:
            _log.error("interrupted; run the command again to continue")
            return ExitCode.UNEXPECTED
        except Exception as error:  # noqa: BLE001 - the last place: what nobody foresaw becomes a message and exit code 1
            hint = "" if config.verbose else ". Run with --log-level debug for the traceback"
            _log.error("unexpected %s: %s%s", type(error).__name__, error, hint, exc_info=config.verbose)
            return ExitCode.UNEXPECTED


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM unwind the command as Ctrl-C does, so that it leaves no temporary files."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
