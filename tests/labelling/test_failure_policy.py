"""Runs against a store that refuses requests, seen from outside: a real S3 server and keys, no Ray."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from locray import schema
from tests.helpers.made_up import without_ray
from tests.helpers.s3_proxy import Answer, Forward, Request, s3_proxy
from tests.helpers.s3_server import S3Bucket, S3Server
from tests.helpers.tables import dataset_of

pytestmark = pytest.mark.s3

NUM_IMAGES = 300
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>")


@pytest.fixture
def listing(s3_bucket: S3Bucket, tmp_path: Path) -> Path:
    """A list of images in a bucket, without versions. Using it needs no right to list."""
    Image.new("RGB", (60, 40)).save(tmp_path / "picture.jpg")
    data = (tmp_path / "picture.jpg").read_bytes()
    keys = [f"in/{number:04d}.jpg" for number in range(NUM_IMAGES)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(s3_bucket.put, keys, [data] * len(keys)))
    path = tmp_path / "images.csv"
    path.write_text("\n".join([schema.IMAGE_URI, *(f"{s3_bucket.uri}/{key}" for key in keys)]) + "\n")
    return path


def label(listing: Path, artifact: str, exit_code: int, **environment: str) -> tuple[dict[str, object], str]:
    """Returns the summary and the messages."""
    done = without_ray(
        "label", "--images", str(listing), "--model", artifact, "--table", table_of(listing), "--unit-size", "25",
        "--commit-rows", "50", "--json", "--deferred-list", deferred_of(listing), **environment,
    )  # fmt: skip
    assert done.returncode == exit_code, done
    assert "Traceback" not in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] + summary["failed"] + summary["deferred"] == summary["planned"]
    check_deferred(listing, summary)
    return summary, " ".join(done.stderr.split())


def table_of(listing: Path) -> str:
    return str(listing.with_name("table"))


def deferred_of(listing: Path) -> str:
    return str(listing.with_name("deferred.parquet"))


def check_deferred(listing: Path, summary: dict[str, object]) -> None:
    """Checks that each listed image has a row or was deferred, with the causes that the summary counts."""
    deferred = pq.read_table(deferred_of(listing))
    assert summary["deferred_list"] == deferred_of(listing)
    assert dict(Counter(deferred[schema.ERROR_CODE].to_pylist())) == summary["deferred_causes"]
    assert set(deferred[schema.RUN_ID].to_pylist()) <= {summary[schema.RUN_ID]}
    table = dataset_of(table_of(listing)).to_table()
    both = table[schema.IMAGE_URI].to_pylist() + deferred[schema.IMAGE_URI].to_pylist()
    assert sorted(both) == listing.read_text().splitlines()[1:]


def statuses(listing: Path) -> list[str]:
    return list(dataset_of(table_of(listing)).to_table()[schema.STATUS].to_pylist())


def test_images_denied_to_a_role_without_rights_are_retried_next_night(
    listing: Path, artifact: str, s3_server: S3Server
) -> None:
    summary, told = label(listing, artifact, 4, **s3_server.stranger)
    assert (summary["planned"], summary["ok"], summary["failed"]) == (NUM_IMAGES, 0, 0)
    causes = summary["deferred_causes"]
    assert isinstance(causes, dict)
    assert causes["access_denied"] >= 200
    assert set(causes) == {"access_denied", "not_tried"}
    assert f"none of the first {causes['access_denied']} images could be labelled" in told
    assert "need s3:GetObject" in told
    examples = summary["deferred_examples"]
    assert isinstance(examples, dict)
    assert len(examples) == 10
    for uri, reason in examples.items():
        assert reason == "the store answered AccessDenied"
        assert f"{uri}: {reason}" in told
    assert statuses(listing) == []

    summary, _ = label(listing, artifact, 0)
    assert summary["ok"] == NUM_IMAGES
    assert statuses(listing) == [schema.STATUS_OK] * NUM_IMAGES


def test_images_denied_after_losing_rights_are_retried_next_night(
    listing: Path, artifact: str, s3_server: S3Server
) -> None:
    with s3_proxy(s3_server.endpoint_url) as proxy:

        def lost(_: Request, forward: Forward) -> Answer:
            return forward() if len(proxy.requests) < NUM_IMAGES // 2 else DENIED

        proxy.fault = lost
        summary, told = label(listing, artifact, 4, AWS_ENDPOINT_URL=proxy.endpoint_url)
    assert summary["failed"] == 0
    assert summary["ok"] == len(statuses(listing))
    assert set(statuses(listing)) == {schema.STATUS_OK}
    assert "images that could be fetched at its start no longer can (access_denied)" in told
    summary, _ = label(listing, artifact, 0)
    assert statuses(listing) == [schema.STATUS_OK] * NUM_IMAGES
