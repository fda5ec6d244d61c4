"""Results of the labelling benchmark as Markdown that is readable on a terminal."""

from benchmarks.results import MIN_STEADY_S, LabellingSpeed, Result

_COLUMNS = {
    "images/s steady": "images_per_s_steady",
    "end to end": "images_per_s",
    "per CPU second": "images_per_cpu_s",
    "first row after s": "startup_s",
    "peak MiB": "peak_mib",
}


def as_markdown(speed: LabellingSpeed) -> str:
    """Returns tables of medians with their ranges, the ratios, and skipped contenders."""
    images = ", ".join(f"{count:,} {tier}" for tier, count in speed.images.items())
    lines = [f"{speed.machine}; locray {speed.version}; images: {images}", ""]
    for tier in speed.images:
        names = [tier, *_COLUMNS, "same class", "same box", "arithmetic"]
        lines += [_row(names), _row(["---"] * len(names))]
        lines += [_row(_cells(result)) for result in speed.results if result.tier == tier]
        lines.append("")
    lines += [f"- {name}: {'none' if ratio is None else f'{ratio:.2f}'}" for name, ratio in speed.ratios.items()]
    lines += [
        f"- {result.tier}: {result.contender} has no steady state of {MIN_STEADY_S} s or more. "
        f"Take more images: --{result.tier}-images"
        for result in speed.results
        if len(result.values("images_per_s_steady")) < len(result.runs)
    ]
    lines += [f"- one image, {name}: {', '.join(map(str, s))} s" for name, s in speed.one_image_s.items()]
    for tier, steps in speed.breakdown_ms.items():
        shown = ", ".join(f"{step} {milliseconds:.2f}" for step, milliseconds in steps.items())
        lines.append(f"- where the time goes, {tier}, milliseconds of a core per image: {shown}")
    lines += [f"- skipped: {name} ({why})" for name, why in speed.skipped.items()]
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> list[str]:
    """Returns a row, without measurements if the contender's labels are wrong."""
    measures = [_median_and_range(result, name) if result.agreement.is_valid else "-" for name in _COLUMNS.values()]
    agreement = [f"{result.agreement.same_class:.3f}", f"{result.agreement.same_box:.3f}"]
    return [result.contender, *measures, *agreement, result.precision]


def _median_and_range(result: Result, name: str) -> str:
    values, median = result.values(name), result.median(name)
    if median is None:
        return "-"
    digits = 0 if median >= 1000 else 1  # noqa: PLR2004
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
