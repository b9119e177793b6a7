"""The page on an int8 ONNX export: its scores beside the float model's, which layers are float and what each would
damage, and, where verify has been run, the error from tensor to tensor.
"""

import json
from pathlib import Path

from ..base.errors import UsageError
from ..onnx.export import Export, read_export
from .markup import Markup, el
from .parts import hint, panels, percent, section, signed, table, tile
from .plots import interval_panel, line_panel

COMMANDS = {
    "verify": "python -m quant verify OUT --model_path X.onnx --images DIR --json verify.json",
    "evaluation": "python -m quant evaluate --model_path X.onnx --quantized OUT --data labels.txt --json e.json",
}


def page(directory: str, verify: str | None, evaluation: str | None) -> str:
    """The whole HTML document. Raises UsageError where a file is none of verify's or evaluate's on this export,
    QuantError where the directory's record is damaged.
    """
    export = read_export(directory)
    judged, scored = _read(export, verify, "verify"), _read(export, evaluation, "evaluation")
    parts = [_summary(export, scored), _accuracy(export, scored), _errors(judged), _layers(export), _origin(export)]
    title = f"{export.record['source']['file']}, int8"
    here = Path(__file__).parent
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{title}: {export.directory.name}"),
        el("style", Markup((here / "style.css").read_text(encoding="utf-8"))),
    )
    top = el("header", el("h1", title), el("p", el("code", export.directory.resolve())))
    return f"<!doctype html>\n{el('html', head, el('body', top, el('main', parts)), lang='en')}\n"


def _read(export: Export, file: str | None, what: str) -> dict | None:
    """What a command wrote with --json, if it was on this export."""
    if file is None:
        return None
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        made = data["quantized"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise UsageError(f"--{what} {file}: not what `{COMMANDS[what]}` writes ({type(err).__name__})") from None
    if made != export.record["model"]["sha256"]:
        raise UsageError(f"--{what} {file}: is on another export, {made[:16]}")
    return data


def _summary(export: Export, scored: dict | None) -> Markup:
    record = export.record
    held, floats = record["held_out"], [layer for layer in record["layers"] if not layer["int8"]]
    metric, *_ = held["scores"]["float"]
    one, other, count = held["scores"]["float"][metric], held["scores"]["int8"][metric], held["images"]
    if scored:
        (one, other), count = scored["metrics"][metric], scored["items"]
    good = one - other <= record["options"]["max_drop"]
    tiles = [
        tile(
            f"{metric}, int8 less float",
            signed(other - one, ".2f"),
            f"{one:.2f} to {other:.2f} on {count} images: {'within' if good else 'outside'} the bound",
            "good" if good else "bad",
        ),
        tile("Multiply-adds in int8", percent(record["multiply_adds"]["int8"]), f"{len(floats)} layers are float"),
        tile(
            "Size",
            f"{record['model']['bytes'] / 1e6:.2f} MB",
            f"float {record['source']['bytes'] / 1e6:.2f} MB",
        ),
    ]
    return section("summary", "Summary", el("div", tiles, class_="tiles"))


def _accuracy(export: Export, scored: dict | None) -> Markup:
    if scored is None:
        return section("accuracy", "Accuracy", hint(el("code", COMMANDS["evaluation"]), ", then --evaluation."))
    rows = [
        [name, f"{one:.2f}", f"{other:.2f}", signed(other - one, ".2f")]
        for name, (one, other) in scored["metrics"].items()
    ]
    (one, other), (low, high) = next(iter(scored["metrics"].values())), scored["interval"]
    plot = interval_panel(other - one, low, high, export.record["options"]["max_drop"])
    return section(
        "accuracy",
        "Accuracy",
        table(["score", "float", "int8", "difference"], rows, {1, 2, 3}),
        panels([("Difference of the first, 95 % interval", plot)]),
    )


def _errors(judged: dict | None) -> Markup:
    if judged is None:
        return section("errors", "Error per layer", hint(el("code", COMMANDS["verify"]), ", then --verify."))
    course = {place: row["db"] for place, row in enumerate(judged["layers"]) if row["db"] < 200}
    told = "No tensor is damaged." if judged["passed"] else "; ".join(judged["damage"])
    first = f" The first layer that falls off is {judged['first']}." if judged["first"] else ""
    plot = line_panel({"after": ("int8", course)}, 10.0, "layer")
    return section("errors", "Error per layer", el("p", told + first), panels([("Signal-to-noise by layer, dB", plot)]))


def _layers(export: Export) -> Markup:
    total = export.record["multiply_adds"]["all"]
    rows = []
    for layer in export.record["layers"]:
        own = layer["damage_db"]
        rows.append(
            [
                el("code", layer["name"]),
                layer["op"],
                " x ".join(map(str, layer["shape"])),
                percent(layer["multiply_adds"] / total, 2),
                "int8" if layer["int8"] else "float",
                "" if own is None else f"{own:.1f}",
                f"{layer['range'][0]:.3g} to {layer['range'][1]:.3g}",
            ]
        )
    note = "Alone in int8: signal-to-noise at the model's end when this layer alone is rounded, dB."
    head = ["layer", "operator", "weight", "multiply-adds", "kind", "alone in int8", "range of the input"]
    return section("layers", "Every layer's decision", el("p", note), table(head, rows, {3, 5}))


def _origin(export: Export) -> Markup:
    record = export.record
    rows = [
        ["task", record["task"]],
        ["source", f"{record['source']['file']}, sha256 {record['source']['sha256']}"],
        ["images", f"{record['calibration']['images']} for ranges, {record['held_out']['images']} held out"],
        ["scored against", record["held_out"]["against"]],
        ["time", f"{record['seconds']:.0f} s"],
        ["versions", ", ".join(f"{name} {value}" for name, value in record["versions"].items())],
    ]
    return section("origin", "How it was made", table(["", ""], rows))
