"""Backbones in 8-bit integers, by ONNX Runtime's quantizer.

Nearly all arithmetic of a model is in its backbone. Weights become integers with a scale per channel, activations
integers with a range measured on sample images (static quantization: Jacob et al. 2018). Necks and heads keep floats.

Letters of shapes: B images, S side of the square input in pixels.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from locray.convert.export_formats import ONNX_OPSET, silent_exporters
from locray.models.interface import BACKBONE, LabelModel

_INPUT = "images"


def quantized_backbone(model: LabelModel, batches_u8: Sequence[Tensor]) -> bytes:
    """The backbone of a model as an ONNX file in 8-bit integers: the same outputs for the same normalised images.

    Args:
        model: in evaluation mode, in float32 on the CPU, with a backbone. It is not changed.
        batches_u8: images (B, S, S, 3) uint8 to measure the ranges of the activations on.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    inputs = _backbone_inputs(model, batches_u8)
    with tempfile.TemporaryDirectory(prefix="locray-int8-") as folder, silent_exporters():
        floats, integers = Path(folder) / "floats.onnx", Path(folder) / "integers.onnx"
        floats.write_bytes(_export(getattr(model, BACKBONE), inputs[0]))
        quantize_static(
            floats,
            integers,
            _CalibrationImages(inputs),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            # Without VNNI, the kernels for signed weights add two products in 16 bits, which they overflow.
            weight_type=QuantType.QUInt8,
        )
        return integers.read_bytes()


class _CalibrationImages:
    """The `CalibrationDataReader` of ONNX Runtime."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The inputs of the next batch by name; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {_INPUT: batch.numpy()}


@torch.no_grad()
def _backbone_inputs(model: LabelModel, batches_u8: Sequence[Tensor]) -> list[Tensor]:
    """What the backbone gets for each batch: normalised images (B, 3, S, S)."""
    backbone: nn.Module = getattr(model, BACKBONE)
    inputs: list[Tensor] = []
    hook = backbone.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].contiguous()))
    try:
        for images_u8 in batches_u8:
            model.predict(images_u8.permute(0, 3, 1, 2))
    finally:
        hook.remove()
    return inputs


def _export(backbone: nn.Module, images: Tensor) -> bytes:
    """The backbone as an ONNX file for batches of any size."""
    example = images[:1].repeat(2, 1, 1, 1)  # a batch size of one would be traced as a constant
    batch = {0: Dim("batch", min=1)}
    program = torch.export.export(backbone, (example,), dynamic_shapes=(batch,), strict=False)
    exported = torch.onnx.export(
        program, opset_version=ONNX_OPSET, input_names=[_INPUT], dynamic_shapes=(batch,), verbose=False
    )
    assert exported is not None
    return bytes(exported.model_proto.SerializeToString())
