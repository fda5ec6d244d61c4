"""Graphs in ONNX files, run by ONNX Runtime on the processor."""

from typing import Any

import torch
from torch import Tensor, nn

from locray.models.interface import BACKBONE, LabelModel


class OnnxModule(nn.Module):
    """The graph of an ONNX file with one input.

    Args:
        data: Content of the file.
        num_threads: Threads of its arithmetic.
    """

    def __init__(self, data: bytes, num_threads: int) -> None:
        super().__init__()
        self._session = open_session(data, num_threads)
        self._input = self._session.get_inputs()[0].name

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of the graph for its input, a tensor on the CPU."""
        return tuple(map(torch.from_numpy, self._session.run(None, {self._input: values.numpy()})))


def replace_backbone(model: LabelModel, graph: bytes, num_threads: int) -> None:
    """Replaces the backbone of a model by a graph with the same outputs, such as one in 8-bit integers."""
    setattr(model, BACKBONE, OnnxModule(graph, num_threads))


def open_session(data: bytes, num_threads: int) -> Any:
    """An `onnxruntime.InferenceSession` on the processor whose log has errors only."""
    import onnxruntime  # here, since a worker without such a graph needs none

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    # Threads that spin between batches would take the decoders' processor time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
