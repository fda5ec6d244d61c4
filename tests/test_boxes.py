import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from locray.boxes import Letterbox, areas, clip, iou_matrix, is_valid, to_images

SIDES = st.integers(min_value=1, max_value=20_000)
INPUTS = st.integers(min_value=16, max_value=1024)
FRACTIONS = st.floats(min_value=0, max_value=1)
COORDINATES = st.floats(min_value=-1e4, max_value=1e4)


def box_arrays(coordinates, min_size=0, max_size=6):
    """Arrays (N, 4) of float64 in any order of corners."""
    rows = st.lists(st.tuples(*[coordinates] * 4), min_size=min_size, max_size=max_size)
    return rows.map(lambda boxes: np.array(boxes, dtype=np.float64).reshape(-1, 4))


ANY_BOXES = box_arrays(COORDINATES)
WHOLE_BOXES = box_arrays(st.integers(min_value=0, max_value=50))


@given(SIDES, SIDES, INPUTS, box_arrays(FRACTIONS))
def test_letterbox_has_an_exact_inverse(width, height, side, fractions):
    letterbox = Letterbox.fit(width, height, side)
    boxes = fractions * [width, height, width, height]

    assert np.abs(letterbox.to_image(letterbox.to_input(boxes)) - boxes).max(initial=0) < 1e-6


@given(SIDES, SIDES, INPUTS)
def test_letterbox_fits_fills_and_keeps_proportions(width, height, side):
    letterbox = Letterbox.fit(width, height, side)
    scaled = letterbox.scaled_width_px, letterbox.scaled_height_px

    assert max(scaled) == side
    assert min(scaled) >= 1
    exact = side / max(width, height)
    assert all(abs(s - max(1, n * exact)) <= 0.5 for s, n in zip(scaled, (width, height), strict=True))


@given(SIDES, SIDES, INPUTS)
def test_letterbox_centres_the_image(width, height, side):
    letterbox = Letterbox.fit(width, height, side)
    frame = letterbox.to_input(np.array([0.0, 0.0, width, height]))

    assert np.allclose(frame[:2], [letterbox.pad_left_px, letterbox.pad_top_px])
    rest = side - frame[2:]
    assert ((rest - frame[:2] > -1e-6) & (rest - frame[:2] < 1 + 1e-6)).all()


@given(ANY_BOXES, SIDES, SIDES)
def test_clipped_boxes_lie_inside_and_clipping_is_idempotent(boxes, width, height):
    untouched = boxes.copy()
    clipped = clip(boxes, np.array(width), np.array(height))

    assert ((clipped >= 0) & (clipped <= [width, height, width, height])).all()
    assert np.array_equal(clip(clipped, np.array(width), np.array(height)), clipped)
    inside = ((boxes >= 0) & (boxes <= [width, height, width, height])).all(axis=-1)
    assert np.array_equal(clipped[inside], boxes[inside])
    assert np.array_equal(boxes, untouched)


def test_every_box_is_clipped_to_its_own_image():
    boxes = np.full((2, 3, 4), 100.0)

    clipped = clip(boxes, np.array([[10], [200]]), np.array([[20], [50]]))

    assert (clipped[0] == [10, 20, 10, 20]).all()
    assert (clipped[1] == [100, 50, 100, 50]).all()


@given(ANY_BOXES)
def test_valid_boxes_are_those_with_an_area(boxes):
    with_sides = (boxes[:, 2] - boxes[:, 0] > 0) & (boxes[:, 3] - boxes[:, 1] > 0)

    assert np.array_equal(is_valid(boxes), with_sides)
    assert (areas(boxes)[~with_sides] == 0).all()


@given(st.integers(0, 3), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_box_that_is_not_finite_is_not_valid(position, value):
    boxes = np.array([[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
    boxes[0, position] = value

    assert is_valid(boxes).tolist() == [False, True]


@given(ANY_BOXES, ANY_BOXES)
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    iou = iou_matrix(a, b)

    assert iou.shape == (len(a), len(b))
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()
    assert np.allclose(iou, iou_matrix(b, a).T)


@given(WHOLE_BOXES)
def test_iou_of_a_box_with_itself_is_one_and_zero_if_degenerate(boxes):
    assert np.array_equal(np.diag(iou_matrix(boxes, boxes)), is_valid(boxes).astype(float))


@given(WHOLE_BOXES, WHOLE_BOXES)
def test_iou_of_whole_pixel_boxes_is_the_share_of_common_pixels(a, b):
    def mask(box):
        xmin, ymin, xmax, ymax = box.astype(int)
        pixels = np.zeros((50, 50), dtype=bool)
        pixels[ymin:ymax, xmin:xmax] = True
        return pixels

    expected = [[(mask(x) & mask(y)).sum() / max((mask(x) | mask(y)).sum(), 1) for y in b] for x in a]
    assert np.allclose(iou_matrix(a, b), np.reshape(expected, (len(a), len(b))))


@given(box_arrays(COORDINATES, min_size=1), COORDINATES, st.floats(min_value=0.01, max_value=100))
def test_iou_does_not_change_when_all_boxes_are_moved_or_scaled(boxes, shift, scale):
    proper = boxes[areas(boxes) > 1]

    assert np.allclose(iou_matrix(proper, proper), iou_matrix(proper * scale, proper * scale), atol=1e-6)
    assert np.allclose(iou_matrix(proper, proper), iou_matrix(proper + shift, proper + shift), atol=1e-3)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=6), st.integers(1, 1024))
def test_to_images_equals_to_image_of_each(frames, side):
    widths, heights = np.array(frames, dtype=np.int64).reshape(-1, 2).T
    boxes = np.random.default_rng(0).uniform(-1, side + 1, (len(frames), 3, 4))
    wanted = [
        clip(Letterbox.fit(width, height, side).to_image(own), width, height)
        for own, (width, height) in zip(boxes, frames, strict=True)
    ]
    assert np.array_equal(to_images(boxes, widths, heights, side), np.array(wanted).reshape(-1, 3, 4))
