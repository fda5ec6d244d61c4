"""Speed of `locray label` with a slow store: a real S3 server, behind a proxy that delays answers.

    export LOCRAY_TEST_DATA=FOLDER MODEL=ARTIFACT
    python -m pytest -n 0 -s -p tests.conftest benchmarks/scripts/label_latency.py

Images, worklist and table lie in the store. Prints the speed that each run reports. It is no test and asserts no speed;
its name keeps it out of the suite.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.scripts.fetch_latency import PROXY
from tests.helpers.commands import locray
from tests.helpers.s3_server import S3Bucket, S3Server

NUM_IMAGES = 2048
LATENCIES_MS = (0, 50, 100)
ROUNDS = 2


def test_latency(s3_server: S3Server, s3_bucket: S3Bucket, real_data: Path) -> None:
    for path in sorted((real_data / "runway" / "JPEGImages").iterdir())[:NUM_IMAGES]:
        s3_bucket.put(f"images/{path.name}", path.read_bytes())
    for number in range(ROUNDS):
        for latency_ms in LATENCIES_MS:
            command = [sys.executable, "-c", PROXY, s3_server.endpoint_url, str(latency_ms)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
                assert proxy.stdout is not None
                where = {
                    "--images": f"{s3_bucket.uri}/images",
                    "--table": f"{s3_bucket.uri}/table-{number}-{latency_ms}",
                    "--model": os.environ["MODEL"],
                }
                arguments = [argument for pair in where.items() for argument in pair]
                endpoint = proxy.stdout.readline().strip()
                done = locray("label", *arguments, "--json", AWS_ENDPOINT_URL=endpoint)
                proxy.kill()
            assert done.returncode == 0, done
            said = json.loads(done.stdout.splitlines()[-1])
            assert said["ok"] == NUM_IMAGES
            speed = f"{said['images_per_s_steady']:6.1f} images/s steady"
            print(f"{latency_ms:4} ms: {speed}, {said['wall_s']:5.1f} s, first rows after {said['startup_s']:4.1f} s")
