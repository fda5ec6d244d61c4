"""What a data set shows before a training that is no error, and often a mistake."""

import logging
from collections.abc import Sequence

from locray.config.common import ImageLimits
from locray.datasets import Dataset
from locray.datasets.records import Record
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.exif import UPRIGHT, stored_by_frame
from locray.images.fetch import Fetched, FetchRequest, fetch_images

MIN_SHARE_WITH_SEVERAL = 0.1
"""Share of images with several objects from which on a model of one object per image is unlikely to be meant."""

_SAMPLED_IMAGES = 64
_RELATIVE_FRAME = (1, 1)
_log = logging.getLogger(__name__)


def log_data_warnings(model: str | None, dataset: Dataset, limits: ImageLimits) -> None:
    """Logs a line for each thing in the data that does not suit the model, or that contradicts itself.

    Args:
        model: Architecture to train, such as `localizer/resnet18`; None if it is not known.
        dataset: The split to train on. A sample of its images is fetched.
        limits: For decoding.
    """
    for warning in (several_objects_warning(model, dataset), mixed_frames_warning(dataset.records, limits)):
        if warning is not None:
            _log.warning("%s", warning)


def num_with_several_objects(dataset: Dataset) -> int:
    """Images with more than one object that is no crowd."""
    return sum(sum(not one.is_crowd for one in record.objects) > 1 for record in dataset.records)


def several_objects_warning(model: str | None, dataset: Dataset) -> str | None:
    """A line if a model of one object per image would learn from many images with several."""
    if model is None or model.startswith("detector/"):
        return None
    several, total = num_with_several_objects(dataset), len(dataset.records)
    if several < MIN_SHARE_WITH_SEVERAL * total:
        return None
    return (
        f"{several:,} of {total:,} images of split {dataset.split!r} hold several objects, and {model} finds one per "
        "image: it learns the largest of each. To find all, train a detector/<name>"
    )


def mixed_frames_warning(records: Sequence[Record], limits: ImageLimits) -> str | None:
    """A line if some images that EXIF turns are annotated as stored, and others upright or taken as upright.

    An image that can't be fetched or decoded shows nothing here; the training counts it.
    """
    annotated = [record for record in records if any(one.box_xyxy_px is not None for one in record.objects)]
    sample = annotated[:: -(-len(annotated) // _SAMPLED_IMAGES) or 1]
    requests = [FetchRequest(record.image_uri, None, None) for record in sample]
    stored, upright, unknown = 0, 0, 0
    is_stored = any(record.is_stored for record in sample)
    for index, outcome in fetch_images(requests, max_bytes=limits.max_bytes):
        if not isinstance(outcome, Fetched):
            continue
        decoded = decode_image(outcome.data, DecodeLimits.of(limits), min_longer_side_px=1)
        if not isinstance(decoded, DecodedImage) or decoded.orientation == UPRIGHT:
            continue
        frame = (sample[index].width_px or 0, sample[index].height_px or 0)
        as_stored = stored_by_frame(frame, (decoded.width_px, decoded.height_px), decoded.orientation)
        stored += as_stored is True
        upright += as_stored is False
        unknown += as_stored is None
    taken = "stored" if is_stored else "upright"
    against = upright if is_stored else stored
    if not (stored and upright) and not (against and unknown):
        return None
    return (
        f"of {stored + upright + unknown} sampled images that EXIF turns, {stored} are annotated in the stored frame "
        f"and {upright} in the upright one, by the sizes in their annotations; {unknown} can't be told and are taken "
        f"as {taken}. See `locray preview`; --annotated-frame says what boxes refer to where sizes don't tell"
    )
