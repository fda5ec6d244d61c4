"""The formats that an artifact can be exported to: how each is written, and how it is opened again.

A new format is one entry of `FORMATS`.

Shapes: B images, S side of the square input in pixels.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from locray import __version__, schema
from locray.convert.comparison import check_images
from locray.errors import UsageError
from locray.inference.onnx import open_session
from locray.models.artifact import LoadedArtifact
from locray.models.interface import PredictedBoxes

_INPUT = "images"
"""Name of the input of the graph. The outputs are named like the fields of `PredictedBoxes`."""

ONNX_OPSET = 20
"""Version of ONNX's operators that is written."""
_METADATA_FILE = "locray.json"
"""The extra file of a .pt2 with the description of the model."""

_BATCH_SIZE = "batch_size"
"""Field of the description: images per batch; null: any number."""

_MAX_REASON_LENGTH = 300

Predict = Callable[[Tensor], PredictedBoxes]
"""Runs a network: from (B, S, S, 3) uint8 images to predictions."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format that an artifact can be exported to."""

    write: Callable[[ExportedProgram, Mapping[str, Any]], bytes]
    """From a program and the description of its model to the content of the file."""
    open: Callable[[bytes], Predict]
    """Loads the content of a file into the runtime of the format."""


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """The content of an exported file, and the same content loaded again."""

    data: bytes
    predict: Predict
    batch_size: int | None
    """Images per batch; None: any number."""


class ExportedNetwork(nn.Module):
    """The graph that is exported: `LabelModel.predict` with images in the layout of decoders."""

    def __init__(self, artifact: LoadedArtifact) -> None:
        super().__init__()
        self.model = artifact.model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, S, S, 3) uint8 RGB letterboxed images to the fields of `PredictedBoxes` by name."""
        return self.model.predict(images.permute(0, 3, 1, 2))._asdict()


def export_network(artifact: LoadedArtifact, to: str, batch_size: int | None = None) -> ExportedFile:
    """Exports the network of an artifact to one of `FORMATS`, without comparing results.

    Args:
        artifact: the artifact.
        to: a name of `FORMATS`.
        batch_size: images per batch. None: any number, or one for networks that torch can't trace for any number,
            because they suppress overlapping boxes over the whole batch.

    Raises:
        UsageError: torch can't export the network.
    """
    chosen = FORMATS[to]
    for attempt in [batch_size] if batch_size else [None, 1]:
        try:
            with silent_exporters():
                data = chosen.write(_trace(artifact, attempt), _description(artifact, attempt))
                return ExportedFile(data, chosen.open(data), attempt)
        except Exception as error:  # noqa: BLE001 (exporters raise nearly every type there is)
            failure = error
    raise UsageError(
        f"torch can't export {artifact.info.architecture} to {to} ({root_cause(failure)}). "
        f"Supported formats: {', '.join(FORMATS)}"
    ) from failure


def eager_network(artifact: LoadedArtifact) -> Predict:
    """The network of an artifact as `Predict`, in float32 on the CPU."""
    return _without_gradients(ExportedNetwork(artifact).eval())


def root_cause(error: BaseException) -> str:
    """Type and message of the first error of a chain, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_REASON_LENGTH]}"


@torch.library.register_fake("torchvision::nms", allow_override=True)  # type: ignore[untyped-decorator]
def _shape_of_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:  # noqa: ARG001
    """Shape of the result of `nms` for torch.export: any number of indices.

    torchvision declares at least two, and networks exported so fail at images with one object.
    """
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


def _trace(artifact: LoadedArtifact, batch_size: int | None) -> ExportedProgram:
    network = ExportedNetwork(artifact).eval().requires_grad_(False)
    # A batch size of one would be traced as a constant.
    images = check_images(artifact.info.input_size, batch_size or 2)
    shapes = {_INPUT: {0: Dim("batch", min=1)}} if batch_size is None else None
    return torch.export.export(network, (images,), dynamic_shapes=shapes)


@contextmanager
def silent_exporters() -> Iterator[None]:
    """Suppresses warnings and log lines of exporters, which concern torch's own code."""
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers  # `logging.info` of the root logger adds one


def _description(artifact: LoadedArtifact, batch_size: int | None) -> dict[str, Any]:
    """Metadata of the exported file: what its user needs to know beside the graph."""
    info = artifact.info
    return {
        schema.MODEL_ID: artifact.model_id,
        "architecture": info.architecture,
        "classes": info.classes,
        "input_size": info.input_size,
        "score_threshold": info.score_threshold,
        _BATCH_SIZE: batch_size,
        "locray_version": __version__,
    }


def _write_torch_export(program: ExportedProgram, description: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    text = json.dumps(description, indent=2, ensure_ascii=False)
    torch.export.save(program, buffer, extra_files={_METADATA_FILE: text})
    return buffer.getvalue()


def _open_torch_export(data: bytes) -> Predict:
    return _without_gradients(torch.export.load(io.BytesIO(data)).module())


def _without_gradients(network: nn.Module) -> Predict:
    @torch.no_grad()
    def predict(images: Tensor) -> PredictedBoxes:
        return PredictedBoxes(**network(images))

    return predict


def _write_onnx(program: ExportedProgram, description: Mapping[str, Any]) -> bytes:
    exported = torch.onnx.export(
        program,
        opset_version=ONNX_OPSET,
        input_names=[_INPUT],
        output_names=list(PredictedBoxes._fields),
        dynamic_shapes={_INPUT: {0: "batch"}} if description[_BATCH_SIZE] is None else None,
        custom_translation_table={torch.ops.torchvision.nms.default: _onnx_nms},
        verbose=False,
    )
    assert exported is not None
    document = exported.model_proto
    for name, value in description.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        document.metadata_props.add(key=name, value=text)
    return bytes(document.SerializeToString())


def _onnx_nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """ONNX's non-maximum suppression of boxes (N, 4), which knows float32 only: indices of the boxes that are kept."""
    from onnxscript import FLOAT, opset20

    op: Any = opset20
    no_limit = torch.iinfo(torch.int64).max
    boxes = op.Unsqueeze(op.Cast(boxes, to=FLOAT.dtype), [0])
    scores = op.Unsqueeze(op.Cast(scores, to=FLOAT.dtype), [0, 1])
    chosen = op.NonMaxSuppression(boxes, scores, no_limit, iou_threshold)  # (n, 3): image, class, box
    return op.Reshape(op.Slice(chosen, axes=[1], starts=[2], ends=[3]), [-1])


def _open_onnx(data: bytes) -> Predict:
    session = open_session(data, torch.get_num_threads())

    def predict(images: Tensor) -> PredictedBoxes:
        outputs = session.run(list(PredictedBoxes._fields), {_INPUT: images.numpy()})
        return PredictedBoxes(*(torch.from_numpy(values) for values in outputs))

    return predict


FORMATS = {
    "onnx": ExportFormat(_write_onnx, _open_onnx),
    "torch-export": ExportFormat(_write_torch_export, _open_torch_export),
}
"""Formats by the name that `--to` takes."""
