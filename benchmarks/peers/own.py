"""`locray label` with its defaults; its progress is recorded like that of the others."""

import sys

from benchmarks.peers.job import BATCH_SIZE, ROWS, Job, Ticks
from locray.cli.commands import label
from locray.cli.console import Console
from locray.config import LabelConfig
from locray.progress import Progress
from locray.ray_runtime.start import stop_ray

MAX_IMAGES_PER_UNIT = 256
UNITS_TO_SEE_PROGRESS = 8


class _TickingConsole(Console):
    def __init__(self, ticks: Ticks) -> None:
        super().__init__()
        self._ticks = ticks

    def report(self, progress: Progress) -> None:
        if progress.stage == "labelling":
            self._ticks.reached(progress.done)


def main() -> None:
    """The script."""
    job = Job.from_arguments()
    # Rows come unit by unit, and so few images would make too few units of the usual size to measure progress.
    batches_per_unit = len(job.paths()) // UNITS_TO_SEE_PROGRESS // BATCH_SIZE
    unit_size = min(MAX_IMAGES_PER_UNIT, max(1, batches_per_unit) * BATCH_SIZE)
    config = LabelConfig(
        images=str(job.images),
        model=job.model,
        table=str(job.output / ROWS),
        unit_size=unit_size,
        compiled=job.compiled,
    )
    exit_code = label(config, _TickingConsole(Ticks(job.output)))
    stop_ray()
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
