"""What became of each image of a worklist, in memory that 10^9 of them fit into. Used by the committer and its list."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from locray.errors import DeferralCause, ErrorCode

_CAUSES = pa.array([None, *dict.fromkeys([*map(str, DeferralCause), *map(str, ErrorCode)])], pa.string())
"""What a number of `ImageOutcomes` stands for; 0: nothing is known."""
_NUMBERS = {cause: number for number, cause in enumerate(_CAUSES.to_pylist())}


class Bitmap:
    """Which ordinals have been seen: one bit an image."""

    def __init__(self, num_images: int) -> None:
        self._bits = np.zeros(-(-num_images // 8), dtype=np.uint8)

    def add(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks the ordinals; says of each whether it is the first time, also within the array itself."""
        first_here = np.zeros(len(ordinals), dtype=bool)
        first_here[np.unique(ordinals, return_index=True)[1]] = True
        fresh = first_here & ~self.holds(ordinals)
        np.bitwise_or.at(self._bits, ordinals >> 3, _bit(ordinals))
        return np.asarray(fresh)

    def holds(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the ordinals have been seen."""
        return np.asarray((self._bits[ordinals >> 3] & _bit(ordinals)) != 0)


def _bit(ordinals: NDArray[np.int64]) -> NDArray[np.uint8]:
    return (1 << (ordinals & 7)).astype(np.uint8)


class ImageOutcomes:
    """Of each image whether it was seen, and why it was deferred, if it was."""

    def __init__(self, num_images: int) -> None:
        self._seen = Bitmap(num_images)
        self._causes = np.zeros(num_images, dtype=np.uint8)
        """A byte an image, but of the pages in which nothing is deferred, the system makes none."""

    def add(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks the images as seen; says of each whether it is the first time, also within the array itself."""
        return self._seen.add(ordinals)

    def defer(self, ordinals: NDArray[np.int64], causes: list[str]) -> None:
        """Notes why images that were seen are deferred: a `DeferralCause`, or the code that a failed one would have."""
        self._causes[ordinals] = [_NUMBERS[cause] for cause in causes]

    def causes(self, ordinals: NDArray[np.int64]) -> pa.StringArray:
        """Why each image is deferred: not tried if it was not seen; null if it isn't deferred."""
        not_tried = np.uint8(_NUMBERS[DeferralCause.NOT_TRIED])
        numbers = np.where(self._seen.holds(ordinals), self._causes[ordinals], not_tried)
        return _CAUSES.take(pa.array(numbers))
