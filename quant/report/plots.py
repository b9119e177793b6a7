"""Plots as inline SVG: one panel, blocks from left to right, values upward. Colours and fonts are the page's
(style.css), so a panel is right in the light and in the dark, and small enough that its text stays legible when a phone
shows it one to a row.

Each mark has a <title>, which browsers show on hover and screen readers read. matplotlib draws neither that nor
colours that follow the page's, in twice the bytes; plotly adds 4.7 MB to every report.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Across, Axis, finite, linear_axis, number, span, spread_axis
from .markup import Markup, el

MAP_LEFT, MAP_ROW = 118, 22  # pixels: of a layer map, the names' width and a row's height
EDGE = 24  # on both sides of an interval


@dataclass(frozen=True)
class Range:
    """A group's input in one block. typical: the largest |x| of its median channel."""

    block: int
    before: tuple[float, float]
    after: tuple[float, float]
    typical: float | None


@dataclass(frozen=True)
class Errors:
    """A block's signal-to-noise in dB. plain: rounded without smoothing; chosen: as exported."""

    block: int
    plain: float | None
    chosen: float | None


def range_panel(ranges: Sequence[Range], smoothed: bool) -> Markup:
    """Pale bars from lo to hi before smoothing, solid ones after; a tick where an ordinary channel ends."""
    extremes = [value for entry in ranges for value in (*entry.before, *entry.after)]
    axis = spread_axis(min(extremes + [0.0]), max(extremes + [0.0]))
    across = Across([entry.block for entry in ranges])
    marks = []
    for entry in ranges:
        words = [
            f"block {entry.block}",
            f"before {span(entry.before)}" if smoothed else None,
            f"{'after' if smoothed else 'range'} {span(entry.after)}",
        ]
        if entry.typical is not None:
            words.append(f"median channel ±{number(entry.typical)}")
        x, width = across(entry.block), across.width
        bars = [_bar(x, width * 0.8, entry.before, axis, "before")] if smoothed else []
        bars.append(_bar(x, width * 0.4, entry.after, axis, "after"))
        if entry.typical is not None:
            bars += [_tick(x, width * 0.8, axis(sign * entry.typical)) for sign in (1, -1)]
        marks.append(_hover(x, width, ", ".join(word for word in words if word), bars))
    return _panel("Range of activations by block", axis, across, marks)


def error_panel(errors: Sequence[Errors]) -> Markup:
    """Per block a dot for plain rounding and one for what was exported, joined."""
    shown = [value for entry in errors for value in (entry.plain, entry.chosen) if finite(value)]
    axis = linear_axis(min(shown + [20.0]), max(shown + [30.0]))
    across = Across([entry.block for entry in errors])
    marks = []
    for entry in errors:
        x, parts, words = across(entry.block), [], [f"block {entry.block}"]
        if finite(entry.plain) and finite(entry.chosen):
            parts.append(
                el(
                    "line",
                    x1=f"{x:.1f}",
                    x2=f"{x:.1f}",
                    y1=f"{axis(entry.plain):.1f}",
                    y2=f"{axis(entry.chosen):.1f}",
                    class_="joint",
                )
            )
        for value, kind, word in ((entry.plain, "before", "plain rounding"), (entry.chosen, "after", "exported")):
            if finite(value):
                parts.append(_dot(across, axis, entry.block, value, kind))
                words.append(f"{word} {value:.1f} dB")
        marks.append(_hover(x, across.width, ", ".join(words), parts))
    return _panel("Signal-to-noise by block, dB", axis, across, marks)


def line_panel(series: dict[str, tuple[str, dict[int, float]]], limit: float, what: str = "block") -> Markup:
    """series: CSS class -> (what to call it, block -> dB), drawn in this order; a dashed line at `limit`. what: the
    number along the axis counts.
    """
    shown = [value for _, values in series.values() for value in values.values() if finite(value)]
    axis = linear_axis(min([*shown, limit]), max([*shown, limit + 10]))
    across = Across([block for _, values in series.values() for block in values])
    marks = [el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{axis(limit):.1f}", y2=f"{axis(limit):.1f}", class_="limit")]
    for kind, (_, values) in series.items():
        steps = [f"{across(block):.1f} {axis(value):.1f}" for block, value in sorted(values.items()) if finite(value)]
        marks.append(el("path", d="M" + " L".join(steps), class_=f"course {kind}") if steps else Markup())
    for block in range(across.first, across.last + 1):
        known = [(kind, name, values[block]) for kind, (name, values) in series.items() if finite(values.get(block))]
        caption = ", ".join([f"{what} {block}", *(f"{name} {value:.1f} dB" for _, name, value in known)])
        marks.append(
            _hover(
                across(block),
                across.width,
                caption,
                [_dot(across, axis, block, value, kind) for kind, _, value in known],
            )
        )
    return _panel(f"Signal-to-noise by {what}, dB", axis, across, marks, what)


def bar_panel(label: str, bars: Sequence[tuple[int, float, str]], kind: str = "after") -> Markup:
    """bars: (block, value >= 0, what its caption says)."""
    axis = linear_axis(0.0, max([value for _, value, _ in bars] + [1e-9]))
    across = Across([block for block, _, _ in bars])
    marks = [
        _hover(
            across(block), across.width, caption, [_bar(across(block), across.width * 0.7, (0.0, value), axis, kind)]
        )
        for block, value, caption in bars
    ]
    return _panel(label, axis, across, marks)


def layer_map(rows: Sequence[str], cells: dict[tuple[str, int], tuple[float, str]], kind: str) -> Markup:
    """A row per linear of a block, a column per block. cells: (row, block) -> (0 to 1: how strongly it is coloured,
    its caption).
    """
    across = Across([block for _, block in cells], left=MAP_LEFT)
    height, marks = TOP + MAP_ROW * len(rows) + BOTTOM, []
    for number_, row in enumerate(rows):
        y = TOP + MAP_ROW * number_
        marks.append(el("text", row, x=MAP_LEFT - 8, y=y + MAP_ROW / 2, dy="0.32em", class_="value"))
        for (name, block), (strength, caption) in cells.items():
            if name == row:
                gap = min(1.5, across.width * 0.15)
                place = dict(
                    x=f"{across(block) - across.width / 2 + gap:.1f}",
                    y=y + 1.5,
                    width=f"{across.width - 2 * gap:.1f}",
                    height=MAP_ROW - 3,
                )
                cell = [
                    el("rect", class_="blank", **place),
                    el("rect", class_=kind, fill_opacity=f"{strength:.3f}", **place),
                ]
                marks.append(el("g", el("title", caption), cell, class_="mark"))
    return el(
        "svg",
        marks,
        _block_names(across, height),
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label="Linears by block",
    )


def interval_panel(points: float, low: float, high: float, max_drop: float) -> Markup:
    """A difference in points with its confidence interval, from left to right; what lies beyond -max_drop is shaded."""
    left, right = min(low, points, -max_drop) - 0.5, max(high, points, 0.0) + 0.5
    axis, height, y = linear_axis(left, right), 74, 26
    x = lambda value: EDGE + (value - axis.low) / (axis.high - axis.low) * (WIDTH - 2 * EDGE)
    marks = [
        el(
            "rect",
            el("title", f"more than {max_drop:g} points lost"),
            x=EDGE,
            y=4,
            width=f"{x(-max_drop) - EDGE:.1f}",
            height=44,
            class_="beyond",
        )
    ]
    for tick in axis.ticks:
        marks.append(
            el("line", x1=f"{x(tick):.1f}", x2=f"{x(tick):.1f}", y1=4, y2=48, class_="zero" if tick == 0 else "grid")
        )
        marks.append(el("text", f"{tick:+g}" if tick else "0", x=f"{x(tick):.1f}", y=66, class_="block"))
    marks.append(el("line", x1=f"{x(-max_drop):.1f}", x2=f"{x(-max_drop):.1f}", y1=4, y2=48, class_="limit"))
    bar = el("line", x1=f"{x(low):.1f}", x2=f"{x(high):.1f}", y1=y, y2=y, class_="interval")
    dot = el("circle", cx=f"{x(points):.1f}", cy=y, r=6, class_="after")
    marks.append(el("g", el("title", f"{points:+.2f} points, interval {low:+.2f} to {high:+.2f}"), bar, dot))
    return el(
        "svg",
        marks,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label="Difference of the scores with its confidence interval",
    )


# ---- marks


def _panel(label: str, axis: Axis, across: Across, marks: list[Markup], what: str = "block") -> Markup:
    grid = []
    for tick in axis.ticks:
        y = f"{axis(tick):.1f}"
        grid.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="zero" if tick == 0 else "grid"))
        grid.append(el("text", number(tick), x=LEFT - 6, y=y, dy="0.32em", class_="value"))
    return el(
        "svg",
        grid,
        _block_names(across, HEIGHT, what),
        marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def _block_names(across: Across, height: int, what: str = "block") -> list[Markup]:
    y = height - BOTTOM + 18
    names = [el("text", block, x=f"{across(block):.1f}", y=y, class_="block") for block in across.ticks()]
    return [el("text", what, x=across.left - 8, y=y, class_="value"), *names]


def _bar(x: float, width: float, values: tuple[float, float], axis: Axis, kind: str) -> Markup:
    top, bottom = axis(max(values)), axis(min(values))
    return el(
        "rect",
        x=f"{x - width / 2:.1f}",
        y=f"{top:.1f}",
        width=f"{width:.1f}",
        height=f"{max(bottom - top, 0.5):.1f}",
        class_=kind,
    )


def _dot(across: Across, axis: Axis, block: int, value: float, kind: str) -> Markup:
    return el(
        "circle",
        cx=f"{across(block):.1f}",
        cy=f"{axis(value):.1f}",
        r=f"{min(4, max(2, across.width * 0.3)):.1f}",
        class_=kind,
    )


def _tick(x: float, width: float, y: float) -> Markup:
    return el(
        "line", x1=f"{x - width / 2:.1f}", x2=f"{x + width / 2:.1f}", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="typical"
    )


def _hover(x: float, width: float, caption: str, marks: list[Markup]) -> Markup:
    """Marks of one block with a title; an unseen rectangle makes the whole column sensitive."""
    area = el(
        "rect", x=f"{x - width / 2:.1f}", y=TOP, width=f"{width:.1f}", height=HEIGHT - TOP - BOTTOM, class_="area"
    )
    return el("g", el("title", caption), area, marks, class_="mark")
