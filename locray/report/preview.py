"""The page of `locray preview`: training images as a network sees them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from locray import storage
from locray.config import PreviewConfig
from locray.config.common import ImageLimits
from locray.config.training import AugmentationOptions
from locray.datasets import Dataset, read_split
from locray.datasets.records import SkipReason
from locray.errors import UsageError
from locray.models.architectures import default_input_size_px
from locray.models.interface import NO_OBJECT
from locray.progress import Progress, Report
from locray.report.page import Picture, PictureBox, hues, picture_values, render_template
from locray.training.batches import (
    BOXES,
    HAS_BOX,
    IMAGES,
    LABEL_IDS,
    NUM_OUTSIDE,
    OUTCOME_NAMES,
    OUTCOMES,
    Batch,
    BatchMaker,
    strict_error,
)
from locray.training.data_warnings import log_data_warnings, num_with_several_objects
from locray.training.packed import BatchOrder, PackedRecords

NUM_VERSIONS = 5
DEFAULT_INPUT_SIZE_PX = 224
"""Usual for photographs; of a preview without a model whose input size could be used."""

_RECORDS_PER_BATCH = 8


@dataclass(frozen=True, slots=True)
class PreviewSummary:
    """Content of the page, as `--json` prints it.

    Attributes:
        page: URI of the page.
        images: Images of the split.
        shown: Images on the page.
        skipped: Annotations that can't be used, by reason; boxes outside their image are known for chosen images only.
        errors: Chosen images that can't be used, by error code.
    """

    page: str
    images: int
    shown: int
    skipped: dict[str, int]
    errors: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _RecordPreview:
    """Pictures of a record, as it is and augmented; none where its image can't be used.

    `num_outside` counts its boxes that lie wholly outside the image.
    """

    outcome: str
    pictures: tuple[Picture, ...]
    num_outside: int


def preview(config: PreviewConfig, report: Report) -> PreviewSummary:
    """Reads a split, makes network inputs of some of its images as training does, and writes the page.

    Raises:
        UsageError: data set, split or output is invalid, or no image can be used; with `--strict`, an annotation or an
            image can't be used.
        StoreError: the store failed.
    """
    output = _checked_output(config.output)
    report(Progress("reading annotations"))
    dataset = read_split(config, config.split)
    log_data_warnings(config.model, dataset, config)
    hue_of_label = hues(dataset.classes)
    rows = _chosen(len(dataset.records), config.count, config.seed)
    records, errors, skipped = [], Counter[str](), Counter(dataset.skipped)
    for preview_of_record in _previews(config, dataset, rows, report):
        skipped += Counter({str(SkipReason.OUTSIDE_BOX): preview_of_record.num_outside})
        if preview_of_record.pictures:
            records.append([picture_values(picture, hue_of_label) for picture in preview_of_record.pictures])
        else:
            errors[preview_of_record.outcome] += 1
    if not records:
        raise UsageError(
            f"none of {len(rows)} images of split {config.split!r} can be used ({_counted(errors)}). The first is "
            f"{dataset.records[rows[0]].image_uri}: check that it opens in an image viewer"
        )
    texts = _texts(config, dataset, len(records), skipped, errors)
    storage.write_bytes(output, render_template("preview.html", records=records, **texts).encode())
    return PreviewSummary(output, len(dataset.records), len(records), dict(skipped), dict(errors))


def _checked_output(name: str) -> str:
    """The URI to write to, checked before any work."""
    uri = storage.normalise(name)
    if storage.is_remote(uri):
        return uri
    path = Path(storage.local_path(uri))
    if path.is_dir():
        raise UsageError(
            f"the output is a folder: {path}. Expected the name of an HTML file, such as {path / 'page.html'}"
        )
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"the output lies below a file: {folder}. Expected a path whose folders can be made")
    return uri


def _chosen(num_records: int, count: int, seed: int) -> list[int]:
    """Randomly chosen records, in their order."""
    chosen = np.random.default_rng(seed).choice(num_records, min(count, num_records), replace=False)
    return sorted(int(row) for row in chosen)


def _previews(config: PreviewConfig, dataset: Dataset, rows: Sequence[int], report: Report) -> Iterator[_RecordPreview]:
    """Each record as in labelling, and as augmented in the first epochs of a training."""
    packed = PackedRecords.of(dataset.records, dataset.classes)
    makers = [
        BatchMaker(
            packed=packed,
            order=BatchOrder(len(packed), 1, 1, None),
            options=config,
            input_size_px=_input_size_px(config),
            augmented=augmented,
        )
        for augmented in (False, True)
    ]
    for start in range(0, len(rows), _RECORDS_PER_BATCH):
        report(Progress("making pictures", start, len(rows)))
        part = rows[start : start + _RECORDS_PER_BATCH]
        versions = [makers[0].batch_of(part, 0), *(makers[1].batch_of(part, epoch) for epoch in range(NUM_VERSIONS))]
        error = strict_error(versions[0], [packed.image_uris[row] for row in part]) if config.strict else None
        if error is not None:
            raise UsageError(error)
        for place, row in enumerate(part):
            outcome = OUTCOME_NAMES[int(versions[0][OUTCOMES][place])]
            num_outside = int(versions[0][NUM_OUTSIDE][place])
            name = unquote(dataset.records[row].image_uri.rpartition("/")[2])
            names = [name, *(f"epoch {version}" for version in range(1, NUM_VERSIONS + 1))]
            pictures = tuple(
                _picture(title, batch, place, dataset.classes) for title, batch in zip(names, versions, strict=True)
            )
            yield _RecordPreview(outcome, pictures if outcome == OUTCOME_NAMES[0] else (), num_outside)
    report(Progress("making pictures", len(rows), len(rows)))


def _input_size_px(config: PreviewConfig) -> int:
    if config.input_size is not None or config.model is None:
        return config.input_size or DEFAULT_INPUT_SIZE_PX
    return default_input_size_px(config.model)


def _picture(name: str, batch: Batch, place: int, classes: Sequence[str]) -> Picture:
    """One network input with its objects."""
    boxes = []
    for label_id, has_box, corners in zip(
        batch[LABEL_IDS][place].tolist(), batch[HAS_BOX][place].tolist(), batch[BOXES][place].tolist(), strict=True
    ):
        if label_id != NO_OBJECT:
            boxes.append(PictureBox(classes[label_id], None, tuple(corners) if has_box else None))
    return Picture(name, batch[IMAGES][place].astype(np.uint8, copy=False), tuple(boxes))


def _texts(
    config: PreviewConfig, dataset: Dataset, num_shown: int, skipped: Mapping[str, int], errors: Mapping[str, int]
) -> dict[str, Any]:
    """Texts of the page."""
    objects = [found for record in dataset.records for found in record.objects]
    facts = {
        "images": f"{len(dataset.records):,}",
        "shown": f"{num_shown:,}",
        "objects": f"{len(objects):,}",
        "classes": f"{len(dataset.classes):,}",
    }
    without_box = sum(found.box_xyxy_px is None for found in objects)
    if without_box:
        facts["objects without a box"] = f"{without_box:,}"
    several = num_with_several_objects(dataset)
    if several:
        facts["images with several objects"] = f"{several:,}"
    if dataset.num_clipped_boxes:
        facts["boxes clipped to their image"] = f"{dataset.num_clipped_boxes:,}"
    options = config.model_dump(include=set(AugmentationOptions.model_fields) - set(ImageLimits.model_fields))
    options["input_size"] = _input_size_px(config)
    return {
        "title": f"{dataset.name}: {dataset.split}",
        "summary": (
            "Images of the data set as input of a network: on the left as in labelling, to the right as augmented in "
            f"{NUM_VERSIONS} epochs of a training, with the boxes that the network learns."
        ),
        "facts": facts,
        "options": {"--" + name.replace("_", "-"): str(value) for name, value in options.items()},
        "skipped": [(reason, count, dataset.skip_examples.get(reason, ())) for reason, count in skipped.items()],
        "errors": errors,
    }


def _counted(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {code}" for code, count in errors.items())
