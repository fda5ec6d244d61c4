"""Processor time to decode a JPEG and resize it to 224 px as labelling does, by its size. For docs/cluster.md.

Run from the project's root: `python -m benchmarks.scripts.decode_rates`. The pictures are drawn, and made as large on
disk as photographs.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.tiers import enlarge, make_tiers
from locray.boxes import Letterbox
from locray.images.decode import DecodeLimits, decode_image
from locray.images.letterbox import decoded_side_px, letterbox_image

INPUT_PX = 224
LIMITS = DecodeLimits(max_bytes=2**31, max_pixels=2**31)
MEGAPIXELS = (0.09, 1, 4, 12)
COUNT, ROUNDS = 12, 3


def decode_all(files):
    for data in files:
        found = decode_image(data, LIMITS, min_longer_side_px=decoded_side_px(INPUT_PX))
        letterbox_image(found.image_hwc_u8, Letterbox.fit(found.width_px, found.height_px, INPUT_PX))


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        (small,) = make_tiers(None, Path(name), COUNT, 0)
        for megapixels in MEGAPIXELS:
            files = []
            for path in sorted(small.folder.iterdir()):
                target = Path(name) / "enlarged.jpg"
                enlarge(path, target, megapixels)
                files.append(target.read_bytes())
            decode_all(files)
            seconds = []
            for _ in range(ROUNDS):
                started = time.process_time()
                decode_all(files)
                seconds.append((time.process_time() - started) / COUNT)
            size_kb = np.mean([len(data) for data in files]) / 1000
            print(f"{megapixels} megapixels, {size_kb:,.0f} kB: {1000 * min(seconds):.2f} ms", flush=True)


if __name__ == "__main__":
    main()
