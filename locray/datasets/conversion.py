"""`locray convert`: reads all splits of a data set and writes them in another format."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from locray import storage
from locray.config import ConvertConfig
from locray.datasets import Dataset, SkipReason, check_nothing_skipped, list_splits, read_split
from locray.datasets.builder import DatasetBuilder
from locray.datasets.records import Annotation, ImageAnnotations
from locray.datasets.writable import WRITABLE, Content, WritableFormat, contents_of, unique_names
from locray.errors import StoreError, UsageError
from locray.images.decode import DecodeLimits, ImageFailure, decode_image
from locray.images.exif import boxes_in_upright_frame
from locray.images.fetch import Deferred, FetchRequest, fetch_images
from locray.progress import Progress, Report
from locray.storage.folders import list_objects
from locray.storage.uris import split_s3

_NUM_WRITERS = 16


@dataclass(frozen=True, slots=True)
class ConversionSummary:
    """Result of a conversion, as `--json` prints it."""

    output: str
    to: str
    splits: dict[str, int]
    """Images by split."""
    images: int
    boxes: int
    classes: int
    copied_images: int
    skipped: dict[str, int]
    """Counts by `SkipReason`."""
    errors: dict[str, int]
    """Images that could not be read or decoded, by `ErrorCode`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Size:
    """An upright image, and the EXIF orientation that made it upright."""

    width_px: int
    height_px: int
    orientation: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the images of a conversion go, and which of them have to be decoded for their size."""

    filenames: dict[tuple[str, str], str]
    """The image's name in the output's annotations, by split and URI."""
    copies: dict[str, list[str]]
    """Paths below the output, by URI."""
    decoded: set[str]
    """URIs."""


def convert(config: ConvertConfig, report: Report) -> ConversionSummary:
    """Writes the data set of `config` in the format `config.to`.

    Images are copied where the format keeps them beside its annotations. Annotation files are written last.

    Raises:
        UsageError: data that can't be read, data that the format can't hold, or an output that is not empty.
        StoreError: the store failed.
    """
    target, output_uri = WRITABLE[config.to], storage.normalise(config.output)
    _check_output(output_uri, storage.normalise(config.data))
    datasets = [read_split(config, split) for split in list_splits(config.data, config.format) or ["train"]]
    _check_content(datasets, config.to)
    plan = _make_plan(datasets, target)
    sizes, failures = _process_images(plan, output_uri, config, report)
    converted = [_convert_split(dataset, sizes, failures, config) for dataset in datasets]
    images = {dataset.split: _annotations(dataset, plan) for dataset in converted}
    for path, data in target.files(images).items():
        storage.write_bytes(storage.join(output_uri, path), data)
    objects = [each for dataset in converted for record in dataset.records for each in record.objects]
    return ConversionSummary(
        output=output_uri,
        to=config.to,
        splits={split: len(of_one) for split, of_one in images.items()},
        images=sum(map(len, images.values())),
        boxes=sum(each.box_xyxy_px is not None for each in objects),
        classes=len({each.label for each in objects}),
        copied_images=len(plan.copies.keys() - failures.keys()),
        skipped=dict(sorted(sum((Counter(one.skipped) for one in (*datasets, *converted)), Counter()).items())),
        errors=dict(sorted(Counter(str(failure.code) for failure in failures.values()).items())),
    )


def _check_output(output_uri: str, data_uri: str) -> None:
    if f"{output_uri}/".startswith(f"{data_uri}/"):
        raise UsageError(f"The output {output_uri} lies in the data set. Expected a folder outside of it.")
    if storage.folder_exists(output_uri):
        if _holds_files(output_uri):
            raise UsageError(f"The output {output_uri} is not empty. Expected a new or an empty folder.")
    elif storage.exists(output_uri):
        raise UsageError(f"The output {output_uri} is a file. Expected a new or an empty folder.")


def _holds_files(folder_uri: str) -> bool:
    if not storage.is_remote(folder_uri):
        return bool(storage.list_uris(folder_uri))
    bucket, key = split_s3(folder_uri)
    return any(list_objects(bucket, f"{key}/".lstrip("/")))  # stops at the first of possibly very many


def _check_content(datasets: Iterable[Dataset], to: str) -> None:
    """Raises UsageError for content that the format can't hold, except crowds, which are skipped."""
    first: dict[Content, str] = {}
    for dataset in datasets:
        for record in dataset.records:
            for content in contents_of(_without_crowds(record.objects)):
                first.setdefault(content, f"split {dataset.split!r}, {record.image_uri}")
    found = [content for content in first if content in WRITABLE[to].cannot_hold]
    if found:
        others = [name for name, format_ in WRITABLE.items() if not format_.cannot_hold & first.keys()]
        raise UsageError(
            f"The format {to} can't hold {' or '.join(found)}. Found in {first[found[0]]}. "
            f"Expected --to {' or '.join(others) or 'another format'} for this data."
        )


def _without_crowds(objects: Sequence[Annotation]) -> tuple[Annotation, ...]:
    return tuple(annotation for annotation in objects if not annotation.is_crowd)


def _make_plan(datasets: Sequence[Dataset], target: WritableFormat) -> _Plan:
    names = unique_names(record.image_uri for dataset in datasets for record in dataset.records)
    plan = _Plan({}, {}, set())
    for dataset in datasets:
        for record in dataset.records:
            uri = record.image_uri
            filename = uri
            objects = _without_crowds(record.objects)
            if not (target.references_images and (storage.is_remote(uri) or uri.startswith("/"))):
                label = objects[0].label if objects else ""
                filename = f"{target.image_folder.format(split=dataset.split, label=label)}/{names[uri]}"
                paths = plan.copies.setdefault(uri, [])
                if filename not in paths:
                    paths.append(filename)
            plan.filenames[dataset.split, uri] = filename
            if target.needs_size(record):
                plan.decoded.add(uri)
    return plan


def _process_images(
    plan: _Plan, output_uri: str, config: ConvertConfig, report: Report
) -> tuple[dict[str, _Size], dict[str, ImageFailure]]:
    """Copies and decodes images as planned.

    Returns:
        Sizes of the decoded images, and failures to read or decode an image, by URI.

    Raises:
        UsageError: a failure, under `strict`.
        StoreError: the store failed.
    """
    sizes: dict[str, _Size] = {}
    failures: dict[str, ImageFailure] = {}
    limits = DecodeLimits.of(config)

    def fail(uri: str, failure: ImageFailure) -> None:
        if config.strict:
            raise UsageError(
                f"{uri}: {failure.code} ({failure.message}). Expected images that can all be used, as --strict "
                "demands: repair or remove the image, or run without --strict to skip it."
            )
        failures[uri] = failure

    def process(uri: str, data: bytes) -> None:
        if uri in plan.decoded:
            image = decode_image(data, limits, min_longer_side_px=1)
            if isinstance(image, ImageFailure):
                fail(uri, image)
                return
            sizes[uri] = _Size(image.width_px, image.height_px, image.orientation)
        for path in plan.copies.get(uri, ()):
            storage.write_bytes(storage.join(output_uri, path), data)

    uris = sorted(plan.copies.keys() | plan.decoded)
    requests = [FetchRequest(uri, None, None) for uri in uris]
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS) as writers:
        for done, (index, outcome) in enumerate(fetch_images(requests, max_bytes=config.max_bytes), start=1):
            uri = uris[index]
            if isinstance(outcome, Deferred):
                raise StoreError(f"{uri}: {outcome.reason}")
            if isinstance(outcome, ImageFailure):
                fail(uri, outcome)
            else:
                pending.append(writers.submit(process, uri, outcome.data))
            if len(pending) > _NUM_WRITERS:
                pending.popleft().result()
            report(Progress("images", done, len(uris)))
        for future in pending:
            future.result()
    return sizes, failures


def _convert_split(
    dataset: Dataset,
    sizes: Mapping[str, _Size],
    failures: Mapping[str, ImageFailure],
    config: ConvertConfig,
) -> Dataset:
    """The split without unusable images, and with boxes in pixels of each decoded image."""
    target = WRITABLE[config.to]
    builder = DatasetBuilder(config.data, dataset.split)
    for record in dataset.records:
        if record.image_uri in failures:
            continue
        objects, size = record.objects, sizes.get(record.image_uri)
        if Content.CROWD in target.cannot_hold:
            objects = _without_crowds(objects)
            for _ in range(len(record.objects) - len(objects)):
                builder.skip(SkipReason.CROWD, record.where or record.image_uri)
        image = ImageAnnotations(None, objects, record.width_px, record.height_px, record.where)
        builder.add(record.image_uri, image if size is None else _in_pixels(image, size, record.is_stored))
    converted = builder.build()
    if config.strict:
        check_nothing_skipped(converted)
    return converted


def _in_pixels(image: ImageAnnotations, size: _Size, is_stored: bool) -> ImageAnnotations:
    """The boxes in pixels of the upright image."""
    frame_wh, upright_wh = (image.width_px or 0, image.height_px or 0), (size.width_px, size.height_px)
    objects = []
    for annotation in image.objects:
        box = annotation.box_xyxy_px
        if box is not None:
            upright = boxes_in_upright_frame(np.array(box), frame_wh, upright_wh, size.orientation, is_stored=is_stored)
            xmin, ymin, xmax, ymax = upright.tolist()
            box = xmin, ymin, xmax, ymax
        objects.append(replace(annotation, box_xyxy_px=box))
    return replace(image, objects=tuple(objects), width_px=size.width_px, height_px=size.height_px)


def _annotations(dataset: Dataset, plan: _Plan) -> list[ImageAnnotations]:
    return [
        ImageAnnotations(
            plan.filenames[dataset.split, record.image_uri],
            record.objects,
            record.width_px,
            record.height_px,
            record.where,
        )
        for record in dataset.records
    ]
