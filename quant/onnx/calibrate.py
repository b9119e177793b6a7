"""What calibration images show of the inputs of layers, and what follows from it: ranges, and biases that make up for
the mean error of rounding the weights.

A range is what was seen. Clips are not taken: text is a small part of a picture, and a clip that is right for most of
it takes off what tells text from paper (docs/ppocr.md has the figures).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, numpy_helper

from ..arithmetic.int8 import EPS, WEIGHT_MAX
from ..base.errors import QuantError
from .graph import Layer
from .qdq import Ranges
from .sessions import Session

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Seen:
    """A tensor over all images and places. lo, hi, mean: float32 [C]."""

    lo: np.ndarray
    hi: np.ndarray
    mean: np.ndarray


def observe(model: ModelProto, layers: Sequence[Layer], samples: Sequence[Feeds]) -> dict[str, Seen]:
    """Tensor -> what was seen of it. Raises QuantError where an input holds NaN or Inf."""
    first = {layer.input: layer for layer in reversed(layers)}
    session = Session(model, "the float model", list(first))
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]] = {name: [] for name in first}
    for feeds in samples:
        for name, value in zip(session.wanted, session.run(feeds)):
            columns = _columns(first[name], value)
            lo, hi = columns.min(1), columns.max(1)
            if not np.isfinite(lo + hi).all():
                raise QuantError(f"the input of {first[name].name} holds NaN or Inf; the model itself is at fault")
            parts[name].append((lo, hi, columns.sum(1, dtype=np.float64), columns.shape[1]))
    return {name: _joined(each) for name, each in parts.items()}


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]) -> Seen:
    los, his, sums, counts = zip(*parts)
    return Seen(np.min(los, 0), np.max(his, 0), (np.sum(sums, 0) / sum(counts)).astype(np.float32))


def _columns(layer: Layer, value: np.ndarray) -> np.ndarray:
    """An input of the layer as float32 [C, T]."""
    if layer.op in ("Conv", "ConvTranspose"):
        return np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
    return value.reshape(-1, value.shape[-1]).T


def ranges(model: ModelProto, layers: Sequence[Layer], seen: Mapping[str, Seen]) -> Ranges:
    """Of every layer's input, what was seen; of every weight with one scale, its largest magnitude."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    single = {layer.weight for layer in layers if not layer.per_channel}
    return Ranges(
        {name: (float(each.lo.min()), float(each.hi.max())) for name, each in seen.items()},
        {name: float(np.abs(weights[name]).max()) for name in single},
    )


def corrected(model: ModelProto, layers: Sequence[Layer], chosen: Ranges, seen: Mapping[str, Seen]) -> ModelProto:
    """A copy of the float model whose biases make up for the mean error of rounding the weights (Nagel et al.,
    arXiv 1906.04721, section 4.2): b_o -= sum_ck (Q(W)_ock - W_ock) E[x_c], the padding of borders left out of account.
    The new biases have names of their own. Layers without a bias, and those in loops, stay as they are.
    """
    result = ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = {node.name: node for node in result.graph.node}
    for layer in layers:
        if layer.bias not in tensors or layer.loop:
            continue
        # Equalizing gives constants new names; the node knows them.
        weight, bias = (numpy_helper.to_array(tensors[name]) for name in nodes[layer.name].input[1:3])
        error = _mean_output(layer, _rounded(layer, weight, chosen) - weight, seen[layer.input].mean)
        name = f"{layer.name}/bias"
        result.graph.initializer.append(numpy_helper.from_array((bias - error).astype(np.float32), name))
        nodes[layer.name].input[2] = name
    return result


def _rounded(layer: Layer, weight: np.ndarray, chosen: Ranges) -> np.ndarray:
    """What the codes of a weight stand for."""
    if layer.weight in chosen.weights:
        scale = np.float32(max(chosen.weights[layer.weight] / WEIGHT_MAX, EPS))
    else:
        rest = tuple(axis for axis in range(weight.ndim) if axis != layer.axis)
        scale = np.maximum(np.abs(weight).max(rest, keepdims=True) / WEIGHT_MAX, EPS)
    return np.clip(np.round(weight / scale), -WEIGHT_MAX, WEIGHT_MAX) * scale


def _mean_output(layer: Layer, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """sum_ck W_ock mean_c, [O]."""
    if layer.op == "Conv":
        taps = weight.reshape(*weight.shape[:2], -1).sum(2)  # [O, I / groups]
        parts = mean.reshape(layer.groups, -1)
        return np.concatenate([block @ part for block, part in zip(np.split(taps, layer.groups), parts)])
    if layer.op == "ConvTranspose":  # of the taps of a stride as wide as the kernel, each output sees one
        return mean @ weight.reshape(*weight.shape[:2], -1).mean(2)
    return weight @ mean if layer.transposed else mean @ weight
