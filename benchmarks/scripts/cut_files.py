"""Which cut-off files Pillow calls truncated, and which of the others `ends_early` recognises.

    python -m benchmarks.scripts.cut_files FOLDER...

The first JPEG of the folders is saved in every format and cut at 300 places. All JPEGs are cut at six places, and their
rest replaced by zeros.
"""

import io
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from locray.errors import ErrorCode
from locray.images.decode import DecodeLimits, ImageFailure, decode_image

LIMITS = DecodeLimits(max_bytes=10**9, max_pixels=10**9)
VARIANTS = [
    *(("PNG", {}), ("GIF", {}), ("BMP", {}), ("AVIF", {}), ("WEBP", {}), ("JPEG", {}), ("TIFF", {})),
    ("TIFF", {"compression": "tiff_lzw"}),
]
SHARES = (0.02, 0.1, 0.3, 0.6, 0.9, 0.99)


def outcome(data: bytes) -> str:
    found = decode_image(data, LIMITS)
    if not isinstance(found, ImageFailure):
        return "decoded"
    if found.code not in {ErrorCode.TRUNCATED, ErrorCode.CORRUPT}:
        return str(found.code)
    if "truncated" in found.message.lower():
        return "Pillow says truncated"
    return "recognised by ends_early" if found.code == ErrorCode.TRUNCATED else "called corrupt"


def main(folders: list[str]) -> None:
    files = [path.read_bytes() for folder in folders for path in sorted(Path(folder).glob("*.jpg"))[:40]]
    picture = Image.open(io.BytesIO(files[0])).convert("RGB").resize((120, 90))
    for image_format, options in VARIANTS:
        buffer = io.BytesIO()
        picture.save(buffer, image_format, **options)
        data = buffer.getvalue()
        found = Counter(outcome(data[: len(data) * cut // 300]) for cut in range(1, 300))
        print(image_format, options or "", dict(found))
    sizes = [(data, int(len(data) * share)) for data in files for share in SHARES]
    print(f"{len(files)} JPEGs, cut:", dict(Counter(outcome(data[:size]) for data, size in sizes)))
    zeroed = Counter(outcome(data[:size] + bytes(len(data) - size)) for data, size in sizes)
    print(f"{len(files)} JPEGs, zeros at the end:", dict(zeroed))


if __name__ == "__main__":
    main(sys.argv[1:])
