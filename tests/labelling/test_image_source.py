"""A listing of a bucket that also contains the table: the table's files are not images."""

import gzip
import hashlib
import io
import json
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from PIL import Image

from tests.helpers.made_up import without_ray
from tests.helpers.s3_server import S3Bucket


def inventory_of(bucket: S3Bucket, folder: Path) -> str:
    """Returns an inventory of the bucket's current objects."""
    data = gzip.compress(
        "".join(f'"{bucket.name}","{quote_plus(key, safe="/")}"\n' for key in list(bucket.keys())).encode()
    )
    (folder / "0.csv.gz").write_bytes(data)
    content = {
        "sourceBucket": bucket.name,
        "destinationBucket": f"arn:aws:s3:::{bucket.name}",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key",
        "files": [{"key": "data/0.csv.gz", "MD5checksum": hashlib.md5(data).hexdigest()}],
    }
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(content))
    return str(manifest)


@pytest.mark.s3
def test_the_tables_own_files_in_an_inventory_are_no_images(s3_bucket: S3Bucket, tmp_path: Path, artifact: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "JPEG")
    for key in ("a.jpg", "b/_delta_log/c.jpg", "table.jpg"):
        s3_bucket.put(key, buffer.getvalue())

    def run(verb: str) -> dict[str, object]:
        arguments = ("--images", inventory_of(s3_bucket, tmp_path), "--table", f"{s3_bucket.uri}/table")
        done = without_ray(verb, *arguments, "--model", artifact, "--json")
        assert done.returncode == 0, done
        return dict(json.loads(done.stdout.splitlines()[-1]))

    first = run("nightly")
    assert isinstance(first["label"], dict)
    assert first["label"]["ok"] == 3
    names = {key.split("/")[1].partition("=")[0] for key in list(s3_bucket.keys()) if key.startswith("table/")}
    assert names == {"_delta_log", "_locray", "model_id"}

    s3_bucket.put("table/of/contents.jpg", buffer.getvalue())
    planned = run("plan")
    assert (planned["listed"], planned["planned"]) == (4, 1)
    second = run("nightly")
    assert isinstance(second["label"], dict)
    assert (second["label"]["listed"], second["label"]["ok"], second["label"]["failed"]) == (4, 1, 0)
    assert isinstance(second["verify"], dict)
    assert (second["verify"]["listed"], second["verify"]["pending"]) == (4, {})
    verified = run("verify")
    assert (verified["listed"], verified["pending"]) == (4, {})
