"""A network compiled for this machine, its GPU or its processors, compared with its eager form in results and speed."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locray import schema, storage
from locray.config import CompileConfig
from locray.convert.comparison import (
    MAX_SCORE_DIFFERENCE,
    MIN_AGREEMENT,
    OutputDiff,
    check_images,
    decode_images,
)
from locray.errors import LocrayError, UsageError
from locray.images.decode import DecodeLimits
from locray.inference.compile_key import CompileKey
from locray.inference.devices import batch_size_for, dtype_for, keep_freed_memory
from locray.inference.network import Network
from locray.inference.packages import FOLDER, PackageRecord, delete_stale_packages, open_package, write_package
from locray.models.artifact import load_artifact
from locray.models.interface import PredictedBoxes
from locray.progress import Progress, Report
from locray.sources import open_source

COMPARED_BATCHES = 2
ROUNDS = 5

_SHOWN_OF_KEY = {schema.MODEL_ID, "precision", "batch_size", "num_threads", "processor"}
_INDUCTOR: dict[str, Any] = {"freezing": True, "compile_threads": 1, "aot_inductor.precompile_headers": False}
_LIMITS = DecodeLimits(max_bytes=256 * 2**20, max_pixels=178_956_970)


@dataclass(frozen=True, slots=True)
class CompileSummary:
    """The compiled network compared with the eager one."""

    package: str | None
    """URI of the package; None if none was written."""
    reason: str | None
    """Why none was written."""
    key: CompileKey
    compile_s: float
    compared_images: int
    diff: OutputDiff
    eager_images_per_s: float
    compiled_images_per_s: float

    @property
    def speedup(self) -> float:
        """How many times as fast the compiled network is."""
        return self.compiled_images_per_s / self.eager_images_per_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded for reading, as `--json` prints them."""
        values = {
            "package": self.package,
            "reason": self.reason,
            "agrees": self.diff.agrees,
            **self.key.model_dump(include=_SHOWN_OF_KEY),
            "compile_s": self.compile_s,
            "compared_images": self.compared_images,
            **self.diff._asdict(),
            "eager_images_per_s": self.eager_images_per_s,
            "compiled_images_per_s": self.compiled_images_per_s,
            "speedup": self.speedup,
        }
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def compile_model(config: CompileConfig, report: Report) -> CompileSummary:
    """Compiles the network, compares it with the eager form, and writes its package if it agrees and is faster.

    The artifact itself stays as it is, and so does its model id.

    Raises:
        UsageError: the model is absent or can't be compiled, there are no images, or no C++ compiler.
        StoreError: the package can't be written.
        LocrayError: the compiler failed.
    """
    report(Progress("checking"))
    _check_compiler()
    model_uri = storage.normalise(config.model)
    output = storage.join(model_uri, FOLDER) if config.output is None else storage.normalise(config.output)
    _check_writable(output)
    artifact = load_artifact(model_uri)
    if artifact.info.int8_sha256 is not None:
        raise UsageError(f"{model_uri} computes in 8-bit integers: compile the model that it was made of")
    num_threads = config.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_for(config.precision, device)
    batch_size = config.batch_size or batch_size_for(device, artifact.info.input_size)
    key = CompileKey.for_this_machine(
        artifact.model_id, str(dtype).removeprefix("torch."), batch_size, num_threads, device
    )
    batches = [batch.to(device) for batch in _batches(config.images, artifact.info.input_size, batch_size)]
    eager = Network(artifact.model, device, dtype)

    report(Progress("compiling"))
    started = time.perf_counter()
    package = compile_network(eager, batches[0])
    compile_s = time.perf_counter() - started

    report(Progress("comparing"))
    compiled = eager.with_compiled(open_package(package))
    eager_s, compiled_s = _batch_seconds([eager, compiled], batches[0])
    summary = CompileSummary(
        package=None,
        reason=None,
        key=key,
        compile_s=compile_s,
        compared_images=sum(map(len, batches)),
        diff=OutputDiff.of(*(_predictions(network, batches) for network in (eager, compiled))),
        eager_images_per_s=batch_size / eager_s,
        compiled_images_per_s=batch_size / compiled_s,
    )
    reason = _reason_against(summary.diff, summary.speedup, config.min_speedup)
    if reason is not None:
        return replace(summary, reason=reason)
    record = PackageRecord.of(key, package, summary.speedup)
    written = write_package(output, record, package, trust=config.output is None)
    if config.output is None:
        delete_stale_packages(output, artifact.model_id)
    return replace(summary, package=written)


def _check_compiler() -> None:
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise UsageError(
            f"there is no C++ compiler: {name} is not in PATH. Install one (on Debian: apt-get install g++), or name "
            "another in the environment variable CXX"
        )


def _check_writable(uri: str) -> None:
    """Checks a local folder, which need not be there yet; a bucket's answer comes with the writing."""
    if storage.is_remote(uri):
        return
    path = Path(storage.local_path(uri))
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK, effective_ids=True):
        raise UsageError(
            f"{uri} can't be written: {nearest} is not a folder that this user may write to. Name another --output"
        )


def _reason_against(diff: OutputDiff, speedup: float, min_speedup: float) -> str | None:
    if not diff.agrees:
        return (
            f"the compiled network gives other results: the same class for {diff.same_class:.1%} and the same box for "
            f"{diff.same_box:.1%} of the images (expected {MIN_AGREEMENT:.0%}), scores within "
            f"{diff.score_difference:.3g} (expected {MAX_SCORE_DIFFERENCE:g}). On pictures that the model was not "
            "trained for, many are ties: compare on --images of its own kind"
        )
    if speedup < min_speedup:
        return f"the compiled network is {speedup:.3g} times as fast as the eager one; expected {min_speedup:g}"
    return None


def compile_network(network: Network, images_u8: Tensor) -> bytes:
    """The AOTInductor package of a network's static part, for batches of this shape (B, S, S, 3) uint8.

    Raises:
        LocrayError: the compiler failed.
    """
    with _private_cache() as folder:
        path = folder / "network.pt2"
        try:
            program = torch.export.export(network.static_part, (images_u8,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(_INDUCTOR))
        except Exception as error:
            told = next(iter(str(error).splitlines()), "")
            raise LocrayError(f"the network can't be compiled: {type(error).__name__}: {told}") from error
        return path.read_bytes()


@contextmanager
def _private_cache() -> Iterator[Path]:
    """A temporary folder in which the compiler keeps its files: its usual one may be shared with other users."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(prefix="locray-compile-") as folder:
        os.environ[variable] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[variable]
            if before is not None:
                os.environ[variable] = before


@torch.inference_mode()
def _predictions(network: Network, batches: Sequence[Tensor]) -> PredictedBoxes:
    """Predictions for all images, on the CPU."""
    found = [[values.cpu() for values in network.predict(batch)] for batch in batches]
    return PredictedBoxes(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _batch_seconds(networks: Sequence[Network], images_u8: Tensor) -> list[float]:
    """Seconds that each network takes for a batch: the best of several rounds, in turn."""
    best = [float("inf")] * len(networks)
    for _ in range(ROUNDS):
        for number, network in enumerate(networks):
            started = time.perf_counter()
            network.predict(images_u8)
            network.wait()
            best[number] = min(best[number], time.perf_counter() - started)
    return best


def _batches(images_uri: str | None, size_px: int, batch_size: int) -> list[Tensor]:
    """Whole batches (B, S, S, 3) uint8 to compare on; drawn pictures if there are no images."""
    count = COMPARED_BATCHES * batch_size
    images = check_images(size_px, count)
    if images_uri is not None:
        source = open_source(images_uri)
        source.check()
        batch = next(iter(source.listing()), None)
        uris = [] if batch is None else batch.column(schema.IMAGE_URI).to_pylist()[:count]
        images = decode_images(uris, size_px, _LIMITS)
        if not len(images):
            raise UsageError(f"{images_uri} holds no usable image among its first {len(uris)}: expected one")
    # Few images are repeated: the compiled network takes whole batches.
    images = images[torch.arange(count) % len(images)]
    starts = range(0, count + 1, batch_size)
    return [images[start:end] for start, end in pairwise(starts)]
