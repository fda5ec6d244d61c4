"""An artifact in the form of another runtime: `locray export-model`. Called by cli/commands.py.

One graph, from uint8 pixels to boxes: normalisation, decoding and suppression are inside. The file is put in place
only after what is in it has given the artifact's own answers.

Letters of shapes: B images, S side of the square input in pixels, K places for predictions.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from locray import __version__, schema, storage
from locray.config import ExportModelConfig
from locray.convert.comparison import check_images
from locray.convert.export_check import Difference, largest_difference
from locray.convert.export_forms import BATCH_SIZE, FORMS, IMAGES, Runner, as_runner
from locray.errors import ExportError, UsageError
from locray.models.artifact import LoadedArtifact, load_artifact
from locray.models.interface import PredictedBoxes
from locray.progress import Progress, Report
from locray.storage.uris import split_s3

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """An exported network, and the same bytes opened again."""

    data: bytes
    run: Runner
    batch_size: int | None
    """Images of every batch; None: any number."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was exported, as `--json` prints it."""

    output: str
    form: str
    model_id: str
    size_bytes: int
    batch_size: int | None
    """Images of every batch; None: any number."""
    compared_images: int
    compared_detections: int
    largest_difference_px: float
    largest_score_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class ExportedNetwork(nn.Module):
    """A model as the graph that is exported: `LabelModel.predict` of images as decoders give them."""

    def __init__(self, artifact: LoadedArtifact) -> None:
        super().__init__()
        self.model = artifact.model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """From (B, S, S, 3) uint8 RGB letterboxed images to the fields of `PredictedBoxes` by their names."""
        return self.model.predict(images.permute(0, 3, 1, 2))._asdict()


def export(config: ExportModelConfig, report: Report) -> ExportSummary:
    """Traces the artifact's network, writes it in the form that was asked for, checks it, and puts the file in place.

    Raises:
        UsageError: no artifact, an output that is a folder, packages that are missing, or a network that can't be
            exported to this form.
        ExportError: the exported network gives other answers than the artifact.
    """
    report(Progress("checking"))
    output_uri = _file_uri(config.output)
    _need(FORMS[config.to].packages)
    artifact = load_artifact(storage.normalise(config.model))
    if artifact.info.int8_ranges is not None:
        raise UsageError(f"{config.model} computes in 8-bit integers: export the model that it was made from")
    report(Progress("exporting"))
    exported = export_network(artifact, config.to, config.batch_size)
    report(Progress("comparing with the artifact"))
    images = check_images(artifact.info.input_size)
    difference = compare(artifact, exported, images)
    if not difference.is_within_bounds:
        raise ExportError(
            f"{config.to} gives other answers than the artifact: {difference} on {len(images)} images. No file was "
            f"written. Export to another form, or report it with the architecture, {artifact.info.architecture}"
        )
    storage.write_bytes(output_uri, exported.data)
    if not difference.compared:
        report(Progress("the artifact finds nothing in the images of the check: compare the two on images of yours"))
    return ExportSummary(
        output=output_uri,
        form=config.to,
        model_id=artifact.model_id,
        size_bytes=len(exported.data),
        batch_size=exported.batch_size,
        compared_images=len(images),
        compared_detections=difference.compared,
        largest_difference_px=difference.box_px,
        largest_score_difference=difference.score,
    )


def _file_uri(output: str) -> str:
    uri = storage.normalise(output)
    is_folder = not split_s3(uri)[1] if storage.is_remote(uri) else os.path.isdir(storage.local_path(uri))
    if is_folder or output.endswith("/"):
        raise UsageError(f"--output {output} is a folder: expected the file to write, such as {uri}/model.onnx")
    return uri


def _need(packages: tuple[str, ...]) -> None:
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise UsageError(
            f"--to onnx needs {', '.join(packages)}; not installed: {', '.join(missing)}. "
            "Install them with: pip install 'locray[onnx]'"
        )


def export_network(artifact: LoadedArtifact, to: str, batch_size: int | None = None) -> ExportedFile:
    """The network in one of `FORMS`, not yet compared with the artifact.

    Args:
        artifact: a network in evaluation mode, and its description.
        to: a name of `FORMS`.
        batch_size: of all batches; none for any number of images, or for one where the network can't be traced for
            any: one that suppresses overlapping boxes over the whole batch.

    Raises:
        UsageError: torch can't export it.
    """
    form = FORMS[to]
    attempts = [batch_size] if batch_size else [None, 1]
    for attempt in attempts:
        try:
            with _quiet():
                data = form.write(_traced(artifact, attempt), _description(artifact, attempt))
                return ExportedFile(data, form.open(data), attempt)
        except Exception as error:  # noqa: BLE001 (exporters raise nearly every type there is)
            failure = error
    raise UsageError(
        f"torch can't export {artifact.info.architecture} to {to} ({_cause(failure)}). "
        f"There are the forms {', '.join(FORMS)}"
    ) from failure


def _cause(error: BaseException) -> str:
    """What an exporter's error goes back to, in one line: it wraps advice to its own authors around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_REASON]}"


@torch.library.register_fake("torchvision::nms", allow_override=True)  # type: ignore[untyped-decorator]
def _shape_of_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:  # noqa: ARG001
    """What a suppression returns, as torch.export must know it: some number of indices.

    torchvision itself declares at least two, and a network exported so would fail at an image with one object.
    """
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


def _traced(artifact: LoadedArtifact, batch_size: int | None) -> ExportedProgram:
    network = ExportedNetwork(artifact).eval().requires_grad_(False)
    # A batch of one would be taken for a constant.
    images = check_images(artifact.info.input_size, batch_size or 2)
    shapes = {IMAGES: {0: Dim("batch", min=1)}} if batch_size is None else None
    return torch.export.export(network, (images,), dynamic_shapes=shapes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what exporters have to say to their own authors."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _description(artifact: LoadedArtifact, batch_size: int | None) -> dict[str, Any]:
    """What a runtime must know beside the graph."""
    info = artifact.info
    return {
        schema.MODEL_ID: artifact.model_id,
        "architecture": info.architecture,
        "classes": info.classes,
        "input_size": info.input_size,
        "score_threshold": info.score_threshold,
        BATCH_SIZE: batch_size,
        "locray_version": __version__,
    }


def compare(artifact: LoadedArtifact, exported: ExportedFile, images: Tensor) -> Difference:
    """How the exported network's answers to images (N, S, S, 3) differ from the artifact's, in float32 on the CPU.

    Raises:
        ExportError: the exported network fails at an image, or its answer has another form.
    """
    expected = as_runner(ExportedNetwork(artifact).eval())(images)
    try:
        found = _in_batches(exported.run, images, exported.batch_size)
    except Exception as error:
        raise ExportError(f"the exported network fails at an image ({_cause(error)}). No file was written") from error
    return largest_difference(expected, found)


def _in_batches(run: Runner, images: Tensor, batch_size: int | None) -> PredictedBoxes:
    """Predictions of all images: in batches of the given size, else of one image first and then of all others."""
    if batch_size is None:
        parts = [run(images[:1]), run(images[1:])]
    else:
        missing = -len(images) % batch_size
        padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        parts = [run(padded[start : start + batch_size]) for start in range(0, len(padded), batch_size)]
    return PredictedBoxes(*(torch.cat(values)[: len(images)] for values in zip(*parts, strict=True)))
