"""Draws one shape on a busy background, with its exact box.

Backgrounds (gradients, clouds, stripes, blobs, with lines and uneven light) are hard for a threshold and easy for a
person.
"""

import colorsys
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from locray.datasets.records import Box

ImageArray = NDArray[np.uint8]
FloatArray = NDArray[np.floating]
Rng = np.random.Generator

SIDES_PX = (160, 420)
OBJECT_SHARES = (0.2, 0.6)
"""Longer side of an object's box, as a share of the image's shorter side."""
MIN_CONTRAST = 90.0
"""Minimum distance between an object's colour and nearly all of the background around it, in RGB steps."""
_HUE_SPREAD = 0.07
"""Each shape has its own range of hues: a small network learns it from a few hundred pictures."""

_SUPERSAMPLING = 4
_SHARE_SHADOW, _SHARE_TWO_TONE, _SHARE_WITH_LINES, _SHARE_UNEVENLY_LIT = 0.6, 0.4, 0.35, 0.5
_SHADOW_SHIFT_PX, _SHADOW_BLUR_PX = 5, 3
_CLOUD_CELLS = ((3, 0.5), (7, 0.3), (17, 0.2))


def draw_sample(rng: Rng, label: str) -> tuple[ImageArray, Box]:
    """Draws a picture of one shape.

    Args:
        rng: Determines everything but the shape.
        label: One of `SHAPES`.

    Returns:
        The picture, (H, W, 3) uint8, and the tight box of the shape, exact to 1/4 pixel.
    """
    width, height = (int(side) for side in rng.integers(*SIDES_PX, size=2, endpoint=True))
    outline = _placed(rng, SHAPES[label](rng), width, height)
    left, top = (math.floor(edge) for edge in outline.min(axis=0))
    right, bottom = (math.ceil(edge) for edge in outline.max(axis=0))
    size = (right - left, bottom - top)
    mask = _mask(outline - (left, top), size)
    background = _background(rng, width, height)
    colour = _contrasting_colour(rng, label, background, (left, top, right, bottom))
    if rng.random() < _SHARE_SHADOW:
        _cast_shadow(rng, background, _coverage(mask), left, top)

    face = np.broadcast_to(colour, (size[1], size[0], 3)) + rng.uniform(0, 30) * _ramp(rng, *size)[..., None]
    if rng.random() < _SHARE_TWO_TONE:
        centre = outline.mean(axis=0)
        inner = _coverage(_mask((outline - centre) * rng.uniform(0.6, 0.85) + centre - (left, top), size))
        face = face + float(rng.choice([-28, 28])) * inner[..., None]
    under = background[top:bottom, left:right]
    under += (face - under) * _coverage(mask)[..., None]
    grain = rng.integers(-8, 9, size=(height, width, 1), dtype=np.int8)
    background += grain * np.float32(rng.uniform(0.2, 1))
    return np.clip(background, 0, 255).astype(np.uint8), _box_of(mask, left, top)


def _disc(rng: Rng) -> FloatArray:
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.85, 1)], axis=1)


def _square(rng: Rng) -> FloatArray:
    half = rng.uniform(0.85, 1)
    return np.array([(-1, -half), (1, -half), (1, half), (-1, half)])


def _triangle(rng: Rng) -> FloatArray:
    return np.array([(-1, -0.6), (1, -0.6), (rng.uniform(-0.3, 0.3), rng.uniform(0.9, 1.4))])


def _star(rng: Rng) -> FloatArray:
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.48), 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _cross(rng: Rng) -> FloatArray:
    arm = rng.uniform(0.25, 0.36)
    quarter = np.array([(arm, 1), (arm, arm), (1, arm)])
    turn = np.array([(0, -1), (1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, turns) for turns in range(4)])


SHAPES: Mapping[str, Callable[[Rng], FloatArray]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
"""Shapes by class: functions that return the corners (N, 2) of an upright shape of any size."""


def _placed(rng: Rng, corners: FloatArray, width: int, height: int) -> FloatArray:
    """The shape rotated, scaled to its share of the image, and placed wholly inside."""
    angle = rng.uniform(0, 2 * math.pi)
    turned = corners @ np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    turned -= turned.min(axis=0)
    turned *= rng.uniform(*OBJECT_SHARES) * min(width, height) / turned.max()
    return np.asarray(turned + rng.uniform((0, 0), (width, height) - turned.max(axis=0)))


def _mask(outline: FloatArray, size: tuple[int, int]) -> Image.Image:
    """Mask of the shape, 255 inside, supersampled; `size` is in pixels of the picture."""
    mask = Image.new("L", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
    # Pillow also fills the pixels on the outline: half a sample less preserves the size of the shape.
    corners = [(float(x), float(y)) for x, y in outline * _SUPERSAMPLING - 0.5]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    return mask


def _coverage(mask: Image.Image) -> FloatArray:
    """Share of each pixel that the shape covers, (H, W)."""
    return np.asarray(mask.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def _box_of(mask: Image.Image, left: int, top: int) -> Box:
    box = mask.getbbox()
    assert box is not None, "a shape is never smaller than a sample"
    xmin, ymin, xmax, ymax = (float(edge) / _SUPERSAMPLING for edge in box)
    return xmin + left, ymin + top, xmax + left, ymax + top


def _contrasting_colour(rng: Rng, label: str, background: FloatArray, box: tuple[int, int, int, int]) -> FloatArray:
    """A colour (3,) in the label's range of hues, far from the background around a box, or the farthest of several."""
    left, top, right, bottom = box
    reach = max(right - left, bottom - top) // 4
    near = background[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach]
    samples = near[:: max(1, near.shape[0] // 8), :: max(1, near.shape[1] // 8)].reshape(-1, 3)
    middle = list(SHAPES).index(label) / len(SHAPES)
    drawn = rng.uniform((-_HUE_SPREAD, 0.45, 0.3), (_HUE_SPREAD, 1, 1), size=(24, 3))
    colours = 255 * np.array(
        [colorsys.hsv_to_rgb((middle + shift) % 1, saturation, value) for shift, saturation, value in drawn],
        dtype=np.float32,
    )
    distances = np.linalg.norm(colours[:, None] - samples[None], axis=2)
    contrasts = np.quantile(distances, 0.1, axis=1)
    enough = np.flatnonzero(contrasts >= MIN_CONTRAST)
    return np.asarray(colours[enough[0] if enough.size else contrasts.argmax()])


def _cast_shadow(rng: Rng, background: FloatArray, coverage: FloatArray, left: int, top: int) -> None:
    """Darkens the background beside the shape, in place."""
    across, down = (int(shift) for shift in rng.integers(-_SHADOW_SHIFT_PX, _SHADOW_SHIFT_PX + 1, size=2))
    margin = _SHADOW_BLUR_PX + _SHADOW_SHIFT_PX
    height, width = (side + 2 * margin for side in coverage.shape)
    shadow = Image.new("L", (width, height))
    shadow.paste(Image.fromarray((coverage * 255).astype(np.uint8)), (margin + across, margin + down))
    blurred = np.asarray(shadow.filter(ImageFilter.BoxBlur(_SHADOW_BLUR_PX)), dtype=np.float32)
    light = 1 - blurred * np.float32(rng.uniform(0.2, 0.5) / 255)
    first_row, first_column = max(0, margin - top), max(0, margin - left)
    near = background[max(0, top - margin) : top - margin + height, max(0, left - margin) : left - margin + width]
    near *= light[first_row : first_row + near.shape[0], first_column : first_column + near.shape[1], None]


def _ramp(rng: Rng, width: int, height: int) -> FloatArray:
    """Linear ramp (H, W) from -1 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-math.cos(angle), math.cos(angle), width, dtype=np.float32)
    down = np.linspace(-math.sin(angle), math.sin(angle), height, dtype=np.float32)
    ramp = across[None, :] + down[:, None]
    return np.asarray(ramp / np.abs(ramp).max())


def _background(rng: Rng, width: int, height: int) -> FloatArray:
    """Random background (H, W, 3), sometimes with faint lines and uneven light."""
    kind = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    background = kind(rng, width, height)
    if rng.random() < _SHARE_WITH_LINES:
        _draw_lines(rng, background)
    if rng.random() < _SHARE_UNEVENLY_LIT:
        background *= (1 + np.float32(rng.uniform(0.05, 0.25)) * _ramp(rng, width, height))[..., None]
    return background


def _palette(rng: Rng, num_colours: int) -> FloatArray:
    """Muted colours (N, 3): similar hue, different brightness."""
    hue, saturation = rng.uniform(), rng.uniform(0.05, 0.5)
    values = rng.uniform(0.25, 0.85) + rng.uniform(-0.22, 0.22, size=num_colours)
    hues = hue + rng.normal(0, 0.06, size=num_colours)
    colours = [
        colorsys.hsv_to_rgb(h % 1, saturation, min(max(v, 0.08), 0.95)) for h, v in zip(hues, values, strict=True)
    ]
    return np.array(colours, dtype=np.float32) * 255


def _stretched(small: ImageArray, width: int, height: int) -> FloatArray:
    """A small image (h, w) or (h, w, 3), smoothly enlarged."""
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float32)


def _mixed(share: FloatArray, colours: FloatArray) -> FloatArray:
    """Interpolates between two colours by `share` (H, W), as (H, W, 3)."""
    steps = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    table = colours[0] + steps * (colours[1] - colours[0])
    return np.asarray(table.take((share * 255).astype(np.uint8), axis=0))


def _gradient(rng: Rng, width: int, height: int) -> FloatArray:
    rows, columns = (int(count) for count in rng.integers(2, 5, size=2))
    colours = _palette(rng, rows * columns).reshape(rows, columns, 3)
    return _stretched(colours.astype(np.uint8), width, height)


def _clouds(rng: Rng, width: int, height: int) -> FloatArray:
    share = np.zeros((height, width), dtype=np.float32)
    for cells, weight in _CLOUD_CELLS:
        share += _stretched(rng.integers(0, 256, size=(cells, cells), dtype=np.uint8), width, height) * (weight / 255)
    return _mixed(share, _palette(rng, 2))


def _stripes(rng: Rng, width: int, height: int) -> FloatArray:
    angle, period = rng.uniform(0, math.pi), rng.uniform(10, 60)
    bend = _stretched(rng.integers(0, 256, size=(3, 3), dtype=np.uint8), width, height) * np.float32(
        rng.uniform(0, 0.03)
    )
    across = np.arange(width, dtype=np.float32) * np.float32(2 * math.pi * math.cos(angle) / period)
    down = np.arange(height, dtype=np.float32) * np.float32(2 * math.pi * math.sin(angle) / period)
    wave = np.sin(across[None, :] + down[:, None] + bend) * np.float32(rng.uniform(0.6, 3))
    return _mixed(np.clip(0.5 + wave / 2, 0, 1), _palette(rng, 2))


def _blobs(rng: Rng, width: int, height: int) -> FloatArray:
    num_blobs = int(rng.integers(8, 30))
    colours = _palette(rng, 5).astype(int)
    small_width, small_height = width // 3, height // 3
    canvas = Image.new("RGB", (small_width, small_height), tuple(colours[0]))
    draw = ImageDraw.Draw(canvas)
    ranges = (small_width, small_height, small_width / 6, len(colours))
    for x, y, size, choice in rng.uniform(size=(num_blobs, 4)) * ranges:
        radius = 4 + size
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colours[int(choice)]))
    return _stretched(np.asarray(canvas.filter(ImageFilter.GaussianBlur(rng.uniform(1, 5)))), width, height)


def _draw_lines(rng: Rng, background: FloatArray) -> None:
    """Draws faint lines across the background, in place."""
    height, width = background.shape[:2]
    lines = Image.new("L", (width // 2, height // 2))
    draw = ImageDraw.Draw(lines)
    for x0, y0, x1, y1 in rng.uniform(-0.1, 1.1, size=(int(rng.integers(4, 22)), 4)):
        ends = (x0 * lines.width, y0 * lines.height, x1 * lines.width, y1 * lines.height)
        draw.line(ends, fill=int(rng.integers(60, 256)), width=int(rng.integers(1, 3)))
    strength = np.float32(rng.uniform(0.12, 0.35) / 255)
    share = _stretched(np.asarray(lines), width, height)[..., None] * strength
    background += share * (np.float32(rng.choice([0, 255])) - background)


_BACKGROUNDS = (_gradient, _clouds, _stripes, _blobs)
