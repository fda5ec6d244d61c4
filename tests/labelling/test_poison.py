"""A run over images that crash the decoder or hang it, in the worker itself and in the child that comes after."""

import json
import os
from pathlib import Path

import pytest
from commands import PROJECT_ROOT, locray
from deltalake import DeltaTable
from poison import install_broken_decoder, poison

from locray import schema


@pytest.mark.ray
def test_a_poisonous_image_costs_itself_a_row_and_never_the_run(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # workers of a Ray of its own have the broken decoder
    decoder = install_broken_decoder(tmp_path / "decoder")
    log = tmp_path / "deeds"
    images, table = tmp_path / "images", str(tmp_path / "table")
    images.mkdir()
    deeds = {f"{number}.gif": "nothing" for number in range(12)}
    deeds |= {"3.gif": "crash", "4.gif": "hang with the lock", "9.gif": "hang"}
    for name, deed in deeds.items():
        (images / name).write_bytes(poison(deed))

    options = ("--unit-size", "4", "--decode-timeout-s", "3", "--max-failure-rate", "1", "--json")
    done = locray(
        "label", "--images", str(images), "--model", artifact, "--table", table, *options,
        PYTHONPATH=os.pathsep.join([decoder, str(PROJECT_ROOT)]), LOG_OF_DEEDS=str(log),
    )  # fmt: skip
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["planned"], summary["ok"], summary["deferred"]) == (12, 9, 0)
    assert summary["errors"] == {"decoder_crash": 1, "decoder_timeout": 2}

    rows = DeltaTable(table).to_pyarrow_dataset().to_table()
    codes = {
        os.path.basename(uri): code
        for uri, code in zip(rows[schema.IMAGE_URI].to_pylist(), rows[schema.ERROR_CODE].to_pylist(), strict=True)
    }
    assert len(rows) == len(codes) == 12
    assert {name: code for name, code in codes.items() if code} == {
        "3.gif": "decoder_crash", "4.gif": "decoder_timeout", "9.gif": "decoder_timeout",
    }  # fmt: skip
    # Two images of the second unit are poisonous; it is begun again once. What children do they can't write down.
    deaths = log.read_text().splitlines()
    assert len(deaths) == 2
    assert "hang" in deaths
