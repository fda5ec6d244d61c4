"""The nearest known name to a mistyped one, for messages. Called where users name models, trunks and classes."""

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a message: `; did you mean 'resnet18'?`, or nothing when no known name is near."""
    matches = get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
