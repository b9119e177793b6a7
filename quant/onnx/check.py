"""An export against what is documented of AMCT and ATC (CANN 8.5; read, never run here).

convert_qat_model takes fake-quantized Conv, ConvTranspose, Gemm and MatMul: on the input one scale, on the weight a
pair of QuantizeLinear and DequantizeLinear with the same factors, scales per channel for convolutions only, weights of
MatMul constants of two axes; int8. ATC's ONNX parser takes operators of ONNX itself; a graph with free sizes needs them
from its command line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

from . import graph
from .export import read_export
from .verify import nodes

OPSETS = range(10, 16)  # of QuantizeLinear and DequantizeLinear in ATC's ONNX plugins


@dataclass(frozen=True)
class Finding:
    """level: error or warning."""

    level: str
    rule: str
    what: str
    fix: str


def check(directory: Path) -> list[Finding]:
    """What AMCT or ATC would stumble over. Raises UsageError, QuantError for what is no export."""
    export = read_export(directory)
    findings = []
    try:
        export.refuse_changed()
    except Exception as err:
        findings.append(Finding("error", "files", str(err), "export again, or copy the directory again"))
    model = graph.read(export.amct)
    for rule in (_opset, _domains, _pairs, _loops, _shapes):
        findings += rule(model)
    return findings


def _opset(model: ModelProto) -> Iterator[Finding]:
    version = model.opset_import[0].version
    if version not in OPSETS:
        yield Finding(
            "error",
            "opset",
            f"opset {version}; ATC's plugins know {OPSETS[0]} to {OPSETS[-1]}",
            "export the float model with an opset of 13 to 15",
        )


def _domains(model: ModelProto) -> Iterator[Finding]:
    others = sorted({node.domain for node in nodes(model)} - set(graph.STANDARD))
    if others:
        yield Finding("error", "domains", f"operators of {', '.join(others)}", "export with operators of ONNX itself")


def _pairs(model: ModelProto) -> Iterator[Finding]:
    """Every DequantizeLinear behind a QuantizeLinear with the same factors, int8, zero points as they may be."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in nodes(model) for name in node.output}
    for node in nodes(model):
        if node.op_type not in graph.WEIGHTED:
            continue
        for place, what in enumerate(("input", "weight")):
            back = makers.get(node.input[place])
            if back is None or back.op_type != "DequantizeLinear":
                continue
            front = makers.get(back.input[0])
            same = (
                front is not None
                and front.op_type == "QuantizeLinear"
                and list(front.input[1:]) == list(back.input[1:])
            )
            if not same:
                yield Finding(
                    "error",
                    "pairs",
                    f"{node.name}: the {what} has no pair of one factor",
                    "hand NAME.amct.onnx to AMCT",
                )
                continue
            scale, zero = (stored[name] for name in back.input[1:3])
            if zero.dtype != np.int8 or not (scale > 0).all():
                yield Finding(
                    "error", "codes", f"{node.name}: the {what} is not int8 with scales above 0", "export again"
                )
            many = scale.size > 1
            if many and (what == "input" or node.op_type not in ("Conv", "ConvTranspose")):
                yield Finding(
                    "error", "per-channel", f"{node.name}: the {what} has {scale.size} scales", "export again"
                )
            if what == "weight" and np.any(zero):
                yield Finding("error", "zero-point", f"{node.name}: the weight's zero point is not 0", "export again")


def _loops(model: ModelProto) -> Iterator[Finding]:
    for node, body in graph.loops(model):
        int8 = any(inner.op_type == "QuantizeLinear" for inner in body.node)
        yield Finding(
            "warning",
            "loop",
            f"{node.name}: a Loop{' with int8 layers' if int8 else ''}; no document says that AMCT looks inside one",
            "run the part before it on the NPU and the loop on the host, or ask AMCT's record what it took",
        )


def _shapes(model: ModelProto) -> Iterator[Finding]:
    for entry in model.graph.input:
        sizes = [size.dim_value for size in entry.type.tensor_type.shape.dim]
        if not all(sizes):
            yield Finding(
                "warning",
                "shape",
                f"input {entry.name} is {sizes}, 0 being free",
                "give ATC --input_shape or its dynamic sizes, or quantize with --input_shape",
            )
