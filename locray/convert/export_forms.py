"""What an artifact can be exported to: how each form is written and opened again. Called by `export`.

A new form is one line in `FORMS`.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from locray.models.interface import PredictedBoxes

IMAGES = "images"
"""The name of the graph's input; its outputs are named like the fields of `PredictedBoxes`."""

ONNX_OPSET = 20
METADATA_FILE = "locray.json"
"""The extra file of a .pt2 that holds the description of the model."""

BATCH_SIZE = "batch_size"
"""In the description of a model: images of every batch; null: any number."""

Runner = Callable[[Tensor], PredictedBoxes]
"""An exported file, opened: from (B, S, S, 3) uint8 images to predictions."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an artifact can be exported to."""

    packages: tuple[str, ...]
    """What must be installed beside locray's own dependencies."""
    write: Callable[[ExportedProgram, Mapping[str, Any]], bytes]
    """The file of a program and the description of its model."""
    open: Callable[[bytes], Runner]
    """Runs such a file."""


def _write_torch_export(program: ExportedProgram, description: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    text = json.dumps(description, indent=2, ensure_ascii=False)
    torch.export.save(program, buffer, extra_files={METADATA_FILE: text})
    return buffer.getvalue()


def _open_torch_export(data: bytes) -> Runner:
    return as_runner(torch.export.load(io.BytesIO(data)).module())


def as_runner(network: nn.Module) -> Runner:
    """A network whose answer is a dictionary of the fields of `PredictedBoxes`, without gradients."""

    @torch.no_grad()
    def run(images: Tensor) -> PredictedBoxes:
        return PredictedBoxes(**network(images))

    return run


def _write_onnx(program: ExportedProgram, description: Mapping[str, Any]) -> bytes:
    exported = torch.onnx.export(
        program,
        opset_version=ONNX_OPSET,
        input_names=[IMAGES],
        output_names=list(PredictedBoxes._fields),
        dynamic_shapes={IMAGES: {0: "batch"}} if description[BATCH_SIZE] is None else None,
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
    """The suppression of boxes (N, 4) by ONNX, which does it in float32 only: the indices of those that stay."""
    from onnxscript import FLOAT, opset20

    op: Any = opset20
    no_limit = torch.iinfo(torch.int64).max
    boxes = op.Unsqueeze(op.Cast(boxes, to=FLOAT.dtype), [0])
    scores = op.Unsqueeze(op.Cast(scores, to=FLOAT.dtype), [0, 1])
    chosen = op.NonMaxSuppression(boxes, scores, no_limit, iou_threshold)  # (n, 3): image, class, box
    return op.Reshape(op.Slice(chosen, axes=[1], starts=[2], ends=[3]), [-1])


def _open_onnx(data: bytes) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> PredictedBoxes:
        found = session.run(list(PredictedBoxes._fields), {IMAGES: images.numpy()})
        return PredictedBoxes(*(torch.from_numpy(values) for values in found))

    return run


FORMS = {
    "onnx": Form(("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx),
    "torch-export": Form((), _write_torch_export, _open_torch_export),
}
"""The forms by the name that `--to` takes."""
