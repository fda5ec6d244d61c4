"""Images per second of networks as labelling runs them, and unchanged. For docs/decisions/inference.md.

Run from the project's root: `python -m benchmarks.scripts.network_speed [--precision fp32|bf16] [--compile]
[--give-back] [ARCHITECTURE ...]`, or with `--suppression`.
Each form takes the same batch in turn, several times. Its fastest time counts, since the machine may be shared.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable

import torch
from torchvision.models import detection

from locray.convert.compile import compile_network
from locray.inference.devices import dtype_for, keep_freed_memory
from locray.inference.network import Network
from locray.inference.packages import open_package
from locray.models import detections, suppression
from locray.models.architectures import build_model
from locray.models.artifact import load_artifact, save_artifact
from locray.models.files import ArtifactInfo

ARCHITECTURES = ["localizer/resnet18", "detector/ssdlite320", "detector/fcos/resnet18", "detector/fcos"]
CLASSES = [f"class {number}" for number in range(20)]
TORCHVISION = {
    "detector/ssdlite320": (detection.ssdlite320_mobilenet_v3_large, {}),
    "detector/fcos": (detection.fcos_resnet50_fpn, {"min_size": 512, "max_size": 512}),
}
CPU = torch.device("cpu")


def forms(architecture: str, batch_size: int, dtype: torch.dtype, compiled: bool) -> dict[str, Callable[[], object]]:
    """The forms of a network that are measured, by name."""
    torch.manual_seed(0)
    model = build_model(architecture, len(CLASSES)).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    size = model.input_size_px
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        info = ArtifactInfo(architecture=architecture, classes=CLASSES, input_size=size)
        save_artifact(folder, model, info)
        network = Network(load_artifact(folder).model, CPU, dtype)
    autocast = torch.autocast("cpu", dtype if dtype is torch.bfloat16 else None, dtype is torch.bfloat16)

    def unchanged():
        with autocast:
            return model.predict(images.permute(0, 3, 1, 2))

    found = {"unchanged": unchanged, "labelling": lambda: network.predict(images)}
    if compiled:
        start = time.perf_counter()
        other = network.with_compiled(open_package(compile_network(network, images)))
        print(f"compiled in {time.perf_counter() - start:.1f} s", flush=True)
        found["compiled"] = lambda: other.predict(images)
    if architecture in TORCHVISION:
        build, options = TORCHVISION[architecture]
        own = build(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, **options).eval()
        pictures = list(images.permute(0, 3, 1, 2).float() / 255)

        def torchvision_model():
            with autocast:
                return own(pictures)

        found["torchvision"] = torchvision_model
    return found


def time_suppression() -> None:
    """Prints milliseconds of `suppress` for 32 images, by boxes per call and by candidates in use."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(32, 1000, 2, generator=generator) * 250
    boxes = torch.cat([corners, corners + 20 + torch.rand(32, 1000, 2, generator=generator) * 60], dim=2)
    scores = torch.rand(32, 1000, generator=generator).sort(dim=1, descending=True).values
    label_ids = torch.randint(0, len(CLASSES), (32, 1000), generator=generator)
    for used in (30, 200, 1000):
        found = detections.Candidates(boxes.clamp(0, 320), scores * (torch.arange(1000) < used), label_ids)
        for suppression._BOXES_PER_CALL in (1024, 2048, 4096, 16384):
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                suppression.suppress(found, 0.6, 100, 320)
                seconds.append(time.perf_counter() - start)
            result = {"boxes_per_call": suppression._BOXES_PER_CALL, "used": used, "ms": round(1000 * min(seconds), 1)}
            print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--precision", choices=["auto", "fp32", "fp16", "bf16"], default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--give-back", action="store_true", help="leave the allocator's settings alone")
    parser.add_argument("--suppression", action="store_true", help="measure only the suppression of boxes")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.suppression:
        time_suppression()
        return
    if not options.give_back:
        keep_freed_memory()
    dtype = dtype_for(options.precision, CPU)
    with torch.no_grad():
        for architecture in options.architectures:
            candidates = forms(architecture, options.batch_size, dtype, options.compile)
            seconds = {name: [] for name in candidates}
            for _ in range(options.rounds + 1):
                for name, run in candidates.items():
                    start = time.perf_counter()
                    run()
                    seconds[name].append(time.perf_counter() - start)
            speeds = {name: round(options.batch_size / min(times[1:]), 1) for name, times in seconds.items()}
            print(json.dumps({"architecture": architecture, "dtype": str(dtype), "images_per_s": speeds}), flush=True)


if __name__ == "__main__":
    main()
