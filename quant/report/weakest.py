"""The section on the linears that int8 costs most: a table to sort and to copy, and the flags that keep the worst
float.
"""

import shlex

from ..verify.verdict import decibels as known_decibels
from .blocks import decibels, linear_records
from .facts import Facts
from .markup import Markup, el
from .parts import NO_VERIFY, hint, percent, section, signed, table, undone

SHOWN = 40  # linears in the table
KEPT = 3  # of the language model, in the flags that can be copied


def weakest(facts: Facts) -> Markup:
    """By verify: each linear alone in int8, the worst first."""
    if facts.verify is None:
        return section("weakest", "Weakest linears", undone("Not verified.", NO_VERIFY, "--verify verify.json"))
    records = sorted(linear_records(facts), key=lambda record: known_decibels(record, "export"))
    if not records:
        return section("weakest", "Weakest linears", hint("Verify found damage and ran no block."))
    text = (
        "Each linear alone in int8, on the float model's activations: its signal-to-noise, the error that this is, how"
        " much of it the export adds to rounding afresh, the share of its input that is clipped, and what keeping it"
        f" float would add to the export. The {min(SHOWN, len(records))} worst of {len(records)}; a click on a heading"
        " sorts."
    )
    head = ["Linear", "dB", "rounded afresh, dB", "behind, dB", "error", "clipped", "float adds"]
    rows = [_row(facts, record) for record in records[:SHOWN]]
    body = table(head, rows, range(1, len(head)), class_="sortable", id="weakest-linears")
    return section(
        "weakest",
        "Weakest linears",
        el("p", text),
        body,
        copy_button("#weakest-linears", "Copy"),
        _flags(facts, records),
    )


def _row(facts: Facts, record: dict) -> list:
    export, afresh = record["export"]["snr_db"], record["rounded"]["snr_db"]
    behind = None if export is None or afresh is None else afresh - export
    added = _added_bytes(facts, record["linear"])
    return [
        el("code", record["linear"]),
        _cell(export, decibels(export)),
        _cell(afresh, decibels(afresh)),
        _cell(behind, "" if behind is None else signed(round(behind, 1), ".1f")),
        _cell(
            None if export is None else 10 ** (-export / 20), "" if export is None else percent(10 ** (-export / 20))
        ),
        _cell(record["clipped_share"], percent(record["clipped_share"], 2)),
        _cell(added, "" if added is None else f"{added / 1e6:.2f} MB, {percent(added / facts.bytes_written)}"),
    ]


def _cell(value: float | None, text: str) -> Markup:
    """A number as it is shown, with the value that sorts it; one that is missing comes first, as the worst."""
    return el("span", text, data_value="-1e9" if value is None else f"{value:.6g}")


def _added_bytes(facts: Facts, name: str) -> int | None:
    """By how much the export grows where a linear is kept in 16 bits; None for one that it does not have."""
    if f"{name}.weight" not in facts.export.tensors:
        return None
    parts = (facts.export.tensors.get(part) for part in facts.export.parts(f"{name}.weight"))
    outputs, inputs = facts.export.tensors[f"{name}.weight"].shape
    return 2 * outputs * inputs - sum(info.nbytes for info in parts if info)


def _flags(facts: Facts, records: list[dict]) -> Markup | None:
    """The flag for the worst of the language model, with all that servers want to be of one type."""
    worst = [record for record in records if record["tower"] == "language"][:KEPT]
    if not worst:
        return None
    config = facts.recipe.get("config", {})
    instead = config.get("disable_names_only")
    flag = "disable_names" if instead is None else "disable_names_only"  # which adds to the recipe, or replaces it
    names = list(config.get(flag) or ())
    for record in worst:
        names += [name for name in together(facts, record["linear"]) if name not in names]
    flags = f"--{flag} {shlex.join(names)}"
    return el(
        "p",
        f"To keep the {len(worst)} worst of the language model float, with those that read the same tensor, and with"
        " what is float now, quantize again with ",
        el("code", flags, id="weakest-flags"),
        " ",
        copy_button("#weakest-flags", "Copy the flags"),
    )


def together(facts: Facts, name: str) -> list[str]:
    """The linears of a block that have one type with `name`: those that read the same tensor, or all experts."""
    tower, index = facts.family.block_of(name) or (None, 0)
    if tower is None:
        return [name]
    block, inner = tower.block(index), facts.inner(name)
    if ".experts.*" in inner:
        return [f"{block}{inner.partition('.*')[0]}.*"]
    for group in tower.groups_of(facts.export.config, index):
        if inner in group.linears:
            return [block + linear for linear in group.linears]
    return [name]


def copy_button(what: str, label: str) -> Markup:
    """A button that the page's script shows and serves; what: CSS selector of a table or text; label: on it."""
    return el("button", label, type="button", data_copy=what, hidden=True)
