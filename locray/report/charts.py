"""Charts as inline SVG: line charts and a reliability diagram.

Colours are defined in `charts.html`, so that they follow the reader's light or dark mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from locray.metrics.calibration import Calibration

NUM_COLOURS = 8
"""Classes `c0` to `c7` of `charts.html`."""
BACKGROUND = "quiet"
"""The class of a line in the background."""

_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 50, 10, 42
_NUM_TICKS = 6
_LABEL_HEIGHT = 14
_MAX_LARGE_DOTS = 60
_MIN_OPACITY = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a chart.

    Attributes:
        name: For the legend and tooltips.
        points: Pairs of x and y.
        colour: `c0` and so on, or `BACKGROUND`.
        end_label: Text beside the last point.
        marked: Whether each point is a dot with a tooltip.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    end_label: str = ""
    marked: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its title, legend and note."""

    title: str
    svg: Markup
    legend: Sequence[Line] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps values to pixels."""

    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return round(_LEFT + _share(value, self.x_ticks) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return round(_HEIGHT - _BOTTOM - _share(value, self.y_ticks) * (_HEIGHT - _TOP - _BOTTOM), 1)


def ticks(low: float, high: float, count: int = _NUM_TICKS, *, whole: bool = False) -> tuple[float, ...]:
    """About `count` round numbers whose distance is 1, 2 or 5 times a power of ten; they enclose `low` and `high`.

    Args:
        low: Finite.
        high: Finite, at least `low`. If both are equal, the ticks surround them.
        count: At least 2.
        whole: Whether only whole numbers make sense.
    """
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return tuple(round(index * step, digits) for index in range(first, max(last, first + 1) + 1))


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str = "",
    y_limits: tuple[float, float] | None = None,
    x_limits: tuple[float, float] | None = None,
    whole_x: bool = False,
    mark_x: tuple[float, str] | None = None,
    note: str = "",
) -> Chart:
    """Draws curves.

    Args:
        title: Title of the chart.
        lines: The curves, with at least one point in all.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        y_limits: Range of the y axis; by default that of the points.
        x_limits: Range of the x axis; by default that of the points.
        whole_x: Whether ticks of the x axis are whole numbers.
        mark_x: A value of x to mark by a vertical line, and its tooltip.
        note: A sentence below the title.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = y_limits or (min(ys), max(ys))
    x_low, x_high = x_limits or (min(xs), max(xs))
    frame = Frame(ticks(x_low, x_high, whole=whole_x), ticks(low, high))
    parts = [_axes(frame, x_label, y_label)]
    if mark_x is not None:
        x = frame.x(mark_x[0])
        parts.append(
            Markup('<path class="mark" d="M{x} {top}V{bottom}"><title>{name}</title></path>').format(
                x=x, top=_TOP, bottom=_HEIGHT - _BOTTOM, name=mark_x[1]
            )
        )
    parts += [_curve(line, frame) for line in sorted(lines, key=lambda line: line.colour != BACKGROUND)]
    parts.append(_end_labels(lines, frame))
    return Chart(title, _svg(title, parts), lines if len(lines) > 1 else (), note)


def reliability_chart(title: str, calibration: Calibration, note: str = "") -> Chart:
    """Draws accuracy by score: bars on the diagonal are calibrated, faint bars hold few detections."""
    frame = Frame(ticks(0, 1), ticks(0, 1))
    max_count = max((one.count for one in calibration.bins), default=1)
    parts = [_axes(frame, "score", "share that is correct")]
    for one in calibration.bins:
        left, right, top, bottom = frame.x(one.low), frame.x(one.high), frame.y(one.accuracy), frame.y(0)
        parts.append(
            Markup(
                '<path class="bar" style="fill-opacity: {opacity}" d="M{left} {bottom}V{top}H{right}V{bottom}Z">'
                "<title>{text}</title></path>"
            ).format(
                opacity=round(_MIN_OPACITY + (1 - _MIN_OPACITY) * one.count / max_count, 2),
                left=left + 0.75,
                right=right - 0.75,
                top=top,
                bottom=bottom,
                text=f"score {one.low:.2f} to {one.high:.2f}: {one.count:,} detections, mean score "
                f"{one.mean_score:.3f}, {one.accuracy:.1%} correct",
            )
        )
    diagonal = f"M{frame.x(0)} {frame.y(0)}L{frame.x(1)} {frame.y(1)}"
    parts.append(Markup('<path class="diagonal" d="{}"/>').format(diagonal))
    return Chart(title, _svg(title, parts), (), note)


def _share(value: float, axis: tuple[float, ...]) -> float:
    return (value - axis[0]) / (axis[-1] - axis[0])


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {w} {h}" role="img" aria-label="{title}">{body}</svg>').format(
        w=_WIDTH, h=_HEIGHT, title=title, body=Markup().join(parts)
    )


def _axes(frame: Frame, x_label: str, y_label: str) -> Markup:
    parts = []
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in frame.y_ticks:
        y = frame.y(value)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(left, y, right))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 6, y + 4, _text(value)))
    for value in frame.x_ticks:
        x = frame.x(value)
        parts.append(Markup('<path class="grid" d="M{} {}v4"/>').format(x, bottom))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 16, _text(value)))
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (left + right) / 2, _HEIGHT - 8, escape(x_label)
        )
    )
    if y_label:
        parts.append(
            Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
                (_TOP + bottom) / 2, y_label
            )
        )
    return Markup().join(parts)


def _curve(line: Line, frame: Frame) -> Markup:
    if not line.points:
        return Markup()
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    name = f"{line.name} {line.end_label}".strip()
    parts = [Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(line.colour, path, name)]
    if line.marked:
        radius = 2.5 if len(places) <= _MAX_LARGE_DOTS else 1
        for (x, y), (value, height) in zip(places, line.points, strict=True):
            text = f"{line.name} at {_text(value)}: {height:.4g}"
            parts.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                    line.colour, x, y, radius, text
                )
            )
    return Markup().join(parts)


def _end_labels(lines: Sequence[Line], frame: Frame) -> Markup:
    """Labels at the right ends of lines, moved down where they would overlap."""
    labelled = sorted(
        ((frame.y(line.points[-1][1]), line) for line in lines if line.end_label and line.points),
        key=lambda pair: pair[0],
    )
    parts, lowest = [], -math.inf
    for y, line in labelled:
        lowest = max(y + 4, lowest + _LABEL_HEIGHT)
        x = frame.x(line.points[-1][0]) + 6
        parts.append(
            Markup('<text class="end {}" x="{}" y="{}">{}</text>').format(line.colour, x, lowest, line.end_label)
        )
    return Markup().join(parts)


def _text(value: float) -> str:
    """Formats a tick: 12,000, 0.25, 5e-05."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
