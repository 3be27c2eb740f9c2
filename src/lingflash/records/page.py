"""A page of HTML that needs nothing but itself: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import log

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --dim: #5c5c66; --line: #d8d8de; --back: #fff;
  --c0: #0b63c4; --c1: #b3431e; --c2: #2c7a3f; --c3: #7a3fa8; --c4: #8a6100; --c5: #0d7377; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececf0; --dim: #a5a5b0; --line: #3c3c44; --back: #161618;
    --c0: #6db1ff; --c1: #ff9a70; --c2: #76cf8b; --c3: #cf9cf5; --c4: #e8bd52; --c5: #5fd0d4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--back); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p, li { max-width: 45rem; }
.wide { overflow-x: auto; }
@media (max-width: 45rem) { .words thead { display: none; } .words tr { display: block;
    padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .words td { display: block; border: 0; padding: .1rem 0; }
  .words td::before { content: attr(data-of) ": "; color: var(--dim); }
  .words td:empty { display: none; } }
table { border-collapse: collapse; font-size: .875rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: normal; min-width: 4rem; }
th { color: var(--dim); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .8125rem; overflow-wrap: anywhere; }
td code { display: inline-block; min-width: 14rem; }
.dim, .no { color: var(--dim); } .no { font-style: italic; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; max-width: 36rem; display: block; }
"""
# Of a chart by itself, where no page gives colours.
_CHART_STYLE = """
svg { --text: #1c1c1e; --dim: #5c5c66; --line: #d8d8de;
  --c0: #0b63c4; --c1: #b3431e; --c2: #2c7a3f; --c3: #7a3fa8; --c4: #8a6100; --c5: #0d7377; }
@media (prefers-color-scheme: dark) { svg { --text: #ececf0; --dim: #a5a5b0; --line: #3c3c44;
  --c0: #6db1ff; --c1: #ff9a70; --c2: #76cf8b; --c3: #cf9cf5; --c4: #e8bd52; --c5: #5fd0d4; } }
"""
# Small, so that its letters can be read on a telephone.
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 14, 12, 46
_LEGEND_ROW = 18
_JOINED = ("measured", "roofline")


def page(title: str, body: Sequence[str]) -> str:
    """The whole page around parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


@dataclass(frozen=True, slots=True)
class Html:
    """Text that is HTML already."""

    text: str


def table(head: Sequence[str], rows: Sequence[Sequence[str | Html]], numbers: int = 0) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        numbers: so many columns at the end are numbers; with none the rows are stacked where the
            page is narrow.
    """
    first = len(head) - numbers
    shape = "" if numbers else ' class="words"'

    def cells(kind: str, row: Sequence[str | Html]) -> str:
        parts = []
        for index, cell in enumerate(row):
            mark = ' class="n"' if index >= first else ""
            if kind == "td" and not numbers:
                mark = f' data-of="{escape(head[index])}"'
            text = cell.text if isinstance(cell, Html) else escape(cell)
            parts.append(f"<{kind}{mark}>{text}</{kind}>")
        return f"<tr>{''.join(parts)}</tr>"

    lines = "\n".join(cells("td", row) for row in rows)
    return (
        f'<div class="wide"><table{shape}>\n<thead>{cells("th", head)}</thead>\n<tbody>\n{lines}\n'
        "</tbody></table></div>"
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a chart.

    Args:
        kind: how it came to be, which is how it is drawn: measured solid with dots, roofline
            dashed, announced as diamonds without a line, sample as dots without a line.
        color: 0 to 5; the same thing has the same colour in every kind.
    """

    name: str
    kind: str
    color: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart with a logarithmic x axis, or a linear one."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    is_log_x: bool = True

    def svg(self, *, alone: bool = False) -> str:
        """As SVG.

        Args:
            alone: with its own colours, for a file of its own.
        """
        xs = [x for line in self.lines for x, _ in line.points]
        top = _nice(max(y for line in self.lines for _, y in line.points))
        ticks = sorted(set(xs)) if self.is_log_x else [_nice(max(xs)) * n / 4 for n in range(5)]
        height = _HEIGHT + 10 + _LEGEND_ROW * len(self.lines)
        bottom = _HEIGHT - _BOTTOM

        def place(x: float, y: float) -> tuple[float, float]:
            low, high = ticks[0], ticks[-1]
            share = _share(x, low, high, is_log=self.is_log_x)
            return (
                round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1),
                round(bottom - y / top * (bottom - _TOP), 1),
            )

        parts = [self._axes(ticks, top, place, bottom)]
        for number, line in enumerate(self.lines):
            points = [place(x, y) for x, y in line.points]
            parts.append(_drawn(line, points))
            y = _HEIGHT + 10 + _LEGEND_ROW * number
            ends = [_LEFT, _LEFT + 36] if line.kind in _JOINED else [_LEFT + 18]
            parts.append(_drawn(line, [(x, y) for x in ends]))
            said = escape(f"{line.name}: {line.kind}")
            parts.append(_text(_LEFT + 46, y + 4, said, "start"))
        style = f"<style>{_CHART_STYLE}</style>" if alone else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            f'aria-label="{escape(self.title)}" font-family="system-ui, sans-serif" '
            f'font-size="13">{style}{"".join(parts)}</svg>'
        )

    def _axes(
        self,
        ticks: Sequence[float],
        top: float,
        place: Callable[[float, float], tuple[float, float]],
        bottom: float,
    ) -> str:
        parts = []
        for n in range(5):
            _, y = place(ticks[-1], top * n / 4)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" '
                'stroke="var(--line)"/>' + _text(_LEFT - 8, y + 4, _short(top * n / 4), "end")
            )
        last = -100.0
        for tick in ticks:
            x, _ = place(tick, 0)
            if x - last > 34:
                parts.append(_text(x, bottom + 18, _short(tick), "middle"))
                last = x
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(_text(middle, bottom + 36, escape(self.x_name), "middle"))
        parts.append(
            f'<text transform="rotate(-90)" x="{-(bottom + _TOP) / 2}" y="14" '
            f'text-anchor="middle" fill="var(--dim)">{escape(self.y_name)}</text>'
        )
        return "".join(parts)

    def figure(self) -> str:
        """The chart with its heading."""
        return f"<h2>{escape(self.title)}</h2>\n<figure>{self.svg()}</figure>"


def _share(x: float, low: float, high: float, *, is_log: bool) -> float:
    if high == low:
        return 0.5
    return log(x / low) / log(high / low) if is_log else (x - low) / (high - low)


def _nice(value: float) -> float:
    """The next number above that divides well by four."""
    unit = 1.0
    while unit * 10 <= value:
        unit *= 10
    while unit > value > 0:
        unit /= 10
    return next(unit * n for n in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if unit * n >= value)


def _short(value: float) -> str:
    """A number of an axis: 65536 is 64K."""
    whole = round(value)
    if whole == value and whole >= 1024 and whole % 1024 == 0:
        return f"{whole // 1024}K"
    return f"{value:,.10g}" if value < 10 else f"{value:,.0f}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="var(--dim)">{text}</text>'


def _drawn(line: Line, points: Sequence[tuple[float, float]]) -> str:
    color = f"var(--c{line.color})"
    parts = []
    if line.kind in _JOINED:
        path = " ".join(f"{x},{y}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if line.kind == "roofline" else ""
        width = 2.5 if line.kind == "measured" else 1.5
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dash}/>'
        )
    if line.kind in ("measured", "sample"):
        parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>' for x, y in points]
    if line.kind == "announced":
        parts += [
            f'<path d="M{x} {y - 6}l6 6l-6 6l-6 -6z" fill="none" stroke="{color}" '
            'stroke-width="2"/>'
            for x, y in points
        ]
    return "".join(parts)
