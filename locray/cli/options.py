"""Command-line options made from the fields of a configuration class."""

from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from locray.config import BareFlagValue, CommandConfig, Positional
from locray.config.common import PoolRange
from locray.errors import ErrorCode

CONFIG_FILE = "config_file"
"""Parameter of `--config`, the only option that is no field of a configuration class."""

_METAVARS = {int: "INTEGER", float: "NUMBER", date: "DATE", ErrorCode: "CODE,...", PoolRange: "N|MIN-MAX"}


def options_of(config_class: type[CommandConfig]) -> list[click.Parameter]:
    """Returns one option per field, required ones first and those that every command has last, and `--config`."""
    fields = config_class.model_fields
    order = sorted(fields, key=lambda name: (not fields[name].is_required(), name in CommandConfig.model_fields))
    config_file = click.Option(
        ["--config", CONFIG_FILE], type=click.Path(path_type=Path), help="YAML file with values of options."
    )
    return [*(_option(name, fields[name]) for name in order), config_file]


def value_types(annotation: Any) -> set[Any]:
    """Returns the plain types in an annotation such as `int | None`, without constraints."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal or not parts:
        return {annotation}
    return set().union(*(value_types(part) for part in parts if not isinstance(part, FieldInfo)))


def _option(name: str, field: FieldInfo) -> click.Parameter:
    """The values stay text here: pydantic converts them as it does those of the file and the environment."""
    parameter = field.alias or name
    declarations = ["--" + parameter.replace("_", "-"), parameter]
    positional = next((mark for mark in field.metadata if isinstance(mark, Positional)), None)
    if positional is not None:
        return click.Argument([parameter], nargs=-1, type=click.UNPROCESSED, metavar=positional.metavar)
    description = field.description or ""
    if field.annotation is bool:
        return click.Option(declarations, is_flag=True, default=None, help=description)
    if field.is_required():
        description += " [required]"
    elif field.default not in {None, (), PydanticUndefined}:
        description += f" [default: {field.default}]"
    types = value_types(field.annotation)
    metavar = next((metavar for kind, metavar in _METAVARS.items() if kind in types), _choices(field) or "TEXT")
    extra: dict[str, Any] = {"metavar": metavar}
    bare = next((mark.value for mark in field.metadata if isinstance(mark, BareFlagValue)), None)
    if bare is not None:
        extra = {"metavar": f"[{metavar}]", "is_flag": False, "flag_value": bare}
    return click.Option(declarations, type=str, default=None, help=description, **extra)


def _choices(field: FieldInfo) -> str | None:
    choices = next((get_args(kind) for kind in value_types(field.annotation) if get_origin(kind) is Literal), ())
    return f"[{'|'.join(choices)}]" if choices else None
