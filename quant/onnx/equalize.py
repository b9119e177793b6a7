"""Input channels of one range: a tensor that a layer reads is divided by s_c, channel by channel, and its weight is
multiplied by it, so that one scale of the input serves all channels (cross-layer equalization, Nagel et al.,
arXiv 1906.04721; smoothing, as SmoothQuant calls it, arXiv 2211.10438).

    by channel   s_c = r_c                     the weight has a scale for each of them anyhow
    dense        s_c = sqrt(r_c / w_c)         r_c, w_c: the largest magnitudes of the input and of the weights on it

The division costs nothing where a constant is there to take it: the factor, divisor or summand of a Mul, Div or Add, as
in a hard swish that is written out and in PP-LCNetV3's learned affine layers, or the convolution before a Relu. Where
there is none, nothing is done. s_c is a power of two, so that the float model computes the same bits as before, and
what was done is a list of small whole numbers.

Output channels of one scale: the weight of a Gemm or MatMul has one for all of them, since that is what AMCT takes, and
in a GRU's gates a few rows five times as large as the others cost 20 dB. Each is brought near the largest, and a Mul by
a power of two behind the product takes it back:

    y_o = t_o (W_o / t_o x + b_o / t_o),   t_o = 2^ceil(log2(w_o / max_o w_o))    w_o: the largest magnitude in W_o
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .calibrate import Seen
from .graph import Layer, loops

Exponents = Mapping[str, Sequence[int] | None]
MOST = 6  # powers of two in both directions: beyond, a channel is as good as dead


def exponents(model: ModelProto, layers: Sequence[Layer], stats: Mapping[str, Seen]) -> dict[str, list[int]]:
    """Tensor -> log2 of s_c for every channel, for the tensors where it can be done and changes anything."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for layer in layers:
        if not _takes(model, layer, layers):
            continue
        seen = np.maximum(np.abs(stats[layer.input].lo), np.abs(stats[layer.input].hi))
        strength = _largest(layer, weights[layer.weight])
        alive = (seen > 0) & (strength > 0)
        if not alive.any():
            continue
        wanted = np.log2(np.where(alive, seen, 1))
        if not _by_channel(layer):
            wanted = (wanted - np.log2(np.where(alive, strength, 1))) / 2
        # What all channels share is left to the scale.
        wanted = np.where(alive, wanted - np.median(wanted[alive]), 0).round().clip(-MOST, MOST).astype(int)
        if wanted.any():
            found[layer.input] = wanted.tolist()
    return found


def equalized(model: ModelProto, layers: Sequence[Layer], chosen: Exponents) -> ModelProto:
    """A copy of `model` with every tensor of `chosen` divided by 2^exponent, and its layer's weight multiplied."""
    result = ModelProto()
    result.CopyFrom(model)
    for layer in layers:
        if chosen.get(layer.input):
            scale = np.exp2(np.array(chosen[layer.input], np.float32))
            _divide(result, layer.input, scale, layer.op)
            tensor = next(tensor for tensor in result.graph.initializer if tensor.name == layer.weight)
            weight = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(weight * _along(layer, weight, scale), layer.weight))
    return result


def output_exponents(model: ModelProto, layers: Sequence[Layer]) -> dict[str, list[int]]:
    """Layer -> log2 of t_o for every output channel, for the Gemms and MatMuls where that changes anything."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for layer in layers:
        node = next(node for node in _nodes(model) if node.name == layer.name)
        alone = sum(layer.weight in other.input for other in _nodes(model)) == 1
        bias = weights.get(node.input[2]) if len(node.input) > 2 else None
        if layer.per_channel or not alone or bias is None and len(node.input) > 2:
            continue
        largest = np.abs(weights[layer.weight]).max(1 - layer.axis)
        if not largest.any() or bias is not None and bias.shape[-1:] != largest.shape:
            continue
        shares = np.where(largest > 0, largest, largest.max()) / largest.max()
        powers = np.ceil(np.log2(shares)).clip(-2 * MOST, 0).astype(int)
        if powers.any():
            found[layer.name] = powers.tolist()
    return found


def evened(model: ModelProto, layers: Sequence[Layer], chosen: Exponents) -> ModelProto:
    """A copy of `model` with the weights of the layers in `chosen` divided by 2^exponent, channel by channel of their
    outputs, and a Mul behind each.
    """
    result = ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for layer in layers:
        if not chosen.get(layer.name):
            continue
        scale = np.exp2(np.array(chosen[layer.name], np.float32))
        graph = next((body for node, body in loops(result) if node.name == layer.loop), result.graph)
        node = next(node for node in graph.node if node.name == layer.name)
        weight = numpy_helper.to_array(tensors[layer.weight]) / np.expand_dims(scale, 1 - layer.axis)
        tensors[layer.weight].CopyFrom(numpy_helper.from_array(weight, layer.weight))
        if len(node.input) > 2:
            _replace(result, node, 2, numpy_helper.to_array(tensors[node.input[2]]) / scale)
        name, product = f"{layer.name}/back", f"{layer.name}/product"
        result.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        back = helper.make_node("Mul", [product, f"{name}_scale"], [node.output[0]], name)
        node.output[0] = product
        graph.node.insert(list(graph.node).index(node) + 1, back)
    return result


def _nodes(model: ModelProto) -> list[NodeProto]:
    return [*model.graph.node, *(node for _, body in loops(model) for node in body.node)]


def divided(stats: Mapping[str, Seen], chosen: Exponents) -> dict[str, Seen]:
    """What would be seen of the tensors then, float32 [C]."""
    result = dict(stats)
    for name, powers in chosen.items():
        scale = np.exp2(np.array(powers, np.float32))
        result[name] = Seen(stats[name].lo / scale, stats[name].hi / scale, stats[name].mean / scale)
    return result


def _by_channel(layer: Layer) -> bool:
    return layer.op == "Conv" and layer.shape[1] == 1 and layer.groups == layer.shape[0]


def _takes(model: ModelProto, layer: Layer, layers: Sequence[Layer]) -> bool:
    """Whether the layer alone reads its input and its weight, and a constant is there to take the division."""
    if layer.loop or not (_by_channel(layer) or layer.groups == 1):
        return False
    readers = [node for node in model.graph.node if layer.input in node.input or layer.weight in node.input]
    alone = len(readers) == 1 and sum(other.weight == layer.weight for other in layers) == 1
    return alone and _divide(model, layer.input, None, layer.op)


def _divide(model: ModelProto, name: str, scale: np.ndarray | None, op: str) -> bool:
    """Divide a tensor by `scale`, [C], in the constants that it is made of; None: only say whether that can be done."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    results = {entry.name for entry in graph.output}
    while True:
        node = next((node for node in graph.node if name in node.output), None)
        readers = [other for other in graph.node if name in other.input]
        inner = any(_reads_inside(other, name) for other in graph.node)
        if node is None or len(readers) != 1 or name in results or inner:
            return False
        constant = next((place for place, given in enumerate(node.input) if given in stored), None)
        if node.op_type == "Relu":
            name = node.input[0]
        elif node.op_type in ("Mul", "Div", "Add") and constant is not None and len(node.input) == 2:
            value = numpy_helper.to_array(stored[node.input[constant]])
            if node.op_type == "Div" and constant == 0 or not _broadcasts(value, op):
                return False
            if scale is not None:
                wide = scale[:, None, None] if op in ("Conv", "ConvTranspose") else scale
                _replace(model, node, constant, value * wide if node.op_type == "Div" else value / wide)
            if node.op_type != "Add":
                return True
            name = node.input[1 - constant]
        elif node.op_type == "Conv" and op == "Conv" and all(given in stored for given in node.input[1:]):
            if scale is not None:
                weight = numpy_helper.to_array(stored[node.input[1]])
                _replace(model, node, 1, weight / scale[:, None, None, None])
                if len(node.input) > 2:
                    _replace(model, node, 2, numpy_helper.to_array(stored[node.input[2]]) / scale)
            return True
        else:
            return False


def _reads_inside(node: NodeProto, name: str) -> bool:
    return any(name in inner.input for entry in node.attribute if entry.HasField("g") for inner in entry.g.node)


def _broadcasts(value: np.ndarray, op: str) -> bool:
    """Whether a constant is one number, or has its only axis of length above 1 where the channels are."""
    if value.dtype != np.float32:
        return False
    axes = 2 if op in ("Conv", "ConvTranspose") else 0
    return value.size == 1 or (value.ndim > axes and value.size == value.shape[-1 - axes])


def _replace(model: ModelProto, node: NodeProto, place: int, value: np.ndarray) -> None:
    """Under a name of its own: a constant may serve many nodes, and what is known of its shape stays right."""
    name = f"{node.name}/{place}"
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    node.input[place] = name


def _largest(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """w_c, [C]."""
    if _by_channel(layer):
        return np.abs(weight).max((1, 2, 3))
    axis = 1 if layer.op == "Conv" or layer.transposed else 0
    return np.abs(weight).max(tuple(other for other in range(weight.ndim) if other != axis))


def _along(layer: Layer, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The scale as a factor of the weight."""
    axis = 0 if _by_channel(layer) or layer.op in ("ConvTranspose", "MatMul") else 1
    if layer.op == "Gemm":
        axis = 1 if layer.transposed else 0
    return scale.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
