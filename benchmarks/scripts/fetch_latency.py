"""Speed of the first stage with a slow store: small images from a real S3 server, behind a proxy that delays answers.

    LOCRAY_TEST_DATA=FOLDER python -m pytest -n 0 -s -p tests.conftest benchmarks/scripts/fetch_latency.py

Prints images per second, unit after unit in one process, as in one task slot of a run. It is no test and asserts no
speed; its name keeps it out of the suite.
"""

import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from locray import schema
from locray.config import InferenceOptions
from locray.labelling.fetch_decode import FetchDecode
from locray.labelling.model import ModelSpec
from locray.labelling.worklist import InlineWorklist
from locray.table.key import PredictionKey
from tests.helpers.s3_server import S3Bucket, S3Server

NUM_IMAGES = 1024
LATENCIES_MS = (0, 50, 100)
UNITS_AND_GETS = ((256, 64), (256, 256), (1024, 64), (1024, 256))

PROXY = """
import sys, time
from tests.helpers.s3_proxy import s3_proxy
with s3_proxy(sys.argv[1]) as proxy:
    def slow(request, forward):
        time.sleep(float(sys.argv[2]) / 1000)
        return forward()
    proxy.fault = slow
    print(proxy.endpoint_url, flush=True)
    sys.stdin.read()
"""


def test_latency(s3_server: S3Server, s3_bucket: S3Bucket, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for path in sorted((real_data / "runway" / "JPEGImages").iterdir())[:NUM_IMAGES]:
        data = path.read_bytes()
        etag = s3_bucket.put(path.name, data)
        rows.append({schema.IMAGE_URI: f"{s3_bucket.uri}/{path.name}", schema.ETAG: etag, schema.SIZE_BYTES: len(data)})
    listing = pa.Table.from_pylist(rows, schema=schema.LISTING_SCHEMA)
    for latency_ms in LATENCIES_MS:
        command = [sys.executable, "-c", PROXY, s3_server.endpoint_url, str(latency_ms)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
            assert proxy.stdout is not None
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.stdout.readline().strip())
            for unit_size, concurrent_gets in UNITS_AND_GETS:
                options = InferenceOptions(concurrent_gets=concurrent_gets)
                model = ModelSpec(PredictionKey("benchmark", ""), "", 224, options)
                fetch_decode = FetchDecode(InlineWorklist.of(listing, unit_size), model)
                fetch_decode(0)
                started = time.perf_counter()
                for unit in range(NUM_IMAGES // unit_size):
                    assert set(fetch_decode(unit)[schema.STATUS].to_pylist()) == {schema.STATUS_OK}
                speed = NUM_IMAGES / (time.perf_counter() - started)
                print(f"{latency_ms:4} ms, units of {unit_size:4}, {concurrent_gets:3} GETs: {speed:5.0f} images/s")
            proxy.kill()
