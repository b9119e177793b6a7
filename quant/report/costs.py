"""What rounding each input group costs the logits (`python -m quant analyze`): a map of every tower, and every group
with its rank; as a section of an export's report, and as a page of its own.
"""

import math
from pathlib import Path

from ..export.reader import Export
from ..verify.sensitivity import GroupCost, Sensitivity
from .axes import number
from .facts import Facts
from .markup import Markup, el
from .parts import TOWERS, panels, percent, section, table, undone
from .plots import layer_map
from .weakest import copy_button

DECADES = 3  # of cost, from the largest down to no colour
TITLE = "What each group of linears costs"
NO_ANALYSIS = "python -m quant analyze SRC --save_directory ANALYSIS"


def costs(facts: Facts) -> Markup:
    """The section of a report, with what the groups are in this export."""
    if facts.analysis is None:
        return section("costs", TITLE, undone("Not analysed.", NO_ANALYSIS, "--analysis ANALYSIS/analysis.json"))
    found, export = facts.analysis, facts.export
    shares: dict[str, float] = {}
    for group in found.groups:
        shares[word(export, group)] = shares.get(word(export, group), 0.0) + group.share
    said = ", ".join(f"{percent(share)} {kind}" for kind, share in shares.items())
    return section(
        "costs", TITLE, el("p", f"Of the multiply-adds in blocks: {said}. "), *maps(found), *every_group(found, export)
    )


def page(found: Sensitivity) -> str:
    """The whole HTML document; it needs no network."""
    here = Path(__file__).parent
    style, script = (Markup((here / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", TITLE),
        el("style", style),
    )
    body = section("costs", "By block", *maps(found), *every_group(found))
    whole = el("body", el("header", el("h1", TITLE)), el("main", body), el("script", script))
    return f"<!doctype html>\n{el('html', head, whole, lang='en')}\n"


def maps(found: Sensitivity) -> list[Markup]:
    """A map per tower: rows are groups, columns are blocks, the darker the costlier, on a logarithmic scale."""
    text = (
        f"KL divergence of the next token's distribution from the float model's, in millinats, over {found.positions}"
        " held-out positions, with one group alone in static W8A8: full colour is the costliest, none a thousandth of"
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
    return [el("p", text), panels(figures)]


def every_group(found: Sensitivity, export: Export | None = None) -> list[Markup]:
    """All groups, the costliest first, and the flag that keeps the first of them float."""
    ranked = sorted(found.groups, key=lambda group: group.static, reverse=True)
    rows = [
        [
            rank,
            el("code", ", ".join(group.linears) if len(group.linears) < 4 else f"{group.linears[0]} and its like"),
            *([] if export is None else [word(export, group)]),
            percent(group.share),
            *(
                el("span", number(1e3 * value), data_value=f"{value:.6g}")
                for value in (group.static, group.dynamic, group.company)
            ),
        ]
        for rank, group in enumerate(ranked, 1)
    ]
    head = ["Rank", "Linears", *([] if export is None else ["Here"]), "Of all", "Static", "Dynamic", "In company"]
    numeric = {0, *range(len(head) - 4, len(head))}
    flag = f"--disable_names {' '.join(ranked[0].linears)}" if ranked and len(ranked[0].linears) < 4 else None
    return [
        table(head, rows, numeric, class_="sortable", id="costs-groups"),
        copy_button("#costs-groups", "Copy"),
        *(
            [el("p", "To keep the first float: ", el("code", flag, id="costs-flag"), " ")]
            + [copy_button("#costs-flag", "Copy the flag")]
            if flag
            else []
        ),
    ]


def word(export: Export, group: GroupCost) -> str:
    """What the group's linears are in an export: a type of linear, or float."""
    return export.words.get(group.linears[0], "float")


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
