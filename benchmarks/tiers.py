"""Images of the benchmark: small ones, given or drawn, and photographs of several megapixels made from them."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from locray.demo.drawing import SHAPES, draw_sample
from locray.errors import UsageError

SMALL, LARGE = "small", "large"
DRAWN_SIDE_PX = 300
MEGAPIXELS = (2, 12)
_QUALITY = 90
_GRAIN = 5
"""Standard deviation of noise that makes files as large as a photograph's."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Images of one kind, in their own folder."""

    name: str
    folder: Path
    count: int


def make_tiers(images: Path | None, folder: Path, num_small: int, num_large: int) -> list[Tier]:
    """Writes the images of both tiers.

    Args:
        images: Folder of JPEGs to take; None draws them.
        folder: Folder for the tiers.
        num_small: Number of small images.
        num_large: Number of large images; 0 leaves that tier out.

    Raises:
        UsageError: the folder has too few JPEGs.
    """
    small = Tier(SMALL, folder / SMALL, num_small)
    small.folder.mkdir()
    if images is None:
        _draw(small)
    else:
        for number, path in enumerate(_jpegs(images, max(num_small, num_large))[:num_small]):
            (small.folder / f"{number:06}.jpg").write_bytes(path.read_bytes())
    if not num_large:
        return [small]
    large = Tier(LARGE, folder / LARGE, num_large)
    large.folder.mkdir()
    sources = sorted(small.folder.iterdir())
    for number in range(num_large):
        megapixels = np.random.default_rng([1, number]).uniform(*MEGAPIXELS)
        enlarge(sources[number % len(sources)], large.folder / f"{number:06}.jpg", megapixels)
    return [small, large]


def _jpegs(images: Path, count: int) -> list[Path]:
    if not images.is_dir():
        raise UsageError(f"there is no folder {images}: --images takes a folder of JPEG files")
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in {".jpg", ".jpeg"} and path.is_file())
    if len(found) < count:
        raise UsageError(
            f"{images} has {len(found)} JPEG files of the {count} asked for: give another folder, or smaller "
            "--small-images and --large-images"
        )
    step = len(found) // count
    return list(islice(found, 0, None, step))[:count]


def _draw(tier: Tier) -> None:
    labels = tuple(SHAPES)
    for number in range(tier.count):
        pixels, _ = draw_sample(np.random.default_rng([0, number]), labels[number % len(labels)])
        picture = Image.fromarray(pixels).resize((DRAWN_SIDE_PX, DRAWN_SIDE_PX))
        picture.save(tier.folder / f"{number:06}.jpg", quality=_QUALITY)


def enlarge(source: Path, target: Path, megapixels: float) -> None:
    """Enlarges a picture and adds grain, without which the file would be far too small."""
    with Image.open(source) as file:
        picture = file.convert("RGB")
    factor = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
    size = (round(picture.width * factor), round(picture.height * factor))
    large = picture.resize(size, Image.Resampling.BICUBIC)
    noise = Image.effect_noise(size, 2 * _GRAIN)
    grained = np.asarray(large, dtype=np.int16) + (np.asarray(noise, dtype=np.int16) - 128)[..., None] // 2
    Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8)).save(target, quality=_QUALITY)
