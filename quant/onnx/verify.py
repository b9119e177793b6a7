"""An export against its float model, tensor by tensor.

damage   the files are those that were written; every int8 weight lies within half a step of the float weight, every
         range is the one recorded, and the file for AMCT answers to the bit what the int8 file answers.
errors   of every layer's output the signal-to-noise in dB, on the same images, and where int8 falls off first: the
         first layer below FALLS_OFF. "of its own": its damage at the model's end when it alone is int8, as the job
         measured it.
"""

from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from ..base.errors import UsageError
from . import graph
from .equalize import equalized, evened
from .evaluate import refuse_other_source
from .export import Export, read_export
from .labels import read_items
from .measure import relative
from .paddle import converted
from .qdq import CODES
from .scores import Reader, signature_of
from .sessions import Session
from .tasks import TASKS

FALLS_OFF = 10.0  # dB
IMAGES = 8


def verify(directory: Path, source: Path, images: str, count: int | None = None, seed: int = 0) -> dict:
    """{"passed", "damage": [lines], "first": layer or None, "layers": [{"name", "op", "int8", "db", "own_db"}],
    "outputs": {name: dB}, "images"}. Raises UsageError, QuantError for what cannot be compared.
    """
    export = read_export(directory)
    refuse_other_source(export, source)
    shapes = export.record["inputs"]
    fixed = next((tuple(shape) for shape in shapes.values() if len(shape) == 4 and all(shape)), None)
    loaded = converted(source) if source.is_dir() else graph.read(source)
    model = graph.prepare(loaded, fixed, source.name)
    int8, amct = graph.read(export.model), graph.read(export.amct)
    reader = Reader(TASKS[export.record["task"]], signature_of(int8))
    items = read_items(images, export.record["task"])[: count or IMAGES]
    feeds = [reader.feeds(item) for item in items]
    layers = {layer.name: layer for layer in graph.layers(model)}
    if missing := [entry["name"] for entry in export.record["layers"] if entry["name"] not in layers]:
        raise UsageError(f"{source}: has no layer {missing[0]}; another onnxruntime prepared the export, export again")
    done = {layers[entry["name"]].input: entry["exponents"] for entry in export.record["layers"] if entry["exponents"]}
    outputs_done = {entry["name"]: entry.get("output_exponents") for entry in export.record["layers"]}
    model = evened(equalized(model, list(layers.values()), done), list(layers.values()), outputs_done)
    damage = damaged(export, model, int8)
    made = {node.name: node.output[0] for node in nodes(model)}
    outputs = [entry.name for entry in model.graph.output]
    names = [made[name] for name in layers] + outputs
    expected, given = (
        [session.run(each) for each in feeds] for session in (Session(it, "it", names) for it in (model, int8))
    )
    final = [Session(amct, export.amct.name).run(each) for each in feeds[:2]]
    ours = [Session(int8, export.model.name).run(each) for each in feeds[:2]]
    if any(not np.array_equal(one, other) for left, right in zip(final, ours) for one, other in zip(left, right)):
        damage.append(f"{export.amct.name} answers otherwise than {export.model.name}")
    noise = [
        decibels(relative([[each[place]] for each in expected], [[each[place]] for each in given]))
        for place in range(len(names))
    ]
    recorded = {entry["name"]: entry for entry in export.record["layers"]}
    rows = [
        {
            "name": name,
            "op": layer.op,
            "int8": recorded[name]["int8"],
            "db": value,
            "own_db": recorded[name]["damage_db"],
        }
        for (name, layer), value in zip(layers.items(), noise)
    ]
    first = next((row["name"] for row in rows if row["db"] < FALLS_OFF and not layers[row["name"]].loop), None)
    return {
        "passed": not damage,
        "damage": damage,
        "first": first,
        "layers": rows,
        "outputs": dict(zip(outputs, noise[len(layers) :])),
        "images": len(items),
        "quantized": export.record["model"]["sha256"],
    }


def decibels(share: float) -> float:
    """-10 log10, at most 200."""
    return round(float(-10 * np.log10(max(share, 1e-20))), 2)


def nodes(model: ModelProto) -> list:
    """Of the graph and of its loops."""
    return [*model.graph.node, *(node for _, body in graph.loops(model) for node in body.node)]


def damaged(export: Export, model: ModelProto, int8: ModelProto) -> list[str]:
    """A line for every int8 weight or range that is not what it should be, files that were changed first."""
    lines = []
    try:
        export.refuse_changed()
    except Exception as err:
        lines.append(str(err))
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    makers = {name: node for node in nodes(int8) for name in node.output}
    there, before = ({node.name: node for node in nodes(it)} for it in (int8, model))
    recorded = {entry["name"]: entry["range"] for entry in export.record["layers"]}
    for name in export.int8:
        node = there.get(name)
        back = makers.get(node.input[1]) if node is not None else None
        if node is None or back is None or back.op_type != "DequantizeLinear" or back.input[0] not in stored:
            lines.append(f"{name}: is recorded as int8, and its weight is float")
            continue
        codes, scale = stored[back.input[0]].astype(np.float32), stored[back.input[1]]
        axis = graph.attribute(back, "axis", 1)
        wide = (
            scale
            if scale.ndim == 0 or scale.size == 1
            else scale.reshape([-1 if at == axis else 1 for at in range(codes.ndim)])
        )
        weight = floats[before[name].input[1]]  # equalizing gives constants new names
        if codes.shape != weight.shape:
            lines.append(f"{name}: the weight is {list(codes.shape)}, the float model's {list(weight.shape)}")
            continue
        steps = np.abs(codes * wide - weight) / wide
        if not steps.max() <= 0.5 + 1e-3:  # a NaN is damage, too
            where = int(np.argmax(np.nan_to_num(steps, nan=np.inf)))
            lines.append(
                f"{name}: code {where} is {steps.reshape(-1)[where]:.3g} steps from the float weight, 0.5 is the most"
            )
        lines += _other_range(name, makers.get(node.input[0]), stored, recorded[name])
    return lines


def _other_range(name: str, back: NodeProto | None, stored: dict[str, np.ndarray], recorded: list[float]) -> list[str]:
    """A line where the codes of an input do not span the recorded range, 0 included; none where they do."""
    if back is None or back.op_type != "DequantizeLinear" or back.input[1] not in stored:
        return [f"{name}: is recorded as int8, and its input is float"]
    span = max(recorded[1], 0.0) - min(recorded[0], 0.0)
    found = CODES * float(stored[back.input[1]])
    if abs(found - span) <= 1e-4 * span + 1e-5:  # the record has six decimals
        return []
    return [f"{name}: the codes of the input span {found:.6g}, the recorded range {span:.6g}"]
