"""`python -m benchmarks labelling` and `python -m benchmarks training`."""

import sys

import click

from benchmarks.config import BenchmarkConfig, BenchmarkTrainingConfig
from locray.cli.console import Console
from locray.cli.main import Command, run_command_line
from locray.errors import ExitCode, UsageError


def labelling(config: BenchmarkConfig, console: Console) -> ExitCode:
    """`python -m benchmarks labelling`."""
    from benchmarks.labelling import benchmark as run
    from benchmarks.page import as_markdown

    if config.output is not None:
        try:
            config.output.touch()  # fails early if it can't be written
        except OSError as error:
            raise UsageError(f"{config.output} can't be written: {error.strerror}") from error
    speed = run(config, console.report)
    page = as_markdown(speed)
    if config.output is not None:
        config.output.write_text(page, encoding="utf-8")
    click.echo(page, err=True)
    console.result(speed.to_dict(), {})
    return ExitCode.DONE


def training(config: BenchmarkTrainingConfig, console: Console) -> ExitCode:
    """`python -m benchmarks training`."""
    from benchmarks.training import benchmark as run

    console.result(run(config, console.report).to_dict())
    return ExitCode.DONE


if __name__ == "__main__":
    verbs = {"labelling": Command(BenchmarkConfig, labelling), "training": Command(BenchmarkTrainingConfig, training)}
    sys.exit(run_command_line("benchmarks", "Measures the speed of locray and of other tools.", verbs))
