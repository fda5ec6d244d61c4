"""Images to label while something fails, runs over them, and checks of the table after each."""

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from locray import schema
from locray.config import LabelConfig
from locray.errors import ExitCode
from locray.storage.files import file_etag
from locray.verification.table import TableCheck, check_table
from tests.helpers.made_up import without_ray
from tests.helpers.s3_server import S3Bucket

Versions = Mapping[str, str]
"""Images and their versions, known to the test and not taken from locray's listing."""


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def fill_bucket(bucket: S3Bucket, prefix: str, count: int) -> Versions:
    """Puts pictures below a prefix."""
    keys = [f"{prefix}/{number:04d}.jpg" for number in range(count)]
    with ThreadPoolExecutor(16) as threads:
        etags = list(threads.map(bucket.put, keys, map(picture, range(count))))
    return {f"{bucket.uri}/{key}": etag for key, etag in zip(keys, etags, strict=True)}


def fill_folder(folder: Path, count: int, size: tuple[int, int] = (60, 40)) -> Versions:
    """Writes pictures into a new folder."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}.jpg").write_bytes(picture(number, size))
    return {str(path): file_etag(os.stat(path)) for path in folder.iterdir()}


Done = subprocess.CompletedProcess[str]


def label(
    images: str, model: str, table: str, *options: str, run: Callable[..., Done] = without_ray, **environment: str
) -> Done:
    """Runs to the end. Checks that the exit code is documented and that there is no traceback."""
    done = run("label", "--images", images, "--model", model, "--table", table, "--json", *options, **environment)
    assert done.returncode in range(6), done
    assert "Traceback" not in done.stderr, done
    assert "error: unexpected" not in done.stderr, done
    return done


def summary_of(done: Done) -> dict[str, Any]:
    """Returns the run's summary, after checking its sums."""
    assert done.stdout, done
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] + summary["failed"] + summary["deferred"] == summary["planned"], summary
    assert summary["failed"] == sum(summary["errors"].values()), summary
    assert done.returncode in exit_codes(summary, max_failure_rate_of(done)), done
    return summary


def exit_codes(summary: Mapping[str, Any], max_failure_rate: float) -> set[int]:
    """Returns the exit codes that its counts allow: one code, unless only a few images of a later run failed."""
    if (summary["deferred_reason"] or "").startswith("the run was stopped by an error"):
        return {ExitCode.UNEXPECTED, ExitCode.USAGE, ExitCode.FENCED}
    unless_too_many_failed = ExitCode.DEFERRED if summary["deferred"] else ExitCode.DONE
    ok, failed = summary["ok"], summary["failed"]
    if failed <= max_failure_rate * (ok + failed):
        return {unless_too_many_failed}
    is_a_night_of_few = failed < 10 and summary["already_labelled"] > 0
    return {ExitCode.FAILURE_RATE, unless_too_many_failed} if is_a_night_of_few else {ExitCode.FAILURE_RATE}


def max_failure_rate_of(done: Done) -> float:
    """Returns the option's value, or its default."""
    if "--max-failure-rate" in done.args:
        return float(done.args[done.args.index("--max-failure-rate") + 1])
    return float(LabelConfig.model_fields["max_failure_rate"].default)


def check_sound(table: str, versions: Versions) -> TableCheck:
    """Checks that the table breaks no rule; rows may be missing."""
    check = check_table(table, _listing(versions.items()))
    assert check.findings.faults == {}, check.findings.faults
    return check


def check_whole(table: str, versions: Versions) -> None:
    """Checks that the table has one row per image and version, and its folder no other file."""
    check = check_sound(table, versions)
    assert (check.findings.pending, check.findings.notes) == ({}, {})
    assert check.num_rows == len(versions)


def _listing(versions: Iterable[tuple[str, str]]) -> list[pa.RecordBatch]:
    rows = [{schema.IMAGE_URI: uri, schema.ETAG: etag} for uri, etag in versions]
    return list(pa.Table.from_pylist(rows, schema=schema.LISTING_SCHEMA).to_batches())
