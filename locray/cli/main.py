"""The command line: `locray <verb>`. Options are made from the configuration classes; the work is done by the runs."""

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from locray import __version__
from locray.cli.console import Console
from locray.config import COMMANDS, ENVIRONMENT_PREFIX, BareFlagValue, CommandConfig, load_config
from locray.errors import ErrorCode, ExitCode, LocrayError
from locray.ray_runtime.start import stop_ray

Runner = Callable[[Any, Console], ExitCode]

_RUNNERS = "locray.cli.commands"
_METAVARS = {int: "INTEGER", float: "NUMBER", date: "DATE", ErrorCode: "CODE,..."}


@dataclass(frozen=True, slots=True)
class Command:
    """A verb: its options, and what runs it."""

    config_class: type[CommandConfig]
    run: Runner


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; never shows a traceback unless --verbose asks for it."""
    commands = {verb: Command(config_class, _runner(verb)) for verb, config_class in COMMANDS.items()}
    about = "Labels every image of a bucket with classes and boxes, every night, exactly once."
    return run_command_line("locray", about, commands, arguments)


def _runner(verb: str) -> Runner:
    """The function that runs a verb; imported when it is called, as heavy imports come with it."""

    def run(config: Any, console: Console) -> ExitCode:
        runner: Runner = getattr(importlib.import_module(_RUNNERS), verb.replace("-", "_"))
        return runner(config, console)

    return run


def run_command_line(
    name: str, about: str, commands: Mapping[str, Command], arguments: Sequence[str] | None = None
) -> int:
    """The command line `name VERB ...`: runs one of the commands, and returns its exit code."""
    try:
        result = _group(name, about, commands).main(
            args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except click.Abort:
        click.echo("locray: interrupted", err=True)
        return 130
    return int(result or 0)


def _group(name: str, about: str, commands: Mapping[str, Command]) -> click.Group:
    group = click.Group(
        name,
        help=about,
        epilog="Each option may also stand in the YAML file given by --config, or in the environment as "
        f"{ENVIRONMENT_PREFIX}<OPTION>; flags win over the environment, the environment over the file.",
    )
    group.params.append(
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        )
    )
    for verb, command in commands.items():
        group.add_command(_command(verb, command))
    return group


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"locray {__version__}")
        context.exit()


def _command(verb: str, command: Command) -> click.Command:
    config_class = command.config_class
    fields = config_class.model_fields
    order = sorted(fields, key=lambda name: (not fields[name].is_required(), name in CommandConfig.model_fields))
    options: list[click.Parameter] = [_option(name, fields[name]) for name in order]
    options.append(
        click.Option(["--config", "config_file"], type=click.Path(path_type=Path), help="YAML file of options.")
    )

    def run(config_file: Path | None, **flags: Any) -> ExitCode:
        given = {name: value for name, value in flags.items() if value is not None}
        return _run(command, config_file, given)

    summary = (config_class.__doc__ or "").split(": ", 1)[-1]
    return click.Command(verb, params=options, callback=run, help=summary[0].upper() + summary[1:])


def _option(name: str, field: FieldInfo) -> click.Option:
    """The flag of a field; its value stays text here, for pydantic to read like that of the file or environment."""
    flag = "--" + (field.alias or name).replace("_", "-")
    description = field.description or ""
    parameter = field.alias or name
    if field.annotation is bool:
        return click.Option([flag, parameter], is_flag=True, default=None, help=description)
    if field.is_required():
        description += " [required]"
    elif field.default not in {None, (), PydanticUndefined}:
        description += f" [default: {field.default}]"
    kinds = {kind: metavar for kind, metavar in _METAVARS.items() if kind in _kinds_of(field.annotation)}
    metavar = next(iter(kinds.values()), "TEXT")
    alone = next((mark.value for mark in field.metadata if isinstance(mark, BareFlagValue)), None)
    if alone is None:
        return click.Option([flag, parameter], type=str, default=None, help=description, metavar=metavar)
    return click.Option(
        [flag, parameter],
        type=str,
        default=None,
        help=description,
        metavar=f"[{metavar}]",
        is_flag=False,
        flag_value=alone,
    )


def _kinds_of(annotation: Any) -> set[Any]:
    """The plain types in an annotation such as `int | None`, constraints taken off."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal or not parts:
        return {annotation}
    return set().union(*(_kinds_of(part) for part in parts if not isinstance(part, FieldInfo)))


def _run(command: Command, config_file: Path | None, flags: dict[str, Any]) -> ExitCode:
    verbose = bool(flags.get("verbose"))
    console = Console(as_json=False)
    try:
        config = load_config(command.config_class, config_file=config_file, environment=os.environ, flags=flags)
        verbose = config.verbose
        console = Console(as_json=config.json_output)
        with _sigterm_as_ctrl_c():
            exit_code = command.run(config, console)
        if not verbose:  # at its own end, Ray waits for the last lines of its workers
            stop_ray()
        return exit_code
    except LocrayError as error:
        console.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.error("interrupted; run the command again to go on")
        return ExitCode.UNEXPECTED
    except Exception as error:  # noqa: BLE001 (the last place: what nobody foresaw becomes a message and exit code 1)
        if verbose:
            traceback.print_exc()
        console.error(f"unexpected {type(error).__name__}: {error}. Run with --verbose for the whole story.")
        return ExitCode.UNEXPECTED
    finally:
        console.close()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM unwind the command as Ctrl-C does, so that it leaves no temporary files."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no handlers
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
