"""`python -m tests.gpu_check`: a GPU beside the processors of its machine, as a page in Markdown.

With --bare it needs torch, torchvision, numpy, pyarrow, pydantic and Pillow alone: neither Ray nor Delta.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.gpu_check.stand_ins import install_stand_ins

if TYPE_CHECKING:
    from tests.gpu_check.checks import Check


TIME_S = 600


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__)
    parser.add_argument("--bare", action="store_true", help="leave out what needs Ray or Delta")
    parser.add_argument("--only-whole-runs", action="store_true", help="what needs Ray and Delta alone")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the device to check")
    parser.add_argument("--quick", action="store_true", help="few and small images: whether the check itself works")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if options.bare:
        missing = install_stand_ins()
        if missing:
            print(f"without {', '.join(missing)}", flush=True)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no CUDA device (`nvidia-smi` shows what the system finds)", file=sys.stderr)
        return 2
    if options.output is not None and not options.output.absolute().parent.is_dir():
        print(f"there is no folder to write {options.output} into", file=sys.stderr)
        return 2
    started, lines, failed = time.monotonic(), [f"# {_machine(options.device)}", ""], []
    for title, check in _checks(options):
        if title is not None:
            lines += ["", f"## {title}", "", "| check | | found |", "| --- | --- | --- |"]
        line = f"| {check.name} | {'ok' if check.passed else 'FAILED'} | {check.found} |"
        print(line, flush=True)
        lines.append(line)
        if not check.passed:
            failed.append(check.name)
    form = f"{time.monotonic() - started:.0f} s, `python -m tests.gpu_check {' '.join(sys.argv[1:])}`"
    lines += ["", f"{len(failed)} failed; {form}"]
    print(lines[-1])
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _checks(options: argparse.Namespace) -> "Iterator[tuple[str | None, Check]]":
    """The results, the first of each part with the part's title."""
    import torch

    from tests.gpu_check.checks import FULL, SMALL, run_checks

    parts, ends_at_s = [], time.monotonic() + TIME_S
    if not options.only_whole_runs:
        checks = run_checks(torch.device(options.device), SMALL if options.quick else FULL)
        parts.append(("The device beside the processors", checks))
    if not options.bare:
        from tests.gpu_check.whole_runs import run_whole

        parts.append(("Whole commands", run_whole(options.device, quick=options.quick, ends_at_s=ends_at_s)))
    for title, checks in parts:
        first: str | None = title
        for check in checks:
            yield first, check
            first = None


def _machine(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"


if __name__ == "__main__":
    sys.exit(main())
