"""JPEGs decoded where the network runs, here by a processor, beside what the decode stage makes of them.

tests/test_cuda.py has the same on a GPU.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from locray.boxes import Letterbox
from locray.errors import UsageError
from locray.images.decode import DecodedImage, DecodeLimits, decode_image
from locray.images.letterbox import PAD_VALUE, decoded_side_px, letterbox_image
from locray.models import nvjpeg
from locray.models.nvjpeg import decode_letterboxed

LIMITS = DecodeLimits(max_bytes=50_000_000, max_pixels=64_000_000)
INPUT_PX = 64
SIZES = [(64, 64), (300, 200), (130, 600), (1027, 333), (523, 701), (40, 30)]


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    """A picture with structure of several sizes."""
    random = np.random.default_rng(width)
    picture = np.zeros((height, width, 3))
    for cell_px in (32, 96):
        cells = random.integers(0, 256, (height // cell_px + 2, width // cell_px + 2, 3), dtype=np.uint8)
        picture += np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)) / 2
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).convert(mode).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def fitted(files: list[bytes], sizes: list[tuple[int, int]]) -> tuple[np.ndarray, list[int]]:
    out = torch.full((len(files), INPUT_PX, INPUT_PX, 3), 7, dtype=torch.uint8)
    refused = decode_letterboxed(files, sizes, list(out))
    return out.numpy(), refused


def by_the_decode_stage(data: bytes) -> np.ndarray:
    decoded = decode_image(data, LIMITS, min_longer_side_px=decoded_side_px(INPUT_PX))
    assert isinstance(decoded, DecodedImage)
    return letterbox_image(decoded.image_hwc_u8, Letterbox.fit(decoded.width_px, decoded.height_px, INPUT_PX))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_the_decode_stage(mode: str) -> None:
    files = [jpeg(*size, mode) for size in SIZES]
    found, refused = fitted(files, SIZES)
    assert refused == []
    for picture, data in zip(found, files, strict=True):
        wanted = by_the_decode_stage(data)
        assert ((picture == PAD_VALUE).all(2) == (wanted == PAD_VALUE).all(2)).mean() > 0.99
        difference = np.abs(picture.astype(int) - wanted)
        assert difference.mean() < 1
        assert np.percentile(difference, 99) <= 6


def test_those_that_are_refused_cost_the_others_nothing() -> None:
    files = [jpeg(*size) for size in SIZES]
    whole, _ = fitted(files, SIZES)
    broken = {1: b"\xff\xd8\xff no picture", 4: files[4][: len(files[4]) // 3]}
    found, refused = fitted([broken.get(index, data) for index, data in enumerate(files)], SIZES)
    assert refused == [1, 4]
    assert (found[[1, 4]] == 7).all()
    assert (found[[0, 2, 3, 5]] == whole[[0, 2, 3, 5]]).all()


def test_a_picture_of_another_size_than_its_header_said_is_refused() -> None:
    assert fitted([jpeg(300, 200)], [(200, 300)])[1] == [0]


def test_a_decoder_that_decodes_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nvjpeg.check_works(torch.device("cpu"))

    def refusing(*_: object) -> None:
        raise RuntimeError("no decoder")

    monkeypatch.setattr(nvjpeg, "decode_jpeg", refusing)
    with pytest.raises(UsageError, match="nvJPEG decodes nothing on the node of this worker"):
        nvjpeg.check_works(torch.device("cpu"))


def test_there_is_room_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [jpeg(*size) for size in SIZES]
    whole, _ = fitted(files, SIZES)
    calls = []
    decode = nvjpeg.decode_jpeg

    def counting(chosen: list[torch.Tensor], *given: object) -> object:
        calls.append(len(chosen))
        return decode(chosen, *given)

    monkeypatch.setattr(nvjpeg, "decode_jpeg", counting)
    monkeypatch.setattr(nvjpeg, "_PIXELS_AT_ONCE", 150_000)
    found, refused = fitted(files, SIZES)
    assert (calls, refused) == ([3, 1, 1, 1], [])
    assert (found == whole).all()
