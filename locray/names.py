"""The known name that is nearest to a mistyped one, for messages. Used wherever users name things."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the given one, if any is near."""
    matches = get_close_matches(name, sorted(known), n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: `; did you mean 'resnet18'?`, or nothing where no known name is near."""
    found = nearest(name, known)
    return f"; did you mean {found!r}?" if found else ""
