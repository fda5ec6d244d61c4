"""The files of a batch, for images that need several of them. Called by `samples`."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from locray.images.decode import ImageFailure
from locray.images.fetch import Deferred, Fetched, FetchRequest, fetch_images

Outcome = Fetched | ImageFailure | Deferred


def gather(
    needs: Sequence[tuple[int, ...]], image_uris: Sequence[str], max_bytes: int
) -> Iterator[tuple[int, list[Outcome]]]:
    """Fetches all files at once, and yields each image as soon as its last file is there.

    A file that several images need is fetched once, and kept until the last of them has been yielded.

    Args:
        needs: For each image the indices of its files in `image_uris`.
        image_uris: Where the files are.
        max_bytes: A larger file is not fetched.

    Yields:
        The image's index in `needs`, and the outcome of each of its files.
    """
    users: defaultdict[int, list[int]] = defaultdict(list)
    for image, files in enumerate(needs):
        for file in set(files):
            users[file].append(image)
    order = list(dict.fromkeys(file for files in needs for file in files))
    missing = [len(set(files)) for files in needs]
    uses_left = Counter({file: len(images) for file, images in users.items()})
    arrived: dict[int, Outcome] = {}
    requests = [FetchRequest(image_uris[file], None, None) for file in order]
    for index, outcome in fetch_images(requests, max_bytes=max_bytes):
        arrived[order[index]] = outcome
        for image in users[order[index]]:
            missing[image] -= 1
            if missing[image]:
                continue
            yield image, [arrived[file] for file in needs[image]]
            for file in set(needs[image]):
                uses_left[file] -= 1
                if not uses_left[file]:
                    del arrived[file]
