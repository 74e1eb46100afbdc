"""Small line charts and scatters as inline SVG: no script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

PALETTE = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2")

LARGEST = 1e100  # differences of larger numbers may be no numbers


@dataclass
class Series:
    """One line (or cloud of points) of a chart.

    Attributes:
        name: shown in the legend.
        x: positions, in units of the axis.
        y: values; None, NaN and those beyond 1e100 break the line.
        dots: draw points instead of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    dots: bool = False
    points: list[tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.points = [
            (float(a), float(b))
            for a, b in zip(self.x, self.y, strict=True)
            if b is not None and abs(b) < LARGEST
        ]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "environment steps",
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    diagonal: bool = False,
    mark: float | None = None,
    size: tuple[int, int] = (420, 240),
) -> str:
    """An SVG chart, or an empty string when there is nothing to draw.

    Args:
        title: above the chart.
        series: what to draw.
        x_label: below the axis.
        y_range: fixed limits; otherwise they fit the values.
        percent: label the y axis in per cent of 1.
        diagonal: add the line y = x.
        mark: add an upright line at this position.
        size: width and height in pixels.

    >>> chart("loss", [Series("a", [0, 1], [2.0, 1.0])]).startswith("<figure")
    True
    >>> chart("nothing", [Series("a", [], [])])
    ''
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    width, height = size
    left, right, top, bottom = 46, 12, 12, 34
    x_low, x_high = _limits([x for s in series for x, _ in s.points], 0.0)
    y_low, y_high = y_range or _limits([y for s in series for _, y in s.points], 0.06)
    if diagonal:
        x_low = y_low = min(0.0, x_low, y_low)
        x_high = y_high = max(x_high, y_high)

    def at_x(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def at_y(y: float) -> float:
        return (
            height
            - bottom
            - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (height - top - bottom)
        )

    parts = []
    for tick in ticks(y_low, y_high):
        label = f"{100 * tick:.0f}%" if percent else short(tick)
        y = f"{at_y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{at_y(tick) + 3.5:.1f}" text-anchor="end">{label}</text>')
    for tick in ticks(x_low, x_high):
        parts.append(
            f'<text x="{at_x(tick):.1f}" y="{height - bottom + 15}" text-anchor="middle">{short(tick)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{width - right}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>'
    )
    if diagonal:
        ends = (
            f'x1="{at_x(x_low):.1f}" y1="{at_y(y_low):.1f}" x2="{at_x(x_high):.1f}" y2="{at_y(y_high):.1f}"'
        )
        parts.append(f'<line class="diagonal" {ends}/>')
    if mark is not None and x_low <= mark <= x_high:
        x = f"{at_x(mark):.1f}"
        parts.append(f'<line class="diagonal" x1="{x}" x2="{x}" y1="{top}" y2="{height - bottom}"/>')
    for index, s in enumerate(series):
        colour = PALETTE[index % len(PALETTE)]
        if s.dots or len(s.points) == 1:
            opacity = max(0.25, min(0.9, 60 / len(s.points)))
            look = f'r="3.2" fill="{colour}" fill-opacity="{opacity:.2f}"'
            parts += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" {look}/>' for x, y in s.points]
        else:
            path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in thin(s.points))
            parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
    legend = ""
    if len(series) > 1:
        names = (
            f'<i style="background:{PALETTE[i % len(PALETTE)]}"></i>{escape(s.name)}'
            for i, s in enumerate(series)
        )
        legend = f'<div class="legend">{" ".join(f"<span>{name}</span>" for name in names)}</div>'
    svg = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return f"<figure class=chart><figcaption>{escape(title)}</figcaption>{legend}{svg}</figure>"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high], about ``count`` of them.

    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in at most five characters.

    >>> short(12500.0), short(0.25), short(0.0)
    ('12.5k', '0.25', '0')
    """
    if value == 0:
        return "0"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def thin(points: list[tuple[float, float]], limit: int = 600) -> list[tuple[float, float]]:
    """At most ``limit`` points, the last one among them."""
    stride = -(-len(points) // limit)
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _limits(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    return (low - margin * span, high + margin * span) if high > low else (low - span / 2, high + span / 2)
