"""The demo's data: a drawn, annotated data set, and a folder of unlabelled images such as a real bucket holds.

The same seed gives the same files, and each file depends on its own number alone. Nothing is downloaded.
"""

import io
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from locray.datasets.csv_boxes import write_csv
from locray.datasets.records import Annotation, ImageAnnotations
from locray.demo.broken import BROKEN
from locray.demo.drawing import SHAPES, ImageArray, Rng, draw_sample

__all__ = ["draw_sample", "write_dataset", "write_unlabelled"]

_LABELS = tuple(SHAPES)

_SHARE_PNG, _SHARE_WEBP, _SHARE_ROTATED = 0.08, 0.08, 0.15

_FOLDERS = ("", "gate 1/2026-03-01", "gate 1/2026-03-02", "gate 2", "Übersicht/März", "100%/#tagged", "old/a/b/c")
_NAMES = (
    "{:05}.{}",
    "img_{:05}.{}",
    "photo {:05}.{}",
    "señal-{:05}.{}",
    "写真_{:05}.{}",
    "{:05}#1.{}",
    "50%25_{:05}.{}",
)

_ORIENTATION_TAG = 0x0112
_TO_STORED: Mapping[int, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
"""Transposes an upright picture to the stored pixels of each EXIF orientation."""


def write_dataset(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    """Writes an annotated data set in the format `csv`: `<split>.csv` and `images/<split>-<number>.jpg`.

    Args:
        folder: Made if it is missing.
        counts: Number of images per split. The classes take turns.
        seed: Determines every byte.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, num_images in counts.items():
        described = []
        for number in range(num_images):
            rng = _rng(seed, split, number)
            label = _LABELS[number % len(_LABELS)]
            image, box = draw_sample(rng, label)
            name = f"images/{split}-{number:05}.jpg"
            (folder / name).write_bytes(_encoded(rng, Image.fromarray(image), "jpg"))
            height, width, _ = image.shape
            described.append(ImageAnnotations(name, (Annotation(label, box),), width, height))
        (folder / f"{split}.csv").write_text(write_csv(described), encoding="utf-8", newline="")


def write_unlabelled(folder: Path, num_images: int, broken_fraction: float, seed: int) -> Mapping[str, int]:
    """Writes images such as real buckets hold: sub-folders, odd names, several formats, rotated and broken ones.

    Args:
        folder: Made if it is missing.
        num_images: Number of files, including broken ones.
        broken_fraction: Share of broken files. The kinds of `BROKEN` take turns.
        seed: Determines every byte and name.

    Returns:
        Number of broken files by the error code that a labelling run must report.
    """
    num_broken = round(num_images * broken_fraction)
    chosen = _rng(seed, "broken", 0).choice(num_images, size=num_broken, replace=False)
    broken = {int(number): BROKEN[turn % len(BROKEN)] for turn, number in enumerate(chosen)}
    for number in range(num_images):
        rng = _rng(seed, "unlabelled", number)
        image, _ = draw_sample(rng, str(rng.choice(_LABELS)))
        suffix, data = _unlabelled_file(rng, image)
        if number in broken:
            suffix, data = broken[number].suffix, broken[number].make(rng)
        path = folder / str(rng.choice(_FOLDERS)) / _name(rng, number, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Counter(str(kind.code) for kind in broken.values())


def _rng(seed: int, purpose: str, number: int) -> Rng:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), number])


def _name(rng: Rng, number: int, suffix: str) -> str:
    name = str(rng.choice(_NAMES)).format(number, suffix)
    match rng.integers(8):
        case 0:
            return name.upper()
        case 1:
            return name.removesuffix(f".{suffix}")
        case _:
            return name


def _unlabelled_file(rng: Rng, image: ImageArray) -> tuple[str, bytes]:
    """Suffix and bytes of a file with an upright picture."""
    picture = Image.fromarray(image)
    kind, rotation = rng.random(size=2)
    if kind < _SHARE_PNG:
        return "png", _encoded(rng, picture, "png")
    if kind < _SHARE_PNG + _SHARE_WEBP:
        return "webp", _encoded(rng, picture, "webp")
    orientation = int(rng.integers(2, 9)) if rotation < _SHARE_ROTATED else 1
    return "jpg", _encoded(rng, picture, "jpg", orientation)


def _encoded(rng: Rng, picture: Image.Image, suffix: str, orientation: int = 1) -> bytes:
    data = io.BytesIO()
    quality = int(rng.integers(82, 96))
    if suffix == "png":
        picture.save(data, "PNG", compress_level=1)
    elif suffix == "webp":
        picture.save(data, "WEBP", quality=quality, method=0)
    elif orientation == 1:
        picture.save(data, "JPEG", quality=quality)
    else:
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = orientation
        picture.transpose(_TO_STORED[orientation]).save(data, "JPEG", quality=quality, exif=exif)
    return data.getvalue()
