"""Strategies of annotations, for property tests of writers and parsers."""

from hypothesis import strategies as st

from locray.datasets.records import Annotation, ImageAnnotations

FRAME = 1000

names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"], exclude_characters="\ufffe\uffff"),
    min_size=1,
    max_size=12,
).filter(lambda name: name == name.strip())
corners = st.tuples(*[st.floats(0, FRAME, width=32)] * 4)


NO_CROWDS = st.just(False)


def annotations(boxes=corners, crowds=NO_CROWDS):
    """Objects with corners in any order: parsers pass on what the file contains."""
    return st.builds(Annotation, names, boxes, crowds)


SIDES = st.none() | st.integers(1, 10 * FRAME)


OBJECTS = annotations()


def images(objects=OBJECTS, sides=SIDES, min_objects=0):
    """Lists of images, each with a name of its own."""
    image = st.builds(
        ImageAnnotations,
        filename=names.map(lambda name: name.replace("/", "_") + ".jpg"),
        objects=st.lists(objects, min_size=min_objects, max_size=4).map(tuple),
        width_px=sides,
        height_px=sides,
    )
    return st.lists(image, max_size=5, unique_by=lambda each: each.filename)


def write(folder, files):
    """Writes files by path; text in UTF-8."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def names_below(folder, dataset):
    """Returns the images of a data set by their path relative to a folder."""
    return [record.image_uri.removeprefix(f"{folder}/") for record in dataset.records]


def close(one, other, tolerance=1e-9):
    """Whether two lists of images are equal, except for rounding of boxes."""

    def shape(image):
        objects = [(found.label, found.is_crowd, found.box_xyxy_px is None) for found in image.objects]
        return image.filename, image.width_px, image.height_px, objects

    def numbers(image):
        return [value for found in image.objects for value in found.box_xyxy_px or ()]

    return [*map(shape, one)] == [*map(shape, other)] and all(
        abs(a - b) <= tolerance
        for x, y in zip(one, other, strict=True)
        for a, b in zip(numbers(x), numbers(y), strict=True)
    )
