"""`locray preview`: a page of training images as a network sees them. Called by the command line."""

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
from locray.datasets import Dataset, read_dataset
from locray.datasets.records import SkipReason
from locray.errors import UsageError
from locray.models.interface import NO_OBJECT
from locray.progress import Progress, Report
from locray.report.figures import Box, Picture, figure, hues
from locray.report.html import render_template
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
from locray.training.packed import BatchOrder, PackedRecords

NUM_VERSIONS = 5
DEFAULT_INPUT_SIZE_PX = 224
"""Of the networks that photographs are usually given to; there is no model to ask."""

_RECORDS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PreviewSummary:
    """What the page shows, as `--json` prints it."""

    page: str
    images: int
    """Of the split."""
    shown: int
    skipped: dict[str, int]
    """Annotations that can't be learned from, by reason; boxes beside their image only of the images shown."""
    errors: dict[str, int]
    """Images that were to be shown and can't be used, by code."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A record on the page: as it is and changed, or why it can't be shown."""

    outcome: str
    pictures: tuple[Picture, ...]
    num_outside: int
    """Boxes that lie wholly beside the image."""


def preview(config: PreviewConfig, report: Report) -> PreviewSummary:
    """Reads a split, makes network inputs of some of its images as training does, and writes the page.

    Raises:
        UsageError: the data set or the split is not what it should be, none of the images can be used, the output is a
            folder, or, with `--strict`, an annotation or an image can't be used.
        StoreError: the store failed.
    """
    output = _checked_output(config.output)
    report(Progress("reading annotations"))
    dataset = read_dataset(config.data, config.format, config.split, min_score=config.min_score, strict=config.strict)
    colours = hues(dataset.classes)
    rows = _chosen(len(dataset.records), config.count, config.seed)
    records, errors, skipped = [], Counter[str](), Counter(dataset.skipped)
    for shown in _shown(config, dataset, rows, report):
        skipped += Counter({str(SkipReason.OUTSIDE_BOX): shown.num_outside})
        if shown.pictures:
            records.append([figure(picture, colours) for picture in shown.pictures])
        else:
            errors[shown.outcome] += 1
    if not records:
        raise UsageError(
            f"none of {len(rows)} images of split {config.split!r} can be used ({_counted(errors)}). The first is "
            f"{dataset.records[rows[0]].image_uri}: look whether it opens in an image viewer"
        )
    texts = _texts(config, dataset, len(records), skipped, errors)
    storage.write_bytes(output, render_template("preview.html", records=records, **texts).encode())
    return PreviewSummary(output, len(dataset.records), len(records), dict(skipped), dict(errors))


def _checked_output(name: str) -> str:
    """The URI to write to, looked at before the work is done."""
    uri = storage.normalise(name)
    if storage.is_remote(uri):
        return uri
    path = Path(storage.local_path(uri))
    if path.is_dir():
        raise UsageError(
            f"the output is a folder: {path}. Expected an HTML file to write, such as {path / 'page.html'}"
        )
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"the output is to lie below a file: {folder}. Expected a path whose folders can be made")
    return uri


def _chosen(num_records: int, count: int, seed: int) -> list[int]:
    """Some records, in their order."""
    chosen = np.random.default_rng(seed).choice(num_records, min(count, num_records), replace=False)
    return sorted(int(row) for row in chosen)


def _shown(config: PreviewConfig, dataset: Dataset, rows: Sequence[int], report: Report) -> Iterator[_Shown]:
    """The records, a few at a time: first as the network is used, then as it is trained in the first epochs."""
    packed = PackedRecords.of(dataset.records, dataset.classes)
    makers = [
        BatchMaker(
            packed=packed,
            order=BatchOrder(len(packed), 1, 1, None),
            options=config,
            input_size_px=config.input_size or DEFAULT_INPUT_SIZE_PX,
            augmented=augmented,
        )
        for augmented in (False, True)
    ]
    for start in range(0, len(rows), _RECORDS_AT_ONCE):
        report(Progress("making pictures", start, len(rows)))
        part = rows[start : start + _RECORDS_AT_ONCE]
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
            yield _Shown(outcome, pictures if outcome == OUTCOME_NAMES[0] else (), num_outside)
    report(Progress("making pictures", len(rows), len(rows)))


def _picture(name: str, batch: Batch, place: int, classes: Sequence[str]) -> Picture:
    """One network input with the objects that it is learned from."""
    boxes = []
    for label_id, has_box, corners in zip(
        batch[LABEL_IDS][place].tolist(), batch[HAS_BOX][place].tolist(), batch[BOXES][place].tolist(), strict=True
    ):
        if label_id != NO_OBJECT:
            boxes.append(Box(classes[label_id], None, tuple(corners) if has_box else None))
    return Picture(name, batch[IMAGES][place].astype(np.uint8, copy=False), tuple(boxes))


def _texts(
    config: PreviewConfig, dataset: Dataset, num_shown: int, skipped: Mapping[str, int], errors: Mapping[str, int]
) -> dict[str, Any]:
    """What the page says beside the pictures."""
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
    if dataset.num_clipped_boxes:
        facts["boxes cut to their image"] = f"{dataset.num_clipped_boxes:,}"
    options = config.model_dump(include=set(AugmentationOptions.model_fields) - set(ImageLimits.model_fields))
    options["input_size"] = config.input_size or DEFAULT_INPUT_SIZE_PX
    return {
        "title": f"{dataset.name}: {dataset.split}",
        "summary": (
            "Images of the data set as a network is given them: on the left as it is used, beside it as it is trained "
            f"in {NUM_VERSIONS} epochs. Boxes are what the network learns from."
        ),
        "facts": facts,
        "options": {"--" + name.replace("_", "-"): str(value) for name, value in options.items()},
        "skipped": [(reason, count, dataset.skip_examples.get(reason, ())) for reason, count in skipped.items()],
        "errors": errors,
    }


def _counted(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {code}" for code, count in errors.items())
