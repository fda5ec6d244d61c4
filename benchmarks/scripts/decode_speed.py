"""Milliseconds of one core to decode and resize JPEGs, by the decoder's reduction. For docs/decisions/decoding.md.

Run from the project's root, with a folder of JPEG files: `python -m benchmarks.scripts.decode_speed FOLDER`.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.tiers import enlarge
from locray.boxes import Letterbox
from locray.images.letterbox import letterbox_image

INPUT_PX = 224
SMALL, LARGE = 100, 12
FACTORS = (1, 2, 4, 8)


def milliseconds(run, count):
    run()
    started = time.process_time()
    run()
    return 1000 * (time.process_time() - started) / count


def measure(files):
    """Milliseconds to decode, to resize with torch as labelling does, and to resize with Pillow, by reduction."""
    found = {}
    for factor in FACTORS:
        pictures = [decoded(data, factor) for data in files]
        if max(pictures[0].shape) < INPUT_PX:
            break
        fits = [Letterbox.fit(picture.shape[1], picture.shape[0], INPUT_PX) for picture in pictures]
        pairs = list(zip(pictures, fits, strict=True))
        found[f"1/{factor}"] = [
            milliseconds(lambda factor=factor: [decoded(data, factor) for data in files], len(files)),
            milliseconds(lambda pairs=pairs: [letterbox_image(*pair) for pair in pairs], len(files)),
            milliseconds(lambda pairs=pairs: [by_pillow(*pair) for pair in pairs], len(files)),
        ]
    return found


def decoded(data, factor):
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return simplejpeg.decode_jpeg(
        data, "RGB", min_factor=factor, min_width=-(-width // factor), min_height=-(-height // factor)
    )


def by_pillow(picture, fit):
    size = (fit.scaled_width_px, fit.scaled_height_px)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def main():
    torch.set_num_threads(1)
    paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        tiers = {"as they are": [path.read_bytes() for path in paths[:: max(1, len(paths) // SMALL)]]}
        for megapixels in (2.8, 12.0):
            files = []
            for number, path in enumerate(paths[:LARGE]):
                target = Path(folder) / f"{megapixels}-{number}.jpg"
                enlarge(path, target, megapixels)
                files.append(target.read_bytes())
            tiers[f"{megapixels} megapixels"] = files
    for name, files in tiers.items():
        for scale, (decode, by_torch, pillow) in measure(files).items():
            print(f"{name}, {scale}: decode {decode:.2f}, torch {by_torch:.2f}, Pillow {pillow:.2f}", flush=True)


if __name__ == "__main__":
    main()
