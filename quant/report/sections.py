"""The report's parts, in the order of the page: what a reader wants to know first comes first. Each takes the Facts and gives a section, or
one line that says which command would fill it.
"""
from statistics import median

from ..config import ALPHA
from ..console import duration, size
from .facts import NOT_RECORDED, Facts, Layer
from .markup import Markup, el
from .plots import Errors, Range, bar_panel, error_panel, finite, interval_panel, layer_map, number, range_panel, span

TOWERS = {"vision": "Vision tower", "language": "Language model"}


def section(name: str, title: str, *children) -> Markup:
    return el("section", el("h2", title), *children, id=name)


def hint(*children) -> Markup:
    return el("p", *children, class_="hint")


def panels(items: list[tuple[str, Markup]]) -> Markup:
    """(title, plot) side by side where there is room; up to two may be larger than many."""
    return el("div", [el("figure", el("figcaption", title), plot) for title, plot in items], class_="panels" if len(items) > 2 else "panels few")


def legend(*entries: tuple[str, str]) -> Markup:
    return el("p", [el("span", el("i", class_=kind), text) for kind, text in entries], class_="legend")


def table(head: list[str], rows: list[list], numeric: set[int] = frozenset(), **attributes) -> Markup:
    """numeric: the columns whose cells are numbers, set to the right."""
    cells = lambda row, tag: [el(tag, cell, class_="number" if i in numeric else None) for i, cell in enumerate(row)]
    body = el("tbody", [el("tr", cells(row, "td")) for row in rows])
    return el("div", el("table", el("thead", el("tr", cells(head, "th"))), body, **attributes), class_="wide")


def name_of(facts: Facts, layer: Layer) -> tuple[str, int, str]:
    """(tower or "", block, the linear's name within it)."""
    found = facts.family.block_of(layer.name)
    if found is None:
        return "", -1, layer.name
    return found[0].name, found[1], layer.name[len(found[0].block(found[1])) :]


# ---- summary


def summary(facts: Facts) -> Markup:
    tiles = [tile for tile in (accuracy_tile(facts), *verify_tiles(facts), worst_block_tile(facts), *size_tiles(facts)) if tile]
    return section("summary", "Summary", el("div", tiles, class_="tiles"), settings(facts))


def tile(label: str, value: str, note: str, state: str | None = None) -> Markup:
    """state: good or bad; said in words in `note` too, never by colour alone."""
    return el("div", el("h3", label), el("strong", value), el("span", note), class_=f"tile {state or ''}".strip())


def accuracy_tile(facts: Facts) -> Markup | None:
    if facts.evaluation is None:
        return None
    shares = [100 * _all(side)["right"] / _all(side)["of"] for side in facts.evaluation["sides"]]
    if len(shares) == 1:
        return tile("Accuracy", f"{shares[0]:.1f} %", f"{facts.evaluation['sides'][0]['name']}, nothing to compare with")
    difference = facts.evaluation["difference"]
    passed = facts.evaluation["passed"]
    verdict = f"{signed(difference['points'], '.2f')} points, {'more than' if difference['exceeded'] else 'within'} the {difference['max_drop']:g} allowed"
    return tile("Accuracy", f"{shares[0]:.1f} → {shares[1]:.1f} %", verdict, "good" if passed else "bad")


def _all(side: dict) -> dict:
    """The row of the table that counts all questions: its last."""
    return list(side["table"].values())[-1]


def verify_tiles(facts: Facts) -> list[Markup]:
    return []


def worst_block_tile(facts: Facts) -> Markup | None:
    known = [block for block in facts.run.get("blocks", []) if finite(block["snr_db"])]
    if not known:
        return None
    worst = min(known, key=lambda block: block["snr_db"])
    plain = f", {worst['snr_plain_db']:.1f} without smoothing" if facts.recipe["config"]["anti_method"] != "none" else ""
    return tile("Weakest block", f"{worst['snr_db']:.1f} dB", worst["block"] + plain)


def size_tiles(facts: Facts) -> list[Markup]:
    int8 = [layer for layer in facts.layers if layer.int8]
    weights = lambda layers: sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return [
        tile("Size", size(facts.bytes_written), f"{facts.bytes_written / facts.bytes_16bit:.0%} of {size(facts.bytes_16bit)} in 16 bits"),
        tile("Linears in int8", f"{len(int8)} of {len(facts.layers)}", f"{weights(int8) / weights(facts.layers):.0%} of their weights"),
    ]


def settings(facts: Facts) -> Markup:
    recipe, config = facts.recipe, facts.recipe.get("config", {})
    if not recipe:
        return hint("This directory holds no quant_recipe.json: it was made by another tool, and how is not recorded.")
    method = config["anti_method"]
    smoothing = "none" if method == "none" else f"{method}, {recipe['smoothed_groups']} groups" + (f", alpha {config['alpha'] or ALPHA:g}" if method == "m4" else "")
    rows = {
        "Model": f"{facts.family.name} ({recipe['architecture']})",
        "Outlier suppression": smoothing,
        "Activation ranges": {1: "min-max", 2: "histogram", 3: "the better of min-max and histogram"}[config["act_method"]],
        "Calibration": f"{len(recipe['samples'])} samples, sha256 {recipe['calibration_sha256'][:16]}",
        "Arithmetic": f"calibrated in {recipe['compute_dtype']}, exported for {recipe['export_dtype']}, on {facts.run.get('device', NOT_RECORDED)}",
        "Seed": config["seed"],
        "Versions": f"quant {recipe['version']}, torch {recipe['torch']}, transformers {recipe['transformers']}",
        "Layout": {"ascendV1": "ascendV1, for MindIE and vLLM-Ascend", "mindie": "the older MindIE's"}[facts.export.kind],
        "Choices": f"fingerprint {recipe['fingerprint'][:16]}",
    }
    return el("dl", [[el("dt", name), el("dd", value)] for name, value in rows.items()])


# ---- plots by block


def errors(facts: Facts) -> Markup:
    smoothed = facts.recipe.get("config", {}).get("anti_method", "none") != "none"
    figures = []
    for tower, title in TOWERS.items():
        entries = [Errors(block["index"], block["snr_plain_db"] if smoothed else None, block["snr_db"]) for block in facts.blocks(tower) if block["int8"]]
        if entries:
            figures.append((title, error_panel(entries)))
    if not figures:
        return section("errors", "Error per block", hint("Not recorded: this directory holds no quant_run.json."))
    told = (
        "What a block adds to the hidden state, in float, against the error of adding it in int8: signal-to-noise on one calibration sample, dB. "
        "Higher is better; 20 dB is an error of 10 %, 40 dB of 1 %."
    )
    kinds = [("before", "plain rounding"), ("after", f"with {facts.recipe['config']['anti_method']}, as exported")] if smoothed else [("after", "as exported")]
    return section("errors", "Error per block", el("p", told), legend(*kinds), panels(figures))


def ranges(facts: Facts) -> Markup:
    smoothed = facts.recipe.get("config", {}).get("anti_method", "none") != "none"
    figures = []
    for tower, title in TOWERS.items():
        groups: dict[str, list[Range]] = {}
        for block in facts.blocks(tower):
            for entry in block["ranges"]:
                inner = ", ".join(name[len(block["block"]) + 1 :] for name in entry["linears"])
                typical = entry.get("channels_after", [None])[0]
                groups.setdefault(inner, []).append(Range(block["index"], tuple(entry["before"]), tuple(entry["after"]), typical))
        figures += [(el("span", title, el("b", f"input of {short(inner)}")), range_panel(entries, smoothed)) for inner, entries in groups.items()]
    if not figures:
        return section("ranges", "Activation ranges", hint("Not recorded: this directory holds no quant_run.json."))
    told = (
        "The smallest and largest activation over all calibration samples. One int8 step is 1/255 of the range, for every channel alike: where the range is far "
        "wider than an ordinary channel, few of the 256 codes are left for that channel. Linear around 0, logarithmic further out."
    )
    kinds = [("before pale", "before smoothing"), ("after", "after, as exported")] if smoothed else [("after", "as exported")]
    return section("ranges", "Activation ranges", el("p", told), legend(*kinds, ("typical", "where the median channel ends")), panels(figures))


def short(inner: str) -> str:
    """self_attn.q_proj, self_attn.k_proj -> q_proj, k_proj"""
    return ", ".join(name.rpartition(".")[2] for name in inner.split(", "))


def timings(facts: Facts) -> Markup:
    if not facts.run:
        return section("timings", "Timings", hint("Not recorded: this directory holds no quant_run.json."))
    figures = []
    for tower, title in TOWERS.items():
        blocks = facts.blocks(tower)
        total = sum(block["seconds"] for block in blocks)
        bars = [(block["index"], block["seconds"], f"block {block['index']}, {block['seconds']:.2f} s") for block in blocks]
        if bars:
            figures.append((f"{title}: {duration(total)}", bar_panel("Seconds by block", bars, "plain")))
    run = facts.run
    told = f"{duration(run['seconds'])} in all, {size(run['peak_memory_bytes'])} of memory at the peak, on {run['device']}. Seconds per block, reading and writing included:"
    return section("timings", "Timings", el("p", told), panels(figures))


# ---- layers


def layers(facts: Facts) -> Markup:
    figures, tables = [], []
    for tower, title in [*TOWERS.items(), ("", "Outside the blocks")]:
        members = [(block, inner, layer) for layer in facts.layers for where, block, inner in [name_of(facts, layer)] if where == tower]
        if not members:
            continue
        if tower:
            rows = list(dict.fromkeys(inner for _, inner, _ in sorted(members, key=lambda member: member[0])))
            rows = [inner for group in tower_groups(facts, tower) for inner in group if inner in rows]
            cells = {(inner, block): (float(layer.int8), f"{layer.name}: {'int8' if layer.int8 else 'float, ' + layer.why}") for block, inner, layer in members}
            figures.append((title, layer_map(rows, cells, "after")))
            members.sort(key=lambda member: (member[0], rows.index(member[1])))
        tables.append(el("details", el("summary", f"{title}: {_count(members)}"), layer_table([layer for _, _, layer in members])))
    search = el("p", el("label", "Show linears whose name or reason contains ", el("input", type="search", id="filter", autocomplete="off")), class_="search")
    return section("layers", "Every linear's decision", legend(("after", "int8"), ("blank", "float")), panels(figures), search, tables)


def tower_groups(facts: Facts, tower: str) -> list[tuple[str, ...]]:
    return [group.linears for entry in facts.family.towers if entry.name == tower for group in entry.groups]


def _count(members: list) -> str:
    int8 = sum(layer.int8 for _, _, layer in members)
    return f"{int8} int8, {len(members) - int8} float"


def layer_table(entries: list[Layer]) -> Markup:
    head = ["Linear", "Shape", "Type", "Why float", "Input scale", "Offset", "Weight scales"]
    rows = [
        [
            el("code", layer.name),
            f"{layer.shape[0]} × {layer.shape[1]}",
            el("span", "int8" if layer.int8 else "float", class_=f"chip {'int8' if layer.int8 else 'float'}"),
            "" if layer.int8 else layer.why,
            number(layer.input_scale) if layer.int8 else "",
            layer.input_offset if layer.int8 else "",
            span(layer.weights) if layer.int8 else "",
        ]
        for layer in entries
    ]
    return table(head, rows, {1, 4, 5, 6}, class_="layers")


# ---- accuracy


def accuracy(facts: Facts) -> Markup:
    result = facts.evaluation
    if result is None:
        command = "python -m quant evaluate --model_path SRC --quantized OUT --data FILE --json evaluation.json"
        return section("accuracy", "Accuracy", hint("Not evaluated. ", el("code", command), ", then this report with ", el("code", "--evaluation evaluation.json"), "."))
    sides = result["sides"]
    rows = []
    for key, row in sides[0]["table"].items():
        points = [side["table"][key]["right"] for side in sides]
        change = [signed(points[1] - points[0], "d")] if len(sides) == 2 else []
        rows.append([key, *points, *change, row["of"]])
    if "published" in sides[0]:
        norms = [side["published"]["Final Score Norm"] for side in sides]
        rows.append(["Final Score Norm", *(f"{norm:.1f}" for norm in norms), *([signed(norms[1] - norms[0], ".1f")] if len(sides) == 2 else []), ""])
    head = ["Right answers", *(side["name"] for side in sides), *(["change"] if len(sides) == 2 else []), "of"]
    parts = [table(head, rows, set(range(1, len(head))), class_="scores")]
    if len(sides) == 2:
        parts += [difference_figure(result["difference"]), flips_table(result)]
    for side in sides:
        if side["model"].get("arithmetic") == "int8" and side["model"]["files"] != facts.files:
            parts.append(hint(f"{side['name']}: these scores are not of this directory's files, or of a copy; evaluate again."))
        if side["unanswered"]:
            parts.append(hint(f"{side['name']}: {len(side['unanswered'])} questions have no answer and count as wrong."))
        if side["troubles"]:
            parts.append(hint(f"{side['name']}: " + ", ".join(f"{count} × {kind}" for kind, count in side["troubles"].items()) + ", tried again where that can help."))
    rule = {"contains": "an answer counts as right if it contains a known one (OCRBench's rule)", "exact": "an answer counts as right if it is a known one"}[result["match"]]
    parts.append(el("p", f"{result['data']['file']}, {result['data']['questions']} questions, sha256 {result['data']['sha256'][:16]}; {rule}. Greedy decoding.", class_="note"))
    return section("accuracy", "Accuracy", parts)


def difference_figure(difference: dict) -> Markup:
    low, high = difference["interval"]
    text = (
        f"Difference {signed(difference['points'], '.2f')} points, {100 * difference['level']:.0f} % confidence interval {signed(low, '.2f')} to {signed(high, '.2f')} "
        f"(paired bootstrap); {difference['lost']} answers lost, {difference['gained']} gained. Shaded: a drop of more than {difference['max_drop']:g}, which --max_drop does not allow."
    )
    return el("figure", interval_panel(difference["points"], low, high, difference["max_drop"]), el("figcaption", el("span", text)), class_="difference")


def signed(value: float, form: str) -> str:
    """With its sign, a minus being one; 0 has none."""
    return f"{value:+{form}}".replace("-", "\u2212") if value else f"{value:{form}}"


def flips_table(result: dict) -> Markup | None:
    if not result["flips"]:
        return None
    names = [side["name"] for side in result["sides"]]
    said = lambda text: el("em", "no answer") if text is None else text
    rows = [
        [flip["where"].replace("\\", "/").rpartition("/")[2], flip["prompt"], " or ".join(flip["answers"]), *map(said, flip["predictions"]), "lost" if flip["lost"] else "gained"]
        for flip in result["flips"]
    ]
    return el("details", el("summary", f"{len(rows)} answers that flipped"), table(["Question", "Prompt", "Wanted", *names, ""], rows, class_="flips"))


# ---- images


def images(facts: Facts) -> Markup:
    samples = facts.recipe.get("samples", [])
    if not samples:
        return section("images", "Calibration images", hint("Not recorded: this directory holds no quant_recipe.json."))
    items = []
    for sample in samples:
        thumbnail = facts.thumbnails.get(sample["sha256"])
        picture = el("img", src=thumbnail, alt="") if thumbnail else el("div", "not at hand", class_="absent")
        items.append(el("li", picture, el("span", sample["name"]), el("code", sample["sha256"][:12])))
    missing = len(samples) - sum(sample["sha256"] in facts.thumbnails for sample in samples)
    note = hint(f"{missing} of {len(samples)} were not found; ", el("code", "--images PATH"), " names where they are.") if missing else None
    return section("images", "Calibration images", el("ul", items, class_="images"), note)
