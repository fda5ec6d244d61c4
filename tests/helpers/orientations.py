"""One picture as stored by cameras in each of EXIF's eight orientations."""

from PIL import Image

ORIENTATION = 0x0112
"""EXIF's orientation tag."""

ALL = range(1, 9)

AS_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Transposition of an upright picture when it is stored."""


def upright_picture() -> Image.Image:
    """Returns a picture of 64 x 32 with quarters in red, green, blue and white, clockwise from the top left."""
    image = Image.new("RGB", (64, 32))
    for box, colour in (((0, 0), "red"), ((32, 0), "lime"), ((32, 16), "blue"), ((0, 16), "white")):
        image.paste(colour, (*box, box[0] + 32, box[1] + 16))
    return image


def stored(orientation: int) -> Image.Image:
    """Returns the picture as stored in a file of this orientation."""
    transpose = AS_STORED[orientation]
    return upright_picture() if transpose is None else upright_picture().transpose(transpose)


def exif_block(orientation: int) -> Image.Exif:
    """Returns the EXIF block of such a file."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif
