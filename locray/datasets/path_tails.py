"""Paths that were written on another machine, found again by their longest tail."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from locray.datasets.files import SPLIT_NAMES, canonical_split, folded

Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TailMatch:
    """A path below the data's root, and how many names at the end of the written path it shares.

    `is_whole` says that the tail is the whole path below the root, `is_exact` that it is all that was written, too.
    """

    path: str
    num_shared: int
    is_whole: bool
    is_exact: bool = False


class PathTails:
    """Paths below a root, by their last name. Both may lie deeper or less deep than where a path was written."""

    def __init__(self, root_uri: str, paths: Iterable[str]) -> None:
        self._root = parts_of(root_uri)
        self._paths = {folded(path): path for path in paths}
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for key in self._paths:
            self._by_name[(parts_of(key) or self._root[-1:] or ("",))[-1]].append(key)

    def find(self, written: str, folders: Sequence[str] = ("",)) -> TailMatch | None:
        """The path that is meant: `written` below one of the folders, else the one with the longest tail in common.

        None if there is none, if several share as much, or if the rest of both paths names different splits.
        """
        parts = parts_of(folded(written))
        for folder in folders:
            key = posixpath.join(folded(folder), *parts) if parts else folded(folder)
            if key in self._paths:
                return TailMatch(self._paths[key], len(parts), is_whole=True, is_exact=True)
        keys = self._by_name.get(parts[-1], ()) if parts else ()
        matches = [match for key in keys if (match := self._match(key, parts))]
        if not matches:
            return None
        longest = max((match.num_shared, match.is_whole) for match in matches)
        best = [match for match in matches if (match.num_shared, match.is_whole) == longest]
        return best[0] if len(best) == 1 else None

    def _match(self, key: str, parts: Parts) -> TailMatch | None:
        below = parts_of(key)
        whole = (*self._root, *below)
        shared = 0
        for one, other in zip(reversed(whole), reversed(parts), strict=False):
            if one != other:
                break
            shared += 1
        rests = [_splits_in(rest) for rest in (below[: max(len(below) - shared, 0)], parts[: len(parts) - shared])]
        if all(rests) and rests[0].isdisjoint(rests[1]):
            return None
        return TailMatch(self._paths[key], shared, is_whole=shared >= len(below))


def parts_of(path: str) -> Parts:
    """The names on a path of any system, without drive, `.` and `..`."""
    parts = posixpath.normpath(path.strip().replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))


def _splits_in(parts: Parts) -> set[str]:
    return {canonical_split(part) for part in parts if part.lower() in SPLIT_NAMES}
