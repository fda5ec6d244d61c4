"""Plan of a labelling run: counts, and an estimate from a sample."""

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema, storage
from locray.config import PlanConfig
from locray.errors import ErrorCode
from locray.labelling.fetch_decode import decode_in_child, decode_rows
from locray.labelling.image_source import open_image_source
from locray.labelling.model import ModelSpec
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist, PendingImages
from locray.progress import Progress, Report
from locray.table.open import open_table

SECONDS_PER_HOUR = 3600
_DECODER_FAILURES = pa.array(map(str, (ErrorCode.DECODER_CRASH, ErrorCode.DECODER_TIMEOUT)))


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Plan of a run, with its estimated time on this machine, as `--json` prints it."""

    model_id: str
    config_hash: str
    table: str
    listed: int
    already_labelled: int
    new: int
    changed: int
    retried: int
    planned: int
    sampled: int
    sampled_bytes_per_image: float | None
    images_per_s: float | None
    estimated_s: float | None
    estimated_cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def plan(config: PlanConfig, report: Report) -> LabelPlan:
    """Lists the images, compares them with the table, labels a sample in memory. Writes nothing, starts no Ray.

    The estimated time is for this machine: fetching and decoding, spread over its cores, and the network.

    Raises:
        UsageError: the source, the model or the table is not as expected.
    """
    report(Progress("checking"))
    table_uri = storage.normalise(config.table)
    source = open_image_source(config, table_uri)
    model = ModelSpec.read(config.model, config)
    report(Progress("listing"))
    with PendingImages.find(
        source, open_table(table_uri), table_uri, model.key, retry=config.retry_failed, report=report
    ) as pending:
        counts = pending.counts()
        sample = pending.sample(config.sample)
    planned = min(counts.pending, config.limit or counts.pending)
    report(Progress("sampling", planned=len(sample)))
    seconds_per_image = _measure(sample, model) if len(sample) else None
    estimated_s = None if seconds_per_image is None else seconds_per_image * planned
    price_per_second = None if config.hourly_price is None else config.hourly_price / SECONDS_PER_HOUR
    return LabelPlan(
        model_id=model.key.model_id,
        config_hash=model.key.config_hash,
        table=table_uri,
        listed=counts.listed,
        already_labelled=counts.already_labelled,
        new=counts.new,
        changed=counts.changed,
        retried=counts.retried,
        planned=planned,
        sampled=len(sample),
        sampled_bytes_per_image=_mean_bytes(sample),
        images_per_s=None if seconds_per_image is None else 1 / seconds_per_image,
        estimated_s=estimated_s,
        estimated_cost=None if estimated_s is None or price_per_second is None else estimated_s * price_per_second,
    )


def _measure(sample: pa.Table, model: ModelSpec) -> float | None:
    """Seconds per image on this machine once everything is warm; None if no image of the sample can be decoded.

    A child process decodes the sample first, so that images that crash or hang the decoder can be skipped. What is
    timed is decoding in this process, as workers do it.
    """
    rows = InlineWorklist.of(sample, len(sample)).read_unit(0)
    first_try = decode_in_child(rows, model)
    rows = rows.filter(pc.invert(pc.is_in(first_try[schema.ERROR_CODE], value_set=_DECODER_FAILURES)))
    if not len(rows):
        return None
    num_cores = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    decoded = decode_rows(rows, model)
    decode_s = (time.perf_counter() - started) / num_cores
    # On this machine's own device: the GPUs of `--device gpu` may be on others.
    predictor = Predictor(model.with_options(device="auto"), num_threads=num_cores)
    predictor(decoded)
    started = time.perf_counter()
    predictor(decoded)
    return (decode_s + time.perf_counter() - started) / len(rows)


def _mean_bytes(sample: pa.Table) -> float | None:
    sizes = sample[schema.SIZE_BYTES].drop_null().to_pylist()
    return sum(sizes) / len(sizes) if sizes else None
