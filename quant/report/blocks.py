"""The sections with a plot by block: errors, ranges, clipping, decisions."""

from .axes import number, span
from .facts import Facts, Layer
from .markup import Markup, el
from .parts import NO_RUN, NO_VERIFY, TOWERS, hint, legend, panels, percent, section, table, undone
from .plots import Errors, Range, error_panel, layer_map, line_panel, range_panel

WORST_DB, BEST_DB = 15, 45  # of a linear alone: fully coloured, palest


def errors(facts: Facts) -> Markup:
    """Error per block: each on its own, built up from block to block, each linear alone."""
    return section("errors", "Error per block", _own_errors(facts), _built_up(facts), _linears_alone(facts))


def smoothed(facts: Facts) -> bool:
    """Whether an outlier suppression was used."""
    return facts.recipe.get("config", {}).get("anti_method", "none") != "none"


def _own_errors(facts: Facts) -> list[Markup]:
    """From quant_run.json: each block on its own."""
    figures = []
    for tower, title in TOWERS.items():
        entries = [
            Errors(block["index"], block["snr_plain_db"] if smoothed(facts) else None, block["snr_db"])
            for block in facts.blocks(tower)
            if block["int8"]
        ]
        if entries:
            figures.append((title, error_panel(entries)))
    if not figures:
        return [hint(NO_RUN)]
    text = (
        "What a block adds to the hidden state, in float, against the error of adding it in int8: signal-to-noise on"
        " one calibration sample, dB. Higher is better; 20 dB is an error of 10 %, 40 dB of 1 %."
    )
    kinds = (
        [("before", "plain rounding"), ("after", f"with {facts.recipe['config']['anti_method']}, as exported")]
        if smoothed(facts)
        else [("after", "as exported")]
    )
    return [el("p", text), legend(*kinds), panels(figures)]


def _built_up(facts: Facts) -> list[Markup]:
    """From verify: the error of all blocks up to each."""
    if facts.verify is None:
        return [
            undone(
                "Not verified, so how errors build up from block to block is not known.",
                NO_VERIFY,
                "--verify verify.json",
            )
        ]
    figures = []
    for tower, title in TOWERS.items():
        blocks = [block for block in facts.verify["blocks"] if block["tower"] == tower]
        blocks = blocks if any(block["linears"] for block in blocks) else []  # a float tower has no error
        series = {
            kind: (name, {block["index"]: block[model]["snr_db"] for block in blocks})
            for kind, name, model in (("rounded", "rounded afresh", "rounded"), ("after", "exported", "export"))
        }
        if blocks:
            figures.append((title, line_panel(series, facts.verify["thresholds"]["snr"])))
    if not figures:
        return [hint("Verify found damage and ran no block.")]
    text = (
        "Built up: the hidden state after each block, all blocks before it in int8 too, against the float model's;"
        " verify's images, mean over tokens, dB."
    )
    kinds = [
        ("rounded", "float model, its linears rounded afresh"),
        ("after", "the export, in integers"),
        ("limit", "verify's threshold"),
    ]
    return [el("p", text), legend(*kinds), panels(figures)]


def _linears_alone(facts: Facts) -> list[Markup]:
    """From verify: which linear is the weak one."""
    records = linear_records(facts)
    if not records:
        return []
    weak = lambda record: min(max((BEST_DB - (record["export"]["snr_db"] or 0)) / (BEST_DB - WORST_DB), 0.06), 1.0)
    caption = lambda record: (
        f"{record['linear']}: {decibels(record['export']['snr_db'])}, rounded afresh"
        f" {decibels(record['rounded']['snr_db'])}"
    )
    text = (
        "Each linear alone, on the float model's activations: the stronger the colour, the larger its error. Full"
        f" colour is {WORST_DB} dB or less, the palest {BEST_DB} dB or more."
    )
    return [el("p", text), panels(_maps(facts, records, weak, caption, "weak"))]


def decibels(value: float | None) -> str:
    """As text."""
    return "NaN" if value is None else f"{value:.1f} dB"


def clipping(facts: Facts) -> Markup:
    """Which linears' input is clipped, by verify's images."""
    records = linear_records(facts)
    if facts.verify is None:
        return section("clipping", "Clipped activations", undone("Not verified.", NO_VERIFY, "--verify verify.json"))
    if not records:
        return section("clipping", "Clipped activations", hint("Verify found damage and ran no block."))
    limit = facts.verify["thresholds"]["clipped"]
    worst = max(records, key=lambda record: record["clipped_share"])
    text = (
        "The share of each linear's input, on verify's images, that lies outside the range seen in calibration. Full"
        f" colour is {percent(limit)}, the most that verify allows. Largest: {percent(worst['clipped_share'], 2)},"
        f" {worst['linear']}."
    )
    strength = lambda record: min(record["clipped_share"] / limit, 1.0) ** 0.5
    hover = lambda record: (
        f"{record['linear']}: {percent(record['clipped_share'], 3)} clipped; seen {span(record['range_seen'])}, covered"
        f" {span(record['range_covered']) if record['range_covered'] else 'token by token'}"
    )
    kinds = legend(("blank", "none"), ("clipped", f"{percent(limit)} or more"))
    return section(
        "clipping",
        "Clipped activations",
        el("p", text),
        kinds,
        panels(_maps(facts, records, strength, hover, "clipped")),
    )


def linear_records(facts: Facts) -> list[dict]:
    """verify's records of the linears, each with its block's tower and index."""
    blocks = facts.verify["blocks"] if facts.verify else []
    return [
        {**record, "tower": block["tower"], "index": block["index"]} for block in blocks for record in block["linears"]
    ]


def _maps(facts: Facts, records: list[dict], strength, caption, kind: str) -> list[tuple[str, Markup]]:
    """A layer_map per tower. strength, caption: record -> 0 to 1, text."""
    figures = []
    for tower, title in TOWERS.items():
        cells = {
            (facts.inner(record["linear"]), record["index"]): (strength(record), caption(record))
            for record in records
            if record["tower"] == tower
        }
        if cells:
            figures.append((title, layer_map(facts.rows(tower, {row for row, _ in cells}), cells, kind)))
    return figures


def ranges(facts: Facts) -> Markup:
    """Activation ranges of each group's input, before and after smoothing."""
    figures = []
    for tower, title in TOWERS.items():
        groups: dict[str, list[Range]] = {}
        for block in facts.blocks(tower):
            for entry in block["ranges"]:
                inner = ", ".join(name[len(block["block"]) + 1 :] for name in entry["linears"])
                typical = entry.get("channels_after", [None])[0]
                groups.setdefault(inner, []).append(
                    Range(block["index"], tuple(entry["before"]), tuple(entry["after"]), typical)
                )
        figures += [
            (el("span", title, el("b", f"input of {short(inner)}")), range_panel(entries, smoothed(facts)))
            for inner, entries in groups.items()
        ]
    if not figures:
        return section("ranges", "Activation ranges", hint(NO_RUN))
    text = (
        "The smallest and largest activation over all calibration samples. One int8 step is 1/255 of the range, for"
        " every channel alike: where the range is far wider than an ordinary channel, few of the 256 codes are left for"
        " that channel. Linear around 0, logarithmic further out."
    )
    kinds = (
        [("before pale", "before smoothing"), ("after", "after, as exported")]
        if smoothed(facts)
        else [("after", "as exported")]
    )
    return section(
        "ranges",
        "Activation ranges",
        el("p", text),
        legend(*kinds, ("typical", "where the median channel ends")),
        panels(figures),
    )


def short(inner: str) -> str:
    """self_attn.q_proj, self_attn.k_proj -> q_proj, k_proj"""
    return ", ".join(name.rpartition(".")[2] for name in inner.split(", "))


def layers(facts: Facts) -> Markup:
    """Every linear: int8 or float, why, with which scales."""
    figures, tables = [], []
    for tower, title in [*TOWERS.items(), (None, "Outside the blocks")]:
        members = [
            (layer, facts.inner(layer.name), index)
            for layer in facts.layers
            for where, index in [facts.place(layer.name)]
            if where == tower
        ]
        if not members:
            continue
        if tower:
            rows = facts.rows(tower, {inner for _, inner, _ in members})
            cells = {
                (inner, index): (float(layer.int8), f"{layer.name}: {'int8' if layer.int8 else 'float, ' + layer.why}")
                for layer, inner, index in members
            }
            figures.append((title, layer_map(rows, cells, "after")))
            members.sort(key=lambda member: (member[2], rows.index(member[1])))
        int8 = sum(layer.int8 for layer, _, _ in members)
        heading = el("summary", f"{title}: {int8} int8, {len(members) - int8} float")
        tables.append(el("details", heading, layer_table([layer for layer, _, _ in members])))
    search = el(
        "p",
        el(
            "label",
            "Show linears whose name or reason contains ",
            el("input", type="search", id="filter", autocomplete="off"),
        ),
        class_="search",
    )
    return section(
        "layers",
        "Every linear's decision",
        legend(("after", "int8"), ("blank", "float")),
        panels(figures),
        search,
        tables,
    )


def _kind(layer: Layer) -> str:
    if not layer.int8:
        return "float"
    return "int8 dynamic" if layer.why == "W8A8_DYNAMIC" else "int8"


def layer_table(entries: list[Layer]) -> Markup:
    """A row per linear."""
    head = ["Linear", "Shape", "Type", "Why float", "Input scale", "Offset", "Weight scales"]
    rows = [
        [
            el("code", layer.name),
            f"{layer.shape[0]} × {layer.shape[1]}",
            el("span", _kind(layer), class_=f"chip {'int8' if layer.int8 else 'float'}"),
            "" if layer.int8 else layer.why,
            number(layer.scales.input_scale) if layer.scales and layer.scales.input_scale is not None else "",
            layer.scales.input_offset if layer.scales and layer.scales.input_offset is not None else "",
            span(layer.scales.weights) if layer.scales else "",
        ]
        for layer in entries
    ]
    return table(head, rows, {1, 4, 5, 6}, class_="layers")
