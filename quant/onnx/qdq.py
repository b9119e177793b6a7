"""The int8 graph: in front of every chosen layer a pair QuantizeLinear, DequantizeLinear on its input, int8 codes and a
DequantizeLinear in the place of its weight; biases and all else stay float.

    input    q = clip(round(x / s) + z, -128, 127)        one scale and zero point, from calibration
    weight   q = clip(round(W / s), -127, 127)            per output channel of a convolution; else one scale

This is what AMCT's convert_qat_model is documented to take (CANN 8.5): pairs on input and weight of Conv,
ConvTranspose, Gemm and MatMul with a constant of two axes, inputs per tensor, weights per channel for convolutions
only; Ascend multiplies the codes and gives out float. Onnxruntime's quantizer makes the pairs. It puts a pair between a
tensor and all that read it, float nodes too; here those read the float tensor again, as they do on Ascend, and layers
inside a loop, which it passes over, get theirs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ..arithmetic.int8 import EPS, WEIGHT_MAX
from .graph import WEIGHTED, Layer, loops
from .unread import drop_unread

CODES = 255


@dataclass(frozen=True)
class Ranges:
    """What is rounded how. inputs: tensor -> (lo, hi); weights: tensor -> largest magnitude that its codes reach, for
    weights with one scale.
    """

    inputs: Mapping[str, tuple[float, float]]
    weights: Mapping[str, float]


def quantized(model: ModelProto, layers: Collection[Layer], ranges: Ranges, pairs: bool = False) -> ModelProto:
    """`model`, as graph.prepare made it, with these layers int8. pairs: the weights stay float32, with a pair of
    QuantizeLinear and DequantizeLinear behind them; the same values, for AMCT.
    """
    chosen = {layer.name for layer in layers}
    outside = [layer for layer in layers if not layer.loop]
    result = ModelProto()
    result.CopyFrom(model)
    if outside:
        result = _by_onnxruntime(result, outside, ranges, pairs)
    _read_float_again(result.graph, chosen)
    for node, body in loops(result):
        _inside(result, body, [layer for layer in layers if layer.loop == node.name], ranges, pairs)
    drop_unread(result)
    _sort(result.graph)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    return result


def _by_onnxruntime(model: ModelProto, layers: list[Layer], ranges: Ranges, pairs: bool) -> ModelProto:
    """With the pairs of layers that stand in no loop, by onnxruntime's quantizer."""
    overrides = {
        layer.weight: [
            {"rmin": np.float32(-ranges.weights[layer.weight]), "rmax": np.float32(ranges.weights[layer.weight])}
        ]
        for layer in layers
        if layer.weight in ranges.weights
    }
    tensors = {
        layer.input: TensorData(
            lowest=np.float32(ranges.inputs[layer.input][0]), highest=np.float32(ranges.inputs[layer.input][1])
        )
        for layer in layers
    }
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[layer.name for layer in layers],
        nodes_to_exclude=[],
        op_types_to_quantize=list(WEIGHTED),
        extra_options={
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": pairs,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
            "TensorQuantOverrides": overrides,
        },
    )
    return quantizer.quantize_model()


def only(full: ModelProto, model: ModelProto, layers: Collection[Layer]) -> ModelProto:
    """Of `full`, `model` with layers int8, these alone: the others read input and weight as they are, again."""
    result = ModelProto()
    result.CopyFrom(full)
    there = {tensor.name for tensor in result.graph.initializer}
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in there)
    chosen, floats = {layer.name for layer in layers}, {node.name: node for node in model.graph.node}
    bodies = [body for _, body in loops(model)]
    floats |= {node.name: node for body in bodies for node in body.node}
    for graph in [result.graph, *(body for _, body in loops(result))]:
        for node in graph.node:
            if node.op_type in WEIGHTED and node.name not in chosen:
                del node.input[:]
                node.input.extend(floats[node.name].input)
    drop_unread(result)
    return result


def _read_float_again(graph: GraphProto, chosen: Collection[str]) -> None:
    """Nodes that are not int8 read tensors as they are, not what their codes stand for."""
    made = {node.output[0]: node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}

    def before(name: str) -> str:
        inner = made[name].input[0]
        return made[inner].input[0] if inner in made else name

    for node in graph.node:
        if node.name in chosen or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for place, name in enumerate(node.input):
            if name in made and made[name].op_type == "DequantizeLinear":
                node.input[place] = before(name)


def _inside(model: ModelProto, body: GraphProto, layers: list[Layer], ranges: Ranges, pairs: bool) -> None:
    """Pairs for layers in the body of a loop; what is constant stands in the graph around it."""
    graph, done = model.graph, {}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for layer in layers:
        node = next(node for node in body.node if node.name == layer.name)
        lo, hi = min(ranges.inputs[layer.input][0], 0.0), max(ranges.inputs[layer.input][1], 0.0)
        scale = np.float32(max((hi - lo) / CODES, EPS))
        offset = np.int8(np.clip(np.round(-128 - lo / scale), -128, 127))
        _constants(graph, layer.name, "input", scale, offset)
        rounded, back = f"{layer.name}/input_codes", f"{layer.name}/input_rounded"
        names = [f"{layer.name}/input_scale", f"{layer.name}/input_zero"]
        place = list(body.node).index(node)
        body.node.insert(place, helper.make_node("QuantizeLinear", [node.input[0], *names], [rounded], f"{rounded}/q"))
        body.node.insert(place + 1, helper.make_node("DequantizeLinear", [rounded, *names], [back], f"{back}/dq"))
        node.input[0] = back
        if layer.weight not in done:
            done[layer.weight] = _weight(graph, layer, weights[layer.weight], ranges, pairs)
        node.input[1] = done[layer.weight]


def _weight(graph: GraphProto, layer: Layer, tensor: TensorProto, ranges: Ranges, pairs: bool) -> str:
    """The name of what the codes of a weight with one scale stand for."""
    weight = numpy_helper.to_array(tensor)
    scale = np.float32(max(ranges.weights[layer.weight] / WEIGHT_MAX, EPS))
    _constants(graph, layer.name, "weight", scale, np.int8(0))
    names = [f"{layer.name}/weight_scale", f"{layer.name}/weight_zero"]
    codes, back = f"{layer.name}/weight_codes", f"{layer.name}/weight_rounded"
    nodes = [helper.make_node("DequantizeLinear", [codes, *names], [back], f"{back}/dq")]
    if pairs:
        limit = f"{layer.name}/weight_float"
        graph.initializer.append(numpy_helper.from_array(weight, limit))
        nodes.insert(0, helper.make_node("QuantizeLinear", [limit, *names], [codes], f"{codes}/q"))
    else:
        rounded = np.clip(np.round(weight / scale), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(rounded, codes))
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return back


def _constants(graph: GraphProto, layer: str, what: str, scale: np.float32, offset: np.int8) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{layer}/{what}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(offset, np.int8), f"{layer}/{what}_zero"))


def _sort(graph: GraphProto) -> None:
    """Every node behind those whose results it or a graph inside it reads, as ONNX demands; else as they stood."""
    made = {name for node in graph.node for name in node.output}
    needs = []
    for node in graph.node:
        read = set(node.input)
        read |= {name for entry in node.attribute if entry.HasField("g") for it in entry.g.node for name in it.input}
        needs.append((node, read & made))
    done: set[str] = set()
    ordered: list = []
    while needs:
        ready = [(node, read) for node, read in needs if read <= done]
        needs = [(node, read) for node, read in needs if not read <= done]
        for node, _ in ready:
            ordered.append(node)
            done |= set(node.output)
    del graph.node[:]
    graph.node.extend(ordered)
