"""Plan of a labelling run: counts, and an estimate from a sample."""

import logging
import os
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from locray import schema, storage
from locray.config import PlanConfig
from locray.images.fetch import FetchRequest, fetch_images
from locray.labelling.bottleneck import Capacity, Stage, StageCosts, StageRates, stage_rates
from locray.labelling.fetch_decode import decode_in_child, decode_rows
from locray.labelling.image_source import open_image_source
from locray.labelling.model import ModelSpec
from locray.labelling.pipeline import gpu_message
from locray.labelling.predictor import Predictor
from locray.labelling.worklist import InlineWorklist, PendingImages
from locray.progress import Progress, Report
from locray.ray_runtime.connection import is_attached
from locray.ray_runtime.nodes import alive_nodes, call_on_gpu, max_cpus, max_gpus
from locray.ray_runtime.start import start_ray
from locray.table.open import open_table

SECONDS_PER_HOUR = 3600
_GPU_TIMEOUT_S = 120.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """Plan of a run, with its estimated time on this machine or the cluster, as `--json` prints it."""

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
    sampled_errors: dict[str, int]
    """Images of the sample that can't be labelled, by error code or cause of deferral."""
    sampled_bytes_per_image: float | None
    num_cpus: int
    num_gpus: int
    fetch_images_per_s: float | None
    decode_images_per_s: float | None
    predict_images_per_s: float | None
    images_per_s: float | None
    bottleneck: Stage | None
    estimated_s: float | None
    estimated_cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def plan(config: PlanConfig, report: Report) -> LabelPlan:
    """Lists the images, compares them with the table, labels a sample in memory. Writes nothing, starts no Ray.

    The estimate is for this machine or, where RAY_ADDRESS is set, for the cluster with all nodes that may still join.

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
    capacity = _capacity(model)
    rates, errors = _measure(sample, model, capacity) if len(sample) else (StageRates(), Counter[str]())
    estimated_s = planned / rates.total if rates.total else None
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
        sampled_errors=dict(sorted(errors.items())),
        sampled_bytes_per_image=_mean_bytes(sample),
        num_cpus=capacity.num_cpus,
        num_gpus=capacity.num_gpus,
        fetch_images_per_s=rates.fetch,
        decode_images_per_s=rates.decode,
        predict_images_per_s=rates.predict,
        images_per_s=rates.total,
        bottleneck=rates.bottleneck,
        estimated_s=estimated_s,
        estimated_cost=None if estimated_s is None or price_per_second is None else estimated_s * price_per_second,
    )


def _capacity(model: ModelSpec) -> Capacity:
    """Processors and GPUs of this machine, or those that the cluster has and may get."""
    with_gpus = model.options.device != "cpu"
    if is_attached():
        start_ray(verbose=model.options.verbose)
        nodes = alive_nodes()
        num_cpus, num_gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
        num_cpus, num_gpus = max(num_cpus, max_cpus() or 0), max(num_gpus, max_gpus() or 0)
    else:
        import torch

        num_cpus, num_gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    return Capacity(num_cpus, num_gpus if with_gpus else 0)


def _measure(sample: pa.Table, model: ModelSpec, capacity: Capacity) -> tuple[StageRates, Counter[str]]:
    """Images per second once everything is warm, and the errors of the others by code.

    Only images that can be decoded are timed; without any, the speed is unknown. A child process decodes the sample
    first, since an image may crash or hang the decoder. What is timed is decoding in this process, as workers do it.
    """
    rows = InlineWorklist.of(sample, len(sample)).read_unit(0)
    first_try = decode_in_child(rows, model)
    errors = Counter(code for code in first_try[schema.ERROR_CODE].to_pylist() if code is not None)
    rows = rows.filter(pc.equal(first_try[schema.STATUS], schema.STATUS_OK))
    if not len(rows):
        return StageRates(), errors
    fetch_s = _fetch_s(rows, model)
    started = time.process_time()
    decoded = decode_rows(rows, model)
    decode_cpu_s = (time.process_time() - started) / len(rows)
    num_cores = len(os.sched_getaffinity(0))
    predict_s = _predict_s(decoded, model, capacity, num_cores)
    return stage_rates(StageCosts(fetch_s, decode_cpu_s, predict_s, num_cores), capacity), errors


def _fetch_s(rows: pa.Table, model: ModelSpec) -> float:
    """Seconds per image to fetch the sample, all at once."""
    names = (schema.IMAGE_URI, schema.ETAG, schema.SIZE_BYTES)
    requests = [FetchRequest(*listed) for listed in zip(*(rows[name].to_pylist() for name in names), strict=True)]
    started = time.perf_counter()
    fetched = fetch_images(requests, max_bytes=model.options.max_bytes, concurrency=model.options.concurrent_gets)
    deque(fetched, maxlen=0)
    return (time.perf_counter() - started) / len(rows)


def _predict_s(decoded: pa.Table, model: ModelSpec, capacity: Capacity, num_cores: int) -> float | None:
    """Seconds per image of one GPU, which may be on another node, or of this machine's processors.

    None if no GPU of the cluster is free.
    """
    if not is_attached() or not capacity.num_gpus:
        # The GPUs of `--device gpu` may be on others.
        return _time_predictor(decoded, model.with_options(device="auto" if capacity.num_gpus else "cpu"), num_cores)
    found = call_on_gpu(partial(_time_on_gpu, decoded, model.with_options(device="gpu")), _GPU_TIMEOUT_S)
    if found is None:
        _log.warning("no GPU of the cluster is free, so the speed of its model workers is unknown")
        return None
    node, measured = found
    if isinstance(measured, str):
        _log.warning(f"{gpu_message(node, measured)}. The speed of its model workers is unknown")
        return None
    return measured


def _time_on_gpu(decoded: pa.Table, model: ModelSpec) -> float | str:
    """Seconds per image of this worker's GPU, or why it can't be measured."""
    from locray.inference.devices import find_gpu_problem

    try:
        return find_gpu_problem() or _time_predictor(decoded, model, None)
    except Exception as error:  # noqa: BLE001 - whatever it is, a plan goes without it
        return next(iter(str(error).splitlines()), type(error).__name__)


def _time_predictor(decoded: pa.Table, model: ModelSpec, num_threads: int | None) -> float:
    """Seconds per image, after a first time that is not counted."""
    predictor = Predictor(model, num_threads=num_threads)
    predictor(decoded)
    started = time.perf_counter()
    predictor(decoded)
    return (time.perf_counter() - started) / len(decoded)


def _mean_bytes(sample: pa.Table) -> float | None:
    sizes = sample[schema.SIZE_BYTES].drop_null().to_pylist()
    return sum(sizes) / len(sizes) if sizes else None
