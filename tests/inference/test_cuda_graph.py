"""What a CUDA graph is to hold makes no tensor on the CPU and waits for no value, for every architecture.

Checked without a GPU: the networks run on fake tensors, which have a device and a shape but no data.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from locray.inference import cuda
from locray.inference.network import StaticPart
from locray.models.architectures import build_model
from locray.models.detector import DETECTORS

BATCH = 2
CUDA = torch.device("cuda")
ARCHITECTURES = [
    ("small_cnn", 32),
    ("small_resnet", 32),
    ("localizer/resnet18", 64),
    ("localizer/mobilenet_v2", 64),
    ("localizer/mobilenet_v3_small", 64),
    *[(f"detector/{name}", 320 if name == "ssdlite320" else 128) for name in DETECTORS],
    *[(f"detector/{name}/mobilenet_v2", 64) for name in DETECTORS],
]


class CpuTensors(TorchDispatchMode):
    """Collects the operations that make a tensor on the CPU. Those that read a value raise without its help."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves(outputs) if isinstance(value, torch.Tensor)]
        self.found += [str(func) for tensor in tensors if tensor.device.type != "cuda"]
        return outputs


def move_to_fake_gpu(model):
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)


def walk(run, *inputs):
    """Runs on fake tensors. Returns the outputs and the operations that made a tensor on the CPU."""
    with CpuTensors() as cpu_tensors:
        outputs = run(*inputs)
    return outputs, cpu_tensors.found


@pytest.mark.parametrize(("architecture", "size"), ARCHITECTURES, ids=[name for name, _ in ARCHITECTURES])
def test_every_network_can_be_captured(architecture, size):
    model = build_model(architecture, 3, size).eval()
    with FakeTensorMode(), torch.no_grad():
        move_to_fake_gpu(model)
        images = torch.empty(BATCH, size, size, 3, dtype=torch.uint8, device=CUDA)
        outputs, on_cpu = walk(StaticPart(model, CUDA, torch.float32), images)
        assert on_cpu == []
        assert {output.device.type for output in outputs} == {"cuda"}
        if model.has_static_postprocess:
            predicted, on_cpu = walk(model.postprocess, outputs)
            assert on_cpu == []
            assert predicted.scores.shape == (BATCH, model.max_detections)


def test_the_walk_finds_what_a_graph_can_not_hold():
    with FakeTensorMode(), torch.no_grad():
        values = torch.empty(4, device=CUDA)
        assert walk(lambda: values * torch.tensor(0.5, device=CUDA))[1]
        assert walk(lambda: values[torch.tensor([0, 1])])[1]
        with pytest.raises(DynamicOutputShapeException):
            walk(values.nonzero)
        with pytest.raises(DataDependentOutputException):
            walk(lambda: float(values.max()))


def test_a_network_that_can_not_be_captured_runs_in_its_eager_form(caplog):
    """A CPU can't capture anything, whatever the reason is on a GPU."""

    def run(images):
        return (images + 1,)

    images = torch.zeros(2, 3)
    with caplog.at_level("WARNING", cuda.__name__):
        chosen = cuda.captured(run, images)
    assert chosen is run
    (message,) = caplog.messages
    assert message.startswith("the network can't be captured as a CUDA graph and runs in its eager form: ")


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory of what was said"), False),
    ],
)
def test_a_shortage_of_memory_is_told_from_other_errors(error, is_shortage):
    assert cuda.is_memory_shortage(error) == is_shortage
