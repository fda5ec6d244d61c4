"""Files that several images need are read once; an image is yielded as soon as its last file is there."""

import pytest

from locray.errors import ErrorCode
from locray.images.decode import ImageFailure
from locray.images.fetch import Fetched
from locray.training.batches import fetch_files

LIMIT = 2**20


@pytest.fixture
def files(tmp_path):
    for index in range(6):
        (tmp_path / f"{index}").write_bytes(bytes([index]) * 10)
    return [str(tmp_path / f"{index}") for index in range(6)]


def test_every_image_gets_its_files_in_order(files):
    needs = [(0,), (1, 0, 2), (3, 3), (2, 1, 0, 5)]
    gathered = dict(fetch_files(needs, files, LIMIT))
    found = {image: [outcome.data[0] for outcome in outcomes] for image, outcomes in gathered.items()}
    assert found == dict(enumerate(map(list, needs)))


def test_an_unreadable_file_is_an_outcome_for_all_its_images(files, tmp_path):
    gathered = dict(fetch_files([(0, 1), (1,), (2,)], [files[0], str(tmp_path / "absent"), files[2]], LIMIT))
    assert isinstance(gathered[0][0], Fetched)
    assert isinstance(gathered[2][0], Fetched)
    failures = [gathered[0][1], gathered[1][0]]
    assert all(isinstance(failure, ImageFailure) and failure.code is ErrorCode.NOT_FOUND for failure in failures)


def test_a_shared_file_is_read_once(tmp_path):
    shared = tmp_path / "shared"
    shared.write_bytes(b"first")
    gathered = fetch_files([(0,), (0,), (1, 0)], [str(shared), str(tmp_path / "absent")], LIMIT)
    found = [next(gathered)]
    shared.write_bytes(b"second")
    found += list(gathered)
    assert {outcomes[-1].data for _, outcomes in found} == {b"first"}


def test_no_images_need_no_files():
    assert list(fetch_files([], [], LIMIT)) == []
