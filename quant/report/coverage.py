"""The section on what calibration covers: which tokens it saw, and what becomes of samples that it did not see."""

from .axes import finite
from .blocks import short
from .facts import Facts
from .markup import Markup, el
from .parts import NO_RUN, TOWERS, hint, panels, percent, section, table
from .plots import Errors, error_panel

WORST = 12  # groups in the table


def coverage(facts: Facts) -> Markup:
    """Tokens by kind, held-out samples block by block, and the groups whose range leaves most of them outside."""
    seen = facts.run.get("tokens")
    if not seen:
        return section("coverage", "Coverage", hint(NO_RUN))
    text = (
        f"The language model saw {seen['image']} tokens of images, {seen['prompt']} of prompts and {seen['answer']} of"
        f" answers and passages, {seen['different']} different ones of text. The block's own error below is on samples"
        " that no scale and no range was fitted to: a picture with an answer, and text of many kinds."
    )
    return section("coverage", "Coverage", el("p", text), _by_block(facts), _outside(facts))


def _by_block(facts: Facts) -> Markup | None:
    figures = []
    for tower, title in TOWERS.items():
        entries = [
            Errors(block["index"], block["snr_db"], block["snr_held_out_db"])
            for block in facts.blocks(tower)
            if block["int8"] and finite(block.get("snr_held_out_db"))
        ]
        if entries:
            figures.append((f"{title}: a calibration sample, and held-out ones", error_panel(entries)))
    return panels(figures) if figures else None


def _outside(facts: Facts) -> Markup | None:
    groups = [
        (entry["outside"], block["block"], entry["linears"], tower)
        for tower in TOWERS
        for block in facts.blocks(tower)
        for entry in block["ranges"]
        if entry.get("outside") is not None
    ]
    if not groups:
        return hint("No held-out sample entered the int8 linears, or all of them are dynamic and have no range.")
    groups.sort(key=lambda group: (-group[0], group[1]))
    rows = [
        [el("code", f"{block}: {short(', '.join(linears))}"), TOWERS[tower], percent(share, 3)]
        for share, block, linears, tower in groups[:WORST]
    ]
    note = el(
        "p", f"Held-out values outside the range that the int8 codes cover, the largest shares of {len(groups)} groups:"
    )
    return el("div", note, table(["Input of", "Tower", "Outside"], rows, {2}))
