"""What calibration images show of the inputs of layers, and what follows from it: ranges, and biases that make up for
the mean error of rounding.

A range is what was seen; measure.py clips some of them. Clips that are chosen by the error of the one layer, as
arithmetic/ranges.py does for linears, are not taken here: text is a small part of a picture, and a clip that is right
for most of it takes off what tells text from paper (docs/ppocr.md has the figures).
"""

from collections.abc import Sequence

import numpy as np
import torch
from onnx import ModelProto, numpy_helper

from ..arithmetic.int8 import EPS, WEIGHT_MAX, fake_quantize_input, input_scale_offset
from ..arithmetic.ranges import minmax_range
from ..arithmetic.stats import ROWS, Stats
from ..base.errors import QuantError
from .graph import Layer
from .qdq import Ranges
from .sessions import Session

Feeds = dict[str, np.ndarray]


def observe(model: ModelProto, layers: Sequence[Layer], samples: Sequence[Feeds]) -> dict[str, Stats]:
    """Tensor -> its statistics over the samples, of which each gives as many rows; rows are drawn by the sample's
    number. Raises QuantError where an input holds NaN or Inf.
    """
    first = {layer.input: layer for layer in reversed(layers)}
    session = Session(model, "the float model", list(first))
    each = -(-ROWS // len(samples))
    seen: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]] = {name: [] for name in first}
    for number, feeds in enumerate(samples):
        for name, value in zip(session.wanted, session.run(feeds)):
            columns = _columns(first[name], value)
            lo, hi = columns.min(1), columns.max(1)
            if not np.isfinite(lo + hi).all():
                raise QuantError(f"the input of {first[name].name} holds NaN or Inf; the model itself is at fault")
            places = np.random.default_rng(number).integers(0, columns.shape[1], each)
            seen[name].append((lo, hi, columns[:, places].T, columns.shape[1]))
    return {name: _joined(parts) for name, parts in seen.items()}


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]) -> Stats:
    los, his, rows, counts = zip(*parts)
    return Stats(
        torch.from_numpy(np.min(los, 0)),
        torch.from_numpy(np.max(his, 0)),
        torch.from_numpy(np.concatenate(rows)),
        sum(counts),
    )


def _columns(layer: Layer, value: np.ndarray) -> np.ndarray:
    """An input of the layer as float32 [C, T]."""
    if layer.op in ("Conv", "ConvTranspose"):
        return np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
    return value.reshape(-1, value.shape[-1]).T


def ranges(model: ModelProto, layers: Sequence[Layer], stats: dict[str, Stats]) -> Ranges:
    """Of every layer's input, what was seen; of every weight with one scale, its largest magnitude."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = {name: _pair(*minmax_range(seen)) for name, seen in stats.items()}
    single = {layer.weight for layer in layers if not layer.per_channel}
    return Ranges(inputs, {name: float(np.abs(weights[name]).max()) for name in single})


def _pair(lo: torch.Tensor, hi: torch.Tensor) -> tuple[float, float]:
    return float(lo), float(hi)


def corrected(model: ModelProto, layers: Sequence[Layer], chosen: Ranges, stats: dict[str, Stats]) -> ModelProto:
    """A copy of the float model whose biases make up for the mean error of rounding (Nagel et al., arXiv 1906.04721,
    section 4.2): b_o -= sum_c (sum_k Q(W)_ock E[q(x_c)] - sum_k W_ock E[x_c]), the padding of borders left out of
    account. The new biases have names of their own. Layers without a bias, and those in loops, stay as they are.
    """
    result = ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = {node.name: node for node in result.graph.node}
    for layer in layers:
        if layer.bias not in tensors or layer.loop:
            continue
        weight, bias = (numpy_helper.to_array(tensors[name]) for name in (layer.weight, layer.bias))
        x = stats[layer.input].rows
        lo, hi = (torch.tensor(value) for value in chosen.inputs[layer.input])
        rounded = fake_quantize_input(x, *input_scale_offset(lo, hi))
        error = _mean_output(layer, _rounded(layer, weight, chosen), rounded.mean(0).numpy())
        error -= _mean_output(layer, weight, x.mean(0).numpy())
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
    """sum_c sum_k W_ock mean_c, [O]."""
    if layer.op == "Conv":
        taps = weight.reshape(*weight.shape[:2], -1).sum(2)  # [O, I / groups]
        parts = mean.reshape(layer.groups, -1)
        return np.concatenate([block @ part for block, part in zip(np.split(taps, layer.groups), parts)])
    if layer.op == "ConvTranspose":  # of the taps of a stride as wide as the kernel, each output sees one
        return mean @ weight.reshape(*weight.shape[:2], -1).mean(2)
    return weight @ mean if layer.transposed else mean @ weight
