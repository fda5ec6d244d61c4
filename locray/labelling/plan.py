"""What a labelling run would do, without doing it: counts, and an estimate from a sample. Called by cli/commands.py."""

import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema, storage
from locray.config import PlanConfig
from locray.errors import ErrorCode
from locray.images.isolated import IsolatedDecoder
from locray.labelling.fetch_decode import decode_rows
from locray.labelling.identity import Identity
from locray.labelling.image_source import check_apart, without_table_files
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import Difference, InlineWorklist
from locray.progress import Progress, Report
from locray.sources import open_source
from locray.table.open import holds_rows, open_table

SECONDS_PER_HOUR = 3600
_POISONS = pa.array(map(str, (ErrorCode.DECODER_CRASH, ErrorCode.DECODER_TIMEOUT)))


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """What is to be done, and what it may take on this machine, as `--json` prints it."""

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
    """Lists, compares with the table, labels a sample in memory. Writes nothing and starts no Ray.

    The estimate of time is for this machine: sampled fetch and decode spread over its cores, and the network.

    Raises:
        UsageError: the source, the model or the table is not what it should be.
    """
    report(Progress("checking"))
    table_uri = storage.normalise(config.table)
    source = without_table_files(open_source(config.images, config.uri_column), table_uri)
    check_apart(source, table_uri)
    table = open_table(table_uri)
    source.check(may_be_empty=holds_rows(table))
    identity = Identity.of(config.model, config)
    report(Progress("listing"))
    with Difference.open(
        source, table, identity.model_id, identity.config_hash, retry=config.retry_failed, report=report
    ) as difference:
        counts = difference.counts()
        sample = difference.sample(config.sample)
    planned = min(counts.to_do, config.limit or counts.to_do)
    report(Progress("sampling", planned=len(sample)))
    seconds_per_image = _measure(sample, identity) if len(sample) else None
    estimated_s = None if seconds_per_image is None else seconds_per_image * planned
    price_per_second = None if config.hourly_price is None else config.hourly_price / SECONDS_PER_HOUR
    return LabelPlan(
        model_id=identity.model_id,
        config_hash=identity.config_hash,
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


def _measure(sample: pa.Table, identity: Identity) -> float | None:
    """Seconds that an image of the sample takes on this machine once everything is warm; None where none can be timed.

    A child decodes them first: an image that crashes its decoder or hangs it is left out. What workers would do is
    timed, and they decode in their own process.
    """
    rows = InlineWorklist.of(sample, len(sample)).read_unit(0)
    settings = identity.decode
    with IsolatedDecoder(settings.limits, settings.timeout_s) as decode:
        tried = decode_rows(rows, settings, decode)
    rows = rows.filter(pc.invert(pc.is_in(tried[schema.ERROR_CODE], value_set=_POISONS)))
    if not len(rows):
        return None
    num_cores = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    decoded = decode_rows(rows, settings)
    decode_s = (time.perf_counter() - started) / num_cores
    # On this machine, whatever it has: the GPUs that are wanted may be on others.
    predictor = Predictor(replace(identity.predict, device="auto"), num_threads=num_cores)
    predictor(decoded)
    started = time.perf_counter()
    predictor(decoded)
    return (decode_s + time.perf_counter() - started) / len(rows)


def _mean_bytes(sample: pa.Table) -> float | None:
    sizes = sample[schema.SIZE_BYTES].drop_null().to_pylist()
    return sum(sizes) / len(sizes) if sizes else None
