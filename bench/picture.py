"""Lines over an axis as a small SVG, with no library: pictures in the documentation, made from results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

Points = Sequence[tuple[float, float]]

_WIDTH: Final = 360  # of one panel
_HEIGHT: Final = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 28, 62
_COLOURS: Final = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
)  # told apart by the colour-blind, too (Okabe, Ito)
_TICKS: Final = 4
_MOST_MARKS: Final = 8  # points of a line that are marked and named; more are a curve


@dataclass(frozen=True)
class Panel:
    title: str
    x: str  # what the axis shows, with its unit
    lines: Mapping[str, Points]  # by name, from left to right

    def svg(self, left: int) -> str:
        """The panel, so far from the picture's left edge."""
        points = [point for line in self.lines.values() for point in line]
        most_x, most_y = max(x for x, _ in points), _round_up(max(y for _, y in points))
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

        def place(x: float, y: float) -> tuple[float, float]:
            return left + _LEFT + x / most_x * width, _TOP + (1 - y / most_y) * height

        parts = [_text(left + _LEFT, 16, self.title, "start", bold=True)]
        for number in range(_TICKS + 1):
            value = most_y * number / _TICKS
            (x0, y0), (x1, _) = place(0, value), place(most_x, value)
            parts.append(f'<path d="M{x0:.0f} {y0:.1f}H{x1:.0f}" stroke="#888" stroke-opacity=".35"/>')
            parts.append(_text(x0 - 6, y0 + 4, f"{value:g}", "end"))
        at = sorted({x for x, _ in points})
        if len(at) > _MOST_MARKS:
            at = [most_x * number / _TICKS for number in range(_TICKS + 1)]
        parts += [_text(place(x, 0)[0], _HEIGHT - _BOTTOM + 16, f"{x:.3g}", "middle") for x in at]
        parts.append(_text(left + _LEFT + width / 2, _HEIGHT - _BOTTOM + 32, self.x, "middle"))
        for number, (name, line) in enumerate(self.lines.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            placed = [place(*point) for point in line]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            if len(placed) <= _MOST_MARKS:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
            key = left + _LEFT + number * width / len(self.lines)
            parts.append(f'<circle cx="{key + 4:.1f}" cy="{_HEIGHT - 14}" r="4" fill="{colour}"/>')
            parts.append(_text(key + 12, _HEIGHT - 10, name, "start"))
        return "".join(parts)


def picture(panels: Sequence[Panel], description: str) -> str:
    """The panels side by side, on no ground of its own: it is seen on light and on dark pages."""
    width = _WIDTH * len(panels)
    drawn = "".join(panel.svg(number * _WIDTH) for number, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" '
        f'height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="11">'
        f"<title>{escape(description)}</title>{drawn}</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#888"{weight}>{escape(text)}</text>'


def _round_up(value: float) -> float:
    """The next 1, 2, 4, 6 or 8 times a power of ten."""
    scale = 10.0 ** len(str(int(value))) / 10 if value >= 1 else 0.1
    return next(step * scale for step in (1, 2, 4, 6, 8, 10) if step * scale >= value)
