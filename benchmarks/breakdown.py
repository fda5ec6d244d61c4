"""Time per labelled image and step, in one process without Ray.

The stages run unchanged under Python's profiler, which finds their functions by name. locray's time beyond the sum
of these steps is Ray's processes, copies between them, and waiting.
"""

import cProfile
import pstats
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.peers.job import num_cores
from locray import schema
from locray.config import LabelConfig
from locray.labelling.committer import Committer
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist
from locray.table.writer import TableWriter

MAX_IMAGES = 64
_MS = 1000


def breakdown(folder: Path, model: str, compiled: str, images_per_s_steady: float | None) -> dict[str, float]:
    """Milliseconds of one core per image, by step.

    Args:
        folder: The images.
        model: The artifact.
        compiled: The --compiled of `locray label`.
        images_per_s_steady: Speed of locray on all cores, for the last step.
    """
    cores = num_cores()
    with tempfile.TemporaryDirectory() as table:
        config = LabelConfig(images=str(folder), model=model, table=table, compiled=compiled)
        spec = ModelSpec.read(model, config)
        files = sorted(map(str, folder.iterdir()))
        predictor = Predictor(spec, cores)
        paths = files[:MAX_IMAGES]
        unknown = [pa.nulls(len(paths), field.type) for field in list(schema.LISTING_SCHEMA)[1:]]
        listing = pa.table([pa.array(paths), *unknown], schema=schema.LISTING_SCHEMA)
        rows = InlineWorklist.of(listing, len(paths)).read_unit(0)
        predictor(decode_rows(rows, spec))

        decoding, decoded = _profiled(lambda: decode_rows(rows, spec))
        predicting, predicted = _profiled(lambda: predictor(decoded))
        committing, _ = _profiled(lambda: _commit(predicted, table, spec, config))
    count = len(paths)
    decode_s = _seconds(decoding, "decode.py", "decode_image")
    resize_s = _seconds(decoding, "letterbox.py", "letterbox_image")
    table_s = _seconds(decoding, "fetch_decode.py", "_as_table")
    network_s = _seconds(predicting, "inference/network.py", "predict")
    steps = {
        "fetch": decoding.total_tt - decode_s - resize_s - table_s,  # type: ignore[attr-defined]
        "decode": decode_s,
        "resize": resize_s,
        "transfer (to an Arrow table)": table_s,
        "network": network_s * cores,
        "post-processing": predicting.total_tt - network_s,  # type: ignore[attr-defined]
        "commit": committing.total_tt,  # type: ignore[attr-defined]
    }
    found = {name: round(seconds / count * _MS, 3) for name, seconds in steps.items()}
    left = cores * _MS / images_per_s_steady - sum(found.values()) if images_per_s_steady else 0.0
    if left > 0:  # the steps, measured separately, may add up to more than the run took
        found["framework and waiting"] = round(left, 3)
    return found


def _commit(predicted: pa.Table, table: str, spec: ModelSpec, config: LabelConfig) -> None:
    committer = Committer(
        TableWriter.claim(table, spec.key.model_id),
        len(predicted),
        stamp={schema.CONFIG_HASH: spec.key.config_hash, schema.RUN_ID: "benchmark"},
        run_date=config.run_date,
        commit_rows=config.commit_rows,
    )
    committer.add(predicted)
    committer.close()


def _profiled(step: Any) -> tuple[pstats.Stats, Any]:
    with cProfile.Profile() as profile:
        answer = step()
    return pstats.Stats(profile), answer


def _seconds(stats: pstats.Stats, file_name: str, function: str) -> float:
    """Cumulative seconds of a function."""
    calls: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = stats.stats  # type: ignore[attr-defined]
    found = [times[3] for (path, _, name), times in calls.items() if name == function and path.endswith(file_name)]
    assert found, f"no call of {function} in {file_name}: was it renamed?"
    return sum(found)
