"""Fields of annotation files, checked and named where they are wrong. Used by the parsers and writers."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from locray.errors import UsageError

_MOST_SHOWN = 60
_LONGEST_SIDE_PX = 2**31 - 1
"""More than any format of images can hold."""


def number(text: str | None, what: str) -> float:
    """A finite number from an annotation file.

    Raises:
        UsageError: absent, not a number, or not finite; `what` says file, record and field.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        found = "nothing" if text is None or not text.strip() else repr(text.strip()[:_MOST_SHOWN])
        raise UsageError(f"{what}: found {found}, expected a number.")
    return value


def side_px(text: str | None, what: str) -> int | None:
    """A frame's width or height, None where the file doesn't say; some tools write 0 for "not known".

    Raises:
        UsageError: there is something, and it is not a number, or too large for a side.
    """
    if text is None or not text.strip():
        return None
    return _side(number(text, what), what)


def json_number(value: object, what: str) -> float:
    """As `number`, of a value that JSON or YAML has read; text that holds a number is taken, as some tools write it."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(value, str):
        return number(value, what)
    raise UsageError(f"{what}: found {shown(value)}, expected a number.")


def json_side_px(value: object, what: str) -> int | None:
    """As `side_px`, of a value that JSON has read."""
    return None if value is None else _side(json_number(value, what), what)


def _side(value: float, what: str) -> int | None:
    if value > _LONGEST_SIDE_PX:
        raise UsageError(f"{what}: found {value:g}, expected a side in pixels, at most {_LONGEST_SIDE_PX}.")
    rounded = round(value)
    return rounded if rounded > 0 else None


def json_numbers(value: object, count: int, what: str) -> list[float]:
    """A list of so many finite numbers.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, list) or len(value) != count:
        raise UsageError(f"{what}: found {shown(value)}, expected {count} numbers.")
    return [json_number(one, what) for one in value]


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The members of a JSON file that holds one object.

    Raises:
        UsageError: it doesn't; names line and column.
    """
    try:
        document = _parsed(decoded(data, where))
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply to be annotations.") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where}: found {shown(document)}, expected a JSON object.")
    return document


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # A whole number with more digits than Python reads. A hook makes reading several times slower, so only now.
        return json.loads(text, parse_int=_number_or_text)


def _number_or_text(digits: str) -> int | str:
    """Text where Python doesn't read it: then the field that holds it is named like any other that is wrong."""
    try:
        return int(digits)
    except ValueError:
        return digits


def json_list(document: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A member of a JSON object that is a list.

    Raises:
        UsageError: it is absent or something else; names those there are.
    """
    if key not in document:
        raise UsageError(f"{where}: found the fields {', '.join(list(document)[:9]) or '(none)'}; missing {key}.")
    value = document[key]
    if not isinstance(value, list):
        raise UsageError(f"{where}, field {key}: found {shown(value)}, expected a list.")
    return value


def shown(value: object) -> str:
    """A value as a message shows it: short."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def plain(value: float) -> str:
    """A number as people write it, and exact: 12 and not 12.0."""
    return str(int(value)) if value == int(value) else repr(float(value))


def plain_number(value: float) -> int | float:
    """As `plain`, for JSON."""
    return int(value) if value == int(value) else float(value)


def decoded(data: bytes, where: str) -> str:
    """The text of a file of ours to read, which has to be UTF-8 (with or without a byte order mark).

    Raises:
        UsageError: it isn't; `where` names the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}, byte {error.start}: not UTF-8 text. Save the file as UTF-8.") from None
