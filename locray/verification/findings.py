"""Checks of a verification and its findings: counts, and the first few examples by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

MAX_EXAMPLES = 5
"""Examples that are kept of each finding."""


class Check(StrEnum):
    """Kind of check; `MEANING` describes the finding."""

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
    Check.SCHEMA: "the table or a file has other columns than a predictions table; rows of such a file are not read",
    Check.FILE_MISSING: "the log refers to a file that does not exist",
    Check.FILE_SIZE: "the size of a file differs from the log",
    Check.FILE_UNREADABLE: "a file, or a part of it, can't be read: it is truncated or damaged, or access is denied",
    Check.FILE_ROWS: "the number of rows in a file differs from the log",
    Check.FILE_BOUNDS: "image URIs lie outside the bounds that the log gives for their file: filtered reads miss them",
    Check.DUPLICATE: "several rows have the same key (image, version, model, configuration)",
    Check.NULL: "a value is null in a column that must not be null",
    Check.STATUS: "the status is neither ok nor failed",
    Check.ERROR: "a failed row has no known error code, or an ok row has an error code or message",
    Check.FRAME: "an ok row has no width, height or format",
    Check.DETECTIONS: "an ok row has no list of detections, or a failed row has one",
    Check.BOX: "a box is not finite, is empty or reaches out of its image",
    Check.SCORE: "a score is outside [0, 1], or scores are not in descending order",
    Check.LABEL: "a detection has no label",
    Check.PREDICTION: "predicting the image again, by itself, gives a different result than its row",
    Check.IMAGE_WITHOUT_ROW: "a listed image has no row",
    Check.IMAGE_CHANGED: "a listed image only has rows of other versions",
    Check.IMAGE_GONE: "an image that has a row is not listed",
    Check.FILE_REMOVED: "a file belongs to an older version of the table; a later vacuum deletes it",
    Check.FILE_UNREFERENCED: "no version of the table refers to a file: a crashed run or another program wrote it",
    Check.NOT_COMPARED: "an image of the sample is no longer available in the version of its row",
}

PENDING = frozenset({Check.IMAGE_WITHOUT_ROW, Check.IMAGE_CHANGED})
"""Images that the next labelling run will label."""

NOTES = frozenset({Check.IMAGE_GONE, Check.FILE_REMOVED, Check.FILE_UNREFERENCED, Check.NOT_COMPARED})
"""Findings that a correct table may have. All checks that are neither pending nor notes are faults."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How often something was found, and the first examples."""

    count: int
    first: tuple[str, ...]


class Findings:
    """Collects the findings of the checks, in bounded memory."""

    def __init__(self) -> None:
        self._found: dict[Check, Finding] = {}

    def add(self, check: Check, count: int, examples: Iterable[str]) -> None:
        """Adds to the count of a check. `examples` holds all that were found, or at least `MAX_EXAMPLES`."""
        if count:
            before = self._found.get(check, Finding(0, ()))
            self._found[check] = Finding(before.count + count, (*before.first, *examples)[:MAX_EXAMPLES])

    @property
    def faults(self) -> dict[Check, Finding]:
        """Findings that a correct table does not have."""
        return self._select(lambda check: check not in PENDING | NOTES)

    @property
    def pending(self) -> dict[Check, Finding]:
        """Images that the next labelling run will label."""
        return self._select(PENDING.__contains__)

    @property
    def notes(self) -> dict[Check, Finding]:
        """Findings that a correct table may have."""
        return self._select(NOTES.__contains__)

    def _select(self, is_wanted: Callable[[Check], bool]) -> dict[Check, Finding]:
        return {check: self._found[check] for check in Check if check in self._found and is_wanted(check)}


def findings_to_dict(found: Mapping[Check, Finding]) -> dict[str, Any]:
    """Findings as plain values, for JSON."""
    return {str(check): asdict(finding) for check, finding in found.items()}
