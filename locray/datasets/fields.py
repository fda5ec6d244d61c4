"""Fields of annotation files: parsed with errors that name file, entry and field, and formatted."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from locray.errors import UsageError
from locray.schema import MAX_SIDE_PX

_MAX_SHOWN_CHARACTERS = 60


def parse_number(text: str | None, what: str) -> float:
    """Parses a finite number.

    Raises:
        UsageError: missing, not a number, or not finite. `what` names file, entry and field.
    """
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        found = "nothing" if text is None or not text.strip() else repr(text.strip()[:_MAX_SHOWN_CHARACTERS])
        raise UsageError(f"{what}: found {found}, expected a number.")
    return value


def parse_side_px(text: str | None, what: str) -> int | None:
    """Parses a width or height; None if there is none (some tools write 0 for "unknown").

    Raises:
        UsageError: not a number, or too large.
    """
    if text is None or not text.strip():
        return None
    return _side(parse_number(text, what), what)


def json_number(value: object, what: str) -> float:
    """Like `parse_number`, for a JSON or YAML value. Some tools write numbers as strings."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(value, str):
        return parse_number(value, what)
    raise UsageError(f"{what}: found {abbreviate(value)}, expected a number.")


def json_side_px(value: object, what: str) -> int | None:
    """Like `parse_side_px`, for a JSON value."""
    return None if value is None else _side(json_number(value, what), what)


def _side(value: float, what: str) -> int | None:
    if value > MAX_SIDE_PX:
        raise UsageError(f"{what}: found {value:g}, expected a side in pixels, at most {MAX_SIDE_PX}.")
    rounded = round(value)
    return rounded if rounded > 0 else None


def json_numbers(value: object, count: int, what: str) -> list[float]:
    """A list of `count` finite numbers.

    Raises:
        UsageError: it is anything else.
    """
    if not isinstance(value, list) or len(value) != count:
        raise UsageError(f"{what}: found {abbreviate(value)}, expected {count} numbers.")
    return [json_number(one, what) for one in value]


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The members of a JSON file that holds one object.

    Raises:
        UsageError: not JSON (the message names line and column), or not an object.
    """
    try:
        document = json.loads(decode_text(data, where))
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, or nested too deeply
        raise UsageError(f"{where}: JSON that can't be parsed ({error}).") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where}: found {abbreviate(document)}, expected a JSON object.")
    return document


def json_list(document: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A member of a JSON object that is a list.

    Raises:
        UsageError: it is missing (the message names the members found), or no list.
    """
    if key not in document:
        raise UsageError(f"{where}: found the fields {', '.join(list(document)[:9]) or '(none)'}; missing {key}.")
    value = document[key]
    if not isinstance(value, list):
        raise UsageError(f"{where}, field {key}: found {abbreviate(value)}, expected a list.")
    return value


def abbreviate(value: object) -> str:
    """A value in a message, cut to a short length."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}..."


def format_number(value: float) -> str:
    """A number in its shortest exact form: 12, not 12.0."""
    return str(int(value)) if value == int(value) else repr(float(value))


def to_json_number(value: float) -> int | float:
    """Like `format_number`, for JSON."""
    return int(value) if value == int(value) else float(value)


def decode_text(data: bytes, where: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        UsageError: it is not UTF-8. `where` names the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}, byte {error.start}: not UTF-8 text. Save the file as UTF-8.") from None
