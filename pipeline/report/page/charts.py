"""Line charts as SVG: sharp at any size, in the page's own colours, light or dark."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 12, 34  # margins, where the axes' words stand
TOO_FAR = 20  # times the least line's top; below a twentieth of a chart's height nothing is seen
MAX_POINTS = 400  # of a line; more would be narrower than a pixel


@dataclass(frozen=True)
class Line:
    """colour: the number of a colour of style.css.   x, y: as many of each."""

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """least, most: the values at its ends.   is_log: whether a step along it is a factor."""

    least: float
    most: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """0 at the least value, 1 at the most."""
        least, most, value = ((math.log10(v) if self.is_log else v) for v in (self.least, self.most, value))
        return (value - least) / (most - least) if most > least else 0.5

    def ticks(self) -> list[float]:
        """A few round values within."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**d for d in decades for f in factors]
                found = [value for value in found if self.least <= value <= self.most]
                if len(found) <= 6:
                    break
            if len(found) >= 2:
                return found[:: math.ceil(len(found) / 6)]
        span = self.most - self.least or abs(self.most) or 1.0
        size = 10.0 ** math.floor(math.log10(span / 4))
        step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
        first = math.ceil(self.least / step)
        return [round(i * step, 12) for i in range(first, math.floor(self.most / step + 1e-9) + 1)]


def thinned(line: Line) -> Line:
    """The line with at most MAX_POINTS points, each the mean of its neighbours."""
    if len(line.x) <= MAX_POINTS:
        return line
    parts = np.array_split(np.arange(len(line.x)), MAX_POINTS)
    x, y = ([float(np.mean(np.asarray(values)[part])) for part in parts] for values in (line.x, line.y))
    return Line(line.name, line.colour, x, y)


def are_far_apart(lines: Sequence[Line]) -> bool:
    """Whether on a linear axis one of the lines would look like zero."""
    tops = [max(line.y) for line in lines if line.y]
    return bool(tops) and max(tops) > TOO_FAR * min(tops)


def chart(title: str, lines: Sequence[Line], x_label: str, is_log: bool) -> str:
    """An <svg> of the lines; "" if none has a point. is_log: y goes by factors, if all are above 0."""
    lines = [thinned(line) for line in lines if line.x]
    if not lines:
        return ""
    values = [value for line in lines for value in line.y]
    x_axis = Axis(min(0, *(min(line.x) for line in lines)), max(max(line.x) for line in lines))
    y_axis = Axis(min(values), max(values), is_log and max(values) > min(values) > 0)

    def at_x(value: float) -> float:
        return LEFT + x_axis.share(value) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        return HEIGHT - BOTTOM - y_axis.share(value) * (HEIGHT - TOP - BOTTOM)

    ends = ", ".join(f"{line.name} ends at {line.y[-1]:.3g}" for line in lines)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{title}: {ends}")}">',
        *_grid(x_axis, y_axis, at_x, at_y),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(x_label)}</text>',
    ]
    for line in lines:
        points = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
        shape = f'<polyline class="line c{line.colour}" points="{points}"/>'
        if len(line.x) == 1:
            shape = f'<circle class="dot c{line.colour}" cx="{at_x(line.x[0]):.1f}" cy="{at_y(line.y[0]):.1f}" r="3"/>'
        parts.append(shape)
    return "\n".join([*parts, "</svg>"])


def _grid(
    x_axis: Axis, y_axis: Axis, at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> list[str]:
    parts = []
    for value in y_axis.ticks():
        y = f"{at_y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y}" dy="0.32em" text-anchor="end">{value:g}</text>')
    for value in x_axis.ticks():
        x = f"{at_x(value):.1f}"
        parts.append(
            f'<line class="grid" x1="{x}" x2="{x}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        words = f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{words}</text>')
    return parts
