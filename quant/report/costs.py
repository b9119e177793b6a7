"""One HTML page on what rounding each input group costs the logits (`python -m quant analyze`): a map of every tower,
and all groups as a table.
"""

import math
from pathlib import Path

from ..verify.sensitivity import GroupCost, Sensitivity
from .axes import number
from .markup import Markup, el
from .parts import TOWERS, panels, percent, section, table
from .plots import layer_map

DECADES = 3  # of cost, from the largest down to no colour
TITLE = "What each group of linears costs"


def page(found: Sensitivity) -> str:
    """The whole HTML document; it needs no network."""
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", TITLE),
        el("style", style),
    )
    body = el("body", el("header", el("h1", TITLE)), el("main", maps(found), every_group(found)))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def maps(found: Sensitivity) -> Markup:
    """A map per tower: rows are groups, columns are blocks, the darker the costlier, on a logarithmic scale."""
    text = (
        f"KL divergence of the next token's distribution from the float model's, in millinats, over {found.positions}"
        f" held-out positions, with one group alone in static W8A8: full colour is the costliest, none a thousandth of"
        f" it. All groups together: {1e3 * found.kl:.2f}."
    )
    most = max((group.static for group in found.groups), default=0.0) or 1.0
    figures = []
    for tower, title in TOWERS.items():
        groups = [group for group in found.groups if group.tower == tower]
        if groups:
            rows = list(dict.fromkeys(map(label, groups)))
            cells = {(label(group), group.block): (_strength(group.static, most), _caption(group)) for group in groups}
            figures.append((title, layer_map(rows, cells, "after")))
    return section("map", "By block", el("p", text), panels(figures))


def every_group(found: Sensitivity) -> Markup:
    """All groups, the costliest first."""
    ranked = sorted(found.groups, key=lambda group: group.static, reverse=True)
    rows = [
        [
            el("code", ", ".join(group.linears) if len(group.linears) < 4 else f"{group.linears[0]} and its like"),
            percent(group.share),
            *(number(1e3 * value) for value in (group.static, group.dynamic, group.company)),
        ]
        for group in ranked
    ]
    head = ["Linears", "Multiply-adds", "Static", "Dynamic", "Given back in company"]
    return section("groups", "Every group, in millinats", table(head, rows, {1, 2, 3, 4}))


def label(group: GroupCost) -> str:
    """The names of its linears inside a block's module, short enough for a row."""
    leaves = [name.rpartition(".")[2].removesuffix("_proj") for name in group.linears]
    return ", ".join(leaves) if len(leaves) < 4 else f"{leaves[0]} and {len(leaves) - 1} more"


def _strength(value: float, most: float) -> float:
    return max(0.0, 1 + math.log10(value / most) / DECADES) if value > 0 else 0.0


def _caption(group: GroupCost) -> str:
    return (
        f"block {group.block}, {label(group)}: static {number(1e3 * group.static)}, dynamic"
        f" {number(1e3 * group.dynamic)}, in company {number(1e3 * group.company)} millinats"
    )
