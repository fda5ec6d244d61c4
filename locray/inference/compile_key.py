"""What a compiled network depends on: the model, its options, and the machine."""

import hashlib
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from locray import models

if TYPE_CHECKING:
    import torch

_KEY_DIGITS = 24
_PROCESSOR_LINES = ("model name", "flags", "Features", "CPU part")
"""Keys in /proc/cpuinfo, on x86 and on ARM."""


class CompileKey(BaseModel):
    """Everything that compiled code depends on; on a processor without its instructions it would kill the process."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: str
    precision: str
    """Name of the number format in torch, such as `bfloat16`."""
    batch_size: int
    num_threads: int
    """Threads of the arithmetic, 1 on a GPU: the compiler writes their number into the code."""
    torch_version: str
    sources: str
    """Hash of the modules that define what a network computes."""
    processor: str
    """Its name, and that of the GPU that the network is compiled for."""
    processor_flags: str
    """Hash of the processor's instruction sets, and of the GPU's capability."""

    @classmethod
    def for_this_machine(
        cls, model_id: str, precision: str, batch_size: int, num_threads: int, device: "torch.device"
    ) -> "CompileKey":
        """The key of a package that is compiled on this machine, for one of its devices."""
        import torch

        name, flags = _processor()
        if device.type == "cuda":
            # The package of a GPU also holds code for the processor that launches its kernels, in one thread.
            capability = torch.cuda.get_device_capability(device)
            name, num_threads = f"{name}, {torch.cuda.get_device_name(device)}", 1
            flags = _short_hash(f"{flags} {capability} {torch.version.cuda}".encode())
        return cls(
            model_id=model_id,
            precision=precision,
            batch_size=batch_size,
            num_threads=num_threads,
            torch_version=str(torch.__version__),
            sources=_hash_of_sources(),
            processor=name,
            processor_flags=flags,
        )

    @property
    def name(self) -> str:
        """The name of the package's files, without their endings."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:_KEY_DIGITS]

    def differences(self, here: "CompileKey") -> list[str]:
        """Returns the differences between a package's key and this machine's key."""
        ours, theirs = self.model_dump(), here.model_dump()
        return [
            f"{name.replace('_', ' ')} {ours[name]} (here {theirs[name]})"
            for name in ours
            if ours[name] != theirs[name]
        ]


def _processor() -> tuple[str, str]:
    """Name of the processor, and a hash of the instructions that it has."""
    lines = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    found = sorted({line for line in lines if line.startswith(_PROCESSOR_LINES)})
    names = [line.partition(":")[2].strip() for line in found if line.startswith("model name")]
    name = " ".join([platform.machine(), *(names or [platform.processor()])]).strip()
    return name, _short_hash("\n".join(found).encode())


def _hash_of_sources() -> str:
    folders = [Path(__file__).parent, Path(models.__file__).parent]
    paths = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return _short_hash(b"".join(path.read_bytes() for path in paths))


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
