"""Charts as inline SVG: a histogram, a scatter, a line. Colours come from the page's style sheet, light or dark.

Each is 340 by 200 units, so that text has its own size on a narrow telephone.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 10, 40  # room for the scales
APART = 32  # between the middles of two marks
_WIDE, _HIGH = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


def histogram(counts: Sequence[int], lowest: int, per_decade: int, exact: int, label: str) -> str:
    """Bars over powers of ten; `exact` values had no error and stand before them."""
    used = [n for n, count in enumerate(counts) if count] or [0]
    first = min(used) // per_decade * per_decade
    last = max(first + per_decade * 3, ceil((max(used) + 1) / per_decade) * per_decade)
    shown = [exact, *(counts[n] if n < len(counts) else 0 for n in range(first, last))]
    top = max([*shown, 1])
    step = _WIDE / (len(shown) + 1)  # one empty place parts the exact ones from the others
    parts = []
    for n, count in enumerate(shown):
        high = _HIGH * count / top
        x = LEFT + step * (n if n == 0 else n + 1)
        if count:
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{TOP + _HIGH - high:.1f}" width="{step - 2:.1f}" height="{high:.1f}"/>'
            )
    decades = range(first // per_decade, last // per_decade + 1)
    every = max(1, -(-len(decades) // 6))
    marks = [(LEFT + step * (2 + (d * per_decade - first)), f"1e{lowest + d}") for d in decades if d % every == 0]
    zero = LEFT + step / 2
    marks = [(x, text) for x, text in marks if x - zero > APART]
    total = sum(shown) or 1
    rows = [(TOP + _HIGH * (1 - part), f"{top * part / total:.0%}") for part in (0, 0.5, 1)]
    body = f'<g class="bars">{"".join(parts)}</g>'
    return _svg(label, body, [(zero, "0"), *marks], rows, "absolute error")


def scatter(points: Sequence[tuple[float, float]], label: str) -> str:
    """Wanted from left to right, got from bottom to top; where the two agree, a point is on the dashed line."""
    low, high, ticks = _scale([value for point in points for value in point])
    across, up = _places(low, high)
    dots = "".join(f'<circle cx="{across(want):.1f}" cy="{up(got):.1f}" r="2.5"/>' for want, got in points)
    line = f'<path class="guide" d="M{across(low):.1f} {up(low):.1f}L{across(high):.1f} {up(high):.1f}"/>'
    marks = [(across(tick), f"{tick:g}") for tick in ticks]
    return _svg(label, f'{line}<g class="dots">{dots}</g>', marks, [(up(t), f"{t:g}") for t in ticks], "wanted")


def line(points: Sequence[tuple[int, float]], label: str, floor_at: float = 1e-16) -> str:
    """Position from left to right, a value of many sizes from bottom to top, by powers of ten."""
    values = [(n, log10(max(value, floor_at))) for n, value in sorted(points)]
    low = floor(min(value for _, value in values))
    high = max(ceil(max(value for _, value in values)), low + 1)
    last = max(1, max(n for n, _ in values))
    up = _places(low, high)[1]
    path = "L".join(f"{LEFT + _WIDE * n / last:.1f} {up(value):.1f}" for n, value in values)
    every = max(1, -(-(high - low) // 4))
    rows = [(up(power), f"1e{power}") for power in range(low, high + 1, every)]
    step = max(1, round(last / 4))
    marks = [(LEFT + _WIDE * n / last, str(n)) for n in range(0, last + 1, step)]
    dots = "".join(f'<circle cx="{LEFT + _WIDE * n / last:.1f}" cy="{up(value):.1f}" r="2.5"/>' for n, value in values)
    return _svg(label, f'<path class="line" d="M{path}"/><g class="dots">{dots}</g>', marks, rows, "position")


def _places(low: float, high: float) -> tuple[_AxisScale, _AxisScale]:
    return _AxisScale(LEFT, _WIDE, low, high), _AxisScale(TOP + _HIGH, -_HIGH, low, high)


class _AxisScale:
    """From a value to a coordinate."""

    def __init__(self, start: float, length: float, low: float, high: float) -> None:
        self.start, self.low, self.scale = start, low, length / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.scale


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Round ends that hold all values, and about four marks between."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-12 * max(1.0, abs(low)):
        low, high = low - 1, high + 1
    rough = (high - low) / 4
    size = 10.0 ** floor(log10(rough))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= rough)
    start, stop = floor(low / step), ceil(high / step)
    return start * step, stop * step, [float(f"{n * step:.6g}") for n in range(start, stop + 1)]


def _svg(
    label: str, body: str, across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]], below: str
) -> str:
    """The frame, its scales and what it holds."""
    bottom = TOP + _HIGH
    texts = [f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>' for x, text in across]
    texts += [f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>' for y, text in up]
    texts.append(f'<text x="{LEFT + _WIDE / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(below)}</text>')
    frame = f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
    name = escape(label, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{frame}{body}{"".join(texts)}</svg>'
