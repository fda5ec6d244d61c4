"""Rows of images that are named differently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locray.evaluation.table import match_uris


@pytest.mark.parametrize(
    ("images", "rows", "row_of", "ambiguous"),
    [
        (["/d/1.jpg", "/d/2.jpg"], ["/d/2.jpg", "/d/1.jpg"], {0: 1, 1: 0}, []),
        (["/d/1.jpg"], ["s3://b/other/1.jpg"], {0: 0}, []),
        (["/d/1.jpg"], ["s3://b/2.jpg", "s3://b/01.jpg"], {}, []),
        (["/d/1.jpg"], ["/d/1.jpg", "s3://b/d/1.jpg"], {0: 0}, []),
        (["/d/a/1.jpg", "/d/b/1.jpg"], ["s3://x/b/1.jpg", "s3://x/a/1.jpg"], {0: 1, 1: 0}, []),
        (["/d/a/1.jpg", "/d/b/1.jpg"], ["s3://x/a/1.jpg"], {0: 0}, []),
        (["/d/a/1.jpg", "/d/b/1.jpg"], ["s3://x/a/1.jpg", "s3://x/1.jpg"], {0: 0, 1: 1}, []),
        (["/d/a/1.jpg", "/d/b/1.jpg"], ["s3://x/1.jpg"], {}, [0, 1]),
        (["/d/1.jpg"], ["s3://x/1.jpg", "s3://y/1.jpg"], {}, [0]),
        (["/d/1.jpg"], ["1.jpg"], {0: 0}, []),
        (["/d/1.jpg"], [], {}, []),
        ([], ["/d/1.jpg"], {}, []),
    ],
)
def test_by_hand(images: list[str], rows: list[str], row_of: dict[int, int], ambiguous: list[int]) -> None:
    found = match_uris(images, rows)
    assert (found.row_of, found.ambiguous) == (row_of, ambiguous)


SEGMENTS = st.sampled_from(["a", "b", "1.jpg", "2.jpg"])
URIS = st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join), unique=True, max_size=12)


@given(images=URIS, rows=URIS)
def test_a_row_matches_one_image_with_the_same_file_name(images: list[str], rows: list[str]) -> None:
    found = match_uris(images, rows)
    assert len(set(found.row_of.values())) == len(found.row_of)
    assert not set(found.row_of) & set(found.ambiguous)
    for image, row in found.row_of.items():
        assert images[image].split("/")[-1] == rows[row].split("/")[-1]
        assert images[image] == rows[row] or images[image] not in rows


@given(images=URIS)
def test_all_images_of_a_moved_folder_match(images: list[str]) -> None:
    found = match_uris([f"/data/{image}" for image in images], [f"s3://bucket/tree/{image}" for image in images])
    assert found.row_of == {image: image for image in range(len(images))}
