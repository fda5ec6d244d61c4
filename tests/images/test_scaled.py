"""JPEGs decoded at a fraction of their size, as in labelling, compared with a decode at full size."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locray.boxes import Letterbox
from locray.images.decode import DecodedImage, DecodeLimits, ImageFailure, decode_image
from locray.images.letterbox import decoded_side_px, letterbox_image

pytestmark = pytest.mark.slow

LIMITS = DecodeLimits(max_bytes=50_000_000, max_pixels=64_000_000)
INPUT_PX = 64
KINDS = {
    "colour at half resolution": ("RGB", {"subsampling": "4:2:0"}),
    "colour at full resolution": ("RGB", {"subsampling": "4:4:4"}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
}


def jpeg(width: int, height: int, mode: str = "RGB", orientation: int = 1, **options: object) -> bytes:
    """An image with structures of several sizes."""
    random = np.random.default_rng(3)
    picture = np.zeros((height, width, 3))
    for cell_px in (32, 96, 288):
        cells = random.integers(0, 256, (height // cell_px + 2, width // cell_px + 2, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)) / 3
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).convert(mode)
    image.save(buffer, "JPEG", quality=90, exif=exif, **options)
    return buffer.getvalue()


def network_input(data: bytes, min_longer_side_px: int | None) -> tuple[np.ndarray, DecodedImage]:
    decoded = decode_image(data, LIMITS, min_longer_side_px=min_longer_side_px)
    assert isinstance(decoded, DecodedImage), decoded
    letterbox = Letterbox.fit(decoded.width_px, decoded.height_px, INPUT_PX)
    return letterbox_image(decoded.image_hwc_u8, letterbox).astype(int), decoded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "orientation"),
    [((701, 523), 1), ((523, 701), 6), ((1027, 333), 3), ((256, 256), 8), ((1999, 77), 5), ((300, 301), 2)],
)
def test_the_network_input_hardly_differs(kind: str, size: tuple[int, int], orientation: int) -> None:
    mode, options = KINDS[kind]
    data = jpeg(*size, mode, orientation, **options)

    whole, decoded_whole = network_input(data, None)
    scaled, decoded = network_input(data, decoded_side_px(INPUT_PX))

    assert decoded.image_hwc_u8.size < decoded_whole.image_hwc_u8.size / 3
    assert max(decoded.image_hwc_u8.shape) >= 2 * INPUT_PX
    assert (decoded.width_px, decoded.height_px) == (decoded_whole.width_px, decoded_whole.height_px)
    difference = np.abs(scaled - whole)
    assert difference.mean() < 2
    assert np.quantile(difference, 0.99) <= 12


def test_small_images_are_decoded_at_full_size() -> None:
    data = jpeg(2 * decoded_side_px(INPUT_PX) - 1, 200)
    whole, _ = network_input(data, None)
    scaled, _ = network_input(data, decoded_side_px(INPUT_PX))
    assert np.array_equal(whole, scaled)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_pixels_are_found_at_any_scale(kind: str) -> None:
    mode, options = KINDS[kind]
    data = jpeg(640, 480, mode, **options)
    cuts = [*range(700, len(data), len(data) // 20), *range(len(data) - 40, len(data))]
    for smallest_px in (640, 320, 160, 80):
        for cut in cuts:
            whole = decode_image(data[:cut], LIMITS)
            scaled = decode_image(data[:cut], LIMITS, min_longer_side_px=smallest_px)
            assert isinstance(scaled, ImageFailure) == isinstance(whole, ImageFailure), (smallest_px, len(data) - cut)
            if isinstance(whole, ImageFailure):
                assert isinstance(scaled, ImageFailure)
                assert scaled.code == whole.code


def test_broken_files_fail_at_any_scale(real_data: Path) -> None:
    files = [path for path in (real_data / "broken").rglob("*") if path.is_file()]
    outcomes = []
    for path in files:
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8\xff"):
            whole = decode_image(data, LIMITS)
            for smallest_px in (1, 64):
                scaled = decode_image(data, LIMITS, min_longer_side_px=smallest_px)
                assert type(scaled) is type(whole), (path, scaled, whole)
            outcomes.append(type(whole))
    assert min(outcomes.count(DecodedImage), outcomes.count(ImageFailure)) > 50
