"""Fixtures of the fault tests: images, a bucket, and a proxy in front of it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.commit_path import Place, Templates, made_images, made_templates
from tests.helpers.s3_proxy import S3Proxy, s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server, new_bucket, new_client


@pytest.fixture(scope="session")
def made_up_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_images(tmp_path_factory.mktemp("made-up") / "images")


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory, made_up_images: Path, artifact: str) -> Templates:
    return made_templates(tmp_path_factory.mktemp("templates"), made_up_images, artifact)


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture(scope="session")
def one_bucket(s3_server: S3Server) -> Iterator[S3Bucket]:  # noqa: ARG001 (the environment names it)
    """One bucket for the tables of all tests: each bucket takes volumes of the server."""
    with closing(new_client()) as client:
        yield new_bucket(client)


@pytest.fixture
def place(made_up_images: Path, artifact: str, one_bucket: S3Bucket, proxy: S3Proxy, tmp_path: Path) -> Place:
    return Place(made_up_images, artifact, one_bucket, proxy, tmp_path)
