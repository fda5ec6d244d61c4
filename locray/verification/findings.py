"""What a verification looks for, and what it has found: counts, and the first few by name. Used by the checks."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

NAMED = 5
"""So many of each finding are named."""


class Check(StrEnum):
    """What is looked for; `MEANING` says what it means to have found it."""

    SCHEMA = "schema"
    FILE_MISSING = "file_missing"
    FILE_SIZE = "file_size"
    FILE_UNREADABLE = "file_unreadable"
    FILE_ROWS = "file_rows"
    FILE_BOUNDS = "file_bounds"
    DUPLICATE = "duplicate"
    NULL = "null"
    STATUS = "status"
    ERROR = "error"
    FRAME = "frame"
    DETECTIONS = "detections"
    BOX = "box"
    SCORE = "score"
    LABEL = "label"
    PREDICTION = "prediction"
    IMAGE_WITHOUT_ROW = "image_without_row"
    IMAGE_CHANGED = "image_changed"
    IMAGE_GONE = "image_gone"
    FILE_REMOVED = "file_removed"
    FILE_UNREFERENCED = "file_unreferenced"
    NOT_COMPARED = "not_compared"


MEANING = {
    Check.SCHEMA: "the table, or a file, has other columns than a predictions table; rows of such a file are not read",
    Check.FILE_MISSING: "the log refers to a file that is not there",
    Check.FILE_SIZE: "a file has not the size that the log says",
    Check.FILE_UNREADABLE: "a file, or a part of it, can't be read: cut off, damaged, or access is denied",
    Check.FILE_ROWS: "a file has not as many rows as the log says",
    Check.FILE_BOUNDS: "image URIs lie outside of what the log says of their file: readers that filter skip them",
    Check.DUPLICATE: "a key (image, version, model, configuration) has several rows",
    Check.NULL: "a row without a value where each must have one",
    Check.STATUS: "a status other than ok and failed",
    Check.ERROR: "a failed row without a code of the closed set, or an ok one with a code or message",
    Check.FRAME: "an ok row without width, height or format",
    Check.DETECTIONS: "an ok row without a list of detections, or a failed one with a list",
    Check.BOX: "a box that is not finite, is empty or reaches out of its image",
    Check.SCORE: "a score outside of [0, 1], or not in order, highest first",
    Check.LABEL: "a detection without a label",
    Check.PREDICTION: "the model says something else of the image, now and alone, than the row",
    Check.IMAGE_WITHOUT_ROW: "a listed image that the table has no row of",
    Check.IMAGE_CHANGED: "a listed image that the table has rows of other versions of only",
    Check.IMAGE_GONE: "an image that the table has a row of, and the listing has not",
    Check.FILE_REMOVED: "a file of an older version of the table, that a vacuum will delete in its time",
    Check.FILE_UNREFERENCED: "a file in the folder that no version of the table refers to: a crashed run's, or foreign",
    Check.NOT_COMPARED: "an image of the sample that can't be had any more in the version of its row",
}

PENDING = frozenset({Check.IMAGE_WITHOUT_ROW, Check.IMAGE_CHANGED})
"""What the next labelling run will take up."""

NOTES = frozenset({Check.IMAGE_GONE, Check.FILE_REMOVED, Check.FILE_UNREFERENCED, Check.NOT_COMPARED})
"""What may be so in a sound table. All other checks look for faults."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How often something was found, and where first."""

    count: int
    first: tuple[str, ...]


class Findings:
    """Gathers what the checks find, in bounded memory."""

    def __init__(self) -> None:
        self._found: dict[Check, Finding] = {}

    def add(self, check: Check, count: int, names: Iterable[str]) -> None:
        """Counts what was found, if anything; `names` are as many as there are, or the first `NAMED`."""
        if count:
            before = self._found.get(check, Finding(0, ()))
            self._found[check] = Finding(before.count + count, (*before.first, *names)[:NAMED])

    @property
    def faults(self) -> dict[Check, Finding]:
        """What must not be in a table."""
        return self._those(lambda check: check not in PENDING | NOTES)

    @property
    def pending(self) -> dict[Check, Finding]:
        """What the next labelling run will take up."""
        return self._those(PENDING.__contains__)

    @property
    def notes(self) -> dict[Check, Finding]:
        """What may be so in a sound table."""
        return self._those(NOTES.__contains__)

    def _those(self, wanted: Any) -> dict[Check, Finding]:
        return {check: self._found[check] for check in Check if check in self._found and wanted(check)}


def plain(found: Mapping[Check, Finding]) -> dict[str, Any]:
    """Findings as plain values, for JSON."""
    return {str(check): asdict(finding) for check, finding in found.items()}
