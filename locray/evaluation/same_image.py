"""Which row of a table is about which image, where the two name it differently. Called by `table`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SameImages:
    """For each image the position of its row. What is missing or ambiguous has none."""

    row_of: dict[int, int]
    ambiguous: list[int]
    """Images that share the end of their path with several rows, or a row with other images."""


def match_uris(image_uris: Sequence[str], row_uris: Sequence[str]) -> SameImages:
    """Finds the row of each image; a row belongs to one image only.

    An equal URI comes first. Of what is left, an image and a row belong together if their paths end in the same
    segments, the file name at least: the most segments in common win, and only a pair that is the only one with them
    counts. `/data/val/a/1.jpg` and `s3://bucket/a/1.jpg` are the same image even where `s3://bucket/b/1.jpg` is there.

    Args:
        image_uris: All different.
        row_uris: All different.
    """
    position_of = {uri: position for position, uri in enumerate(row_uris)}
    row_of = {image: position_of[uri] for image, uri in enumerate(image_uris) if uri in position_of}
    taken = set(row_of.values())
    images = {image: _segments(uri) for image, uri in enumerate(image_uris) if image not in row_of}
    rows = {row: _segments(uri) for row, uri in enumerate(row_uris) if row not in taken}
    ambiguous: list[int] = []
    deepest = min(max(map(len, images.values()), default=0), max(map(len, rows.values()), default=0))
    for depth in range(deepest, 0, -1):
        rows_ending, images_ending = _by_ending(rows, depth), _by_ending(images, depth)
        for ending in rows_ending.keys() & images_ending.keys():
            same_images, same_rows = images_ending[ending], rows_ending[ending]
            if len(same_images) == len(same_rows) == 1:
                row_of[same_images[0]] = same_rows[0]
            else:
                ambiguous += same_images
            for image in same_images:
                del images[image]
            for row in same_rows:
                del rows[row]
    return SameImages(row_of, sorted(ambiguous))


def file_name(uri: str) -> str:
    """The last segment of a URI."""
    return uri.rsplit("/", 1)[-1]


def _segments(uri: str) -> list[str]:
    return uri.split("/")


def _by_ending(segments_of: dict[int, list[str]], depth: int) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, segments in segments_of.items():
        if len(segments) >= depth:
            found[tuple(segments[-depth:])].append(position)
    return found
