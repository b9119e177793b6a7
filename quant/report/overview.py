"""The first and the last sections: what was done and what came of it; on which images; how long it took."""

from ..base.console import duration, size
from .axes import finite
from .decision import Decision
from .facts import NOT_RECORDED, Facts
from .markup import Markup, el
from .parts import NO_RUN, TOWERS, hint, panels, percent, section, tile
from .plots import bar_panel
from .proof import accuracy_tile, verify_tiles

STATES = {"good": "shown", "bad": "fails", "open": "open"}


def verdict(decision: Decision) -> Markup:
    """The first line, and what it rests on."""
    head, _, rest = decision.line.partition(":")
    rows = [
        el(
            "li",
            el("b", STATES[reason.state], class_=f"mark-{reason.state}"),
            el("a", reason.about, href=f"#{reason.place}"),
            el("span", reason.text),
        )
        for reason in decision.reasons
    ]
    return el("div", el("p", el("strong", f"{head}:"), rest), el("ul", rows), class_=f"verdict {decision.state}")


def summary(facts: Facts) -> Markup:
    """The tiles at the top, and how the export was made."""
    tiles = [
        tile
        for tile in (accuracy_tile(facts), *verify_tiles(facts), worst_block_tile(facts), *size_tiles(facts))
        if tile
    ]
    doubts = [el("p", el("strong", "Not of this export? "), doubt, class_="doubt") for doubt in facts.doubts]
    return section("summary", "Summary", doubts, el("div", tiles, class_="tiles"), settings(facts))


def worst_block_tile(facts: Facts) -> Markup | None:
    """The block with the least signal-to-noise; None where none was measured."""
    known = [block for block in facts.run.get("blocks", []) if finite(block["snr_db"])]
    if not known:
        return None
    worst = min(known, key=lambda block: block["snr_db"])
    plain = (
        f", {worst['snr_plain_db']:.1f} without smoothing"
        if finite(worst["snr_plain_db"]) and worst["snr_plain_db"] != worst["snr_db"]
        else ""
    )
    return tile("Weakest block", f"{worst['snr_db']:.1f} dB", worst["block"] + plain)


def size_tiles(facts: Facts) -> list[Markup]:
    """Bytes, and how many linears are int8."""
    int8 = [layer for layer in facts.layers if layer.int8]
    weights = lambda layers: sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return [
        tile(
            "Size",
            size(facts.bytes_written),
            f"{percent(facts.bytes_written / facts.bytes_16bit, 0)} of {size(facts.bytes_16bit)} in 16 bits",
        ),
        tile(
            "Linears in int8",
            f"{len(int8)} of {len(facts.layers)}",
            f"{percent(weights(int8) / weights(facts.layers), 0)} of their weights",
        ),
    ]


def settings(facts: Facts) -> Markup:
    """What quant_recipe.json says of how it was made."""
    recipe, config = facts.recipe, facts.recipe.get("config", {})
    if not recipe:
        return hint("This directory holds no quant_recipe.json: it was made by another tool, and how is not recorded.")
    rows = {
        "Model": f"{facts.family.name} ({recipe['architecture']})",
        "Outlier suppression": _method(recipe),
        "Activation ranges": {1: "min-max", 2: "histogram", 3: "the better of min-max and histogram"}[
            config["act_method"]
        ],
        "Calibration": f"{len(recipe['samples'])} samples, sha256 {recipe['calibration_sha256'][:16]}{_tokens(recipe)}",
        "Arithmetic": (
            f"calibrated in {recipe['compute_dtype']}, exported for {recipe['export_dtype']}, on"
            f" {facts.run.get('device', NOT_RECORDED)}"
        ),
        "Seed": config["seed"],
        "Versions": f"quant {recipe['version']}, torch {recipe['torch']}, transformers {recipe['transformers']}",
        "Layout": {"ascendV1": "ascendV1, for MindIE and vLLM-Ascend", "mindie": "the older MindIE's"}[
            facts.export.kind
        ],
        "Choices": f"fingerprint {recipe['fingerprint'][:16]}",
        "Export": f"sha256 {facts.identity[:16]}",
    }
    return el("dl", [[el("dt", name), el("dd", value)] for name, value in rows.items()])


def _method(recipe: dict) -> str:
    method = recipe["config"]["anti_method"]
    if recipe.get("msmodelslim"):
        return f"{method}, by msmodelslim {recipe['msmodelslim']}"
    if method == "none":
        return "none"
    return f"{method}, {recipe['smoothed_groups']} groups" + (f", alpha {recipe['alpha']:g}" if recipe["alpha"] else "")


def timings(facts: Facts) -> Markup:
    """Seconds per block, memory."""
    if not facts.run:
        return section("timings", "Timings", hint(NO_RUN))
    figures = []
    for tower, title in TOWERS.items():
        blocks = facts.blocks(tower)
        total = sum(block["seconds"] for block in blocks)
        bars = [
            (block["index"], block["seconds"], f"block {block['index']}, {block['seconds']:.2f} s") for block in blocks
        ]
        if bars:
            figures.append((f"{title}: {duration(total)}", bar_panel("Seconds by block", bars, "plain")))
    run = facts.run
    card = f", {size(run['peak_card_bytes'])} of the card's" if run.get("peak_card_bytes") else ""
    text = (
        f"{duration(run['seconds'])} in all, {size(run['peak_memory_bytes'])} of memory at the peak{card}, on"
        f" {run['device']}. Seconds per block, reading and writing included:"
    )
    return section("timings", "Timings", el("p", text), panels(figures))


def _tokens(recipe: dict) -> str:
    """How many tokens of each kind the language model saw, where that is recorded."""
    seen = recipe.get("tokens")
    return "; tokens: " + ", ".join(f"{count} {kind}" for kind, count in seen.items()) if seen else ""


def images(facts: Facts) -> Markup:
    """The calibration images, as far as they are found."""
    samples = facts.recipe.get("samples", [])
    if not samples:
        return section("images", "Calibration images", hint("Not recorded: this directory holds no quant_recipe.json."))
    every, samples = len(samples), [sample for sample in samples if sample.get("image", True)]
    items, missing = [], []
    for sample in samples:
        thumbnail = facts.thumbnails.get(sample["sha256"])
        told = [el("span", sample["name"]), el("code", sample["sha256"][:12])]
        if thumbnail:
            items.append(el("li", el("img", src=thumbnail, alt=""), told))
        else:
            missing.append(el("li", told))
    note = (
        el(
            "details",
            el("summary", f"{len(missing)} of {len(samples)} were not found; --images PATH names where they are"),
            el("ul", missing, class_="names"),
        )
        if missing
        else None
    )
    texts = every - len(samples)
    beside = el("p", f"Beside them, {texts} samples of text alone.") if texts else None
    return section("images", "Calibration images", el("ul", items, class_="images"), note, beside)
