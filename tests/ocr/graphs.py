"""Small ONNX graphs for tests, made by hand."""

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name: str, shape: list, kind: int = FLOAT):
    """A tensor of a graph's edge."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray], opset: int = 13) -> ModelProto:
    """A valid model."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def normal(seed: int, *shape: int, scale: float = 0.3) -> np.ndarray:
    """float32 [*shape]."""
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def classifier(height=32, width=32, classes=2, seed=0, opset=13) -> ModelProto:
    """[1, 3, H, W] -> chances [1, classes], by three convolutions, one by channels and with a residual, and a Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "first", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "by_channel", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["sum"], "residual"),
        helper.make_node("Conv", ["sum", "w2"], ["c2"], "wide"),
        helper.make_node("GlobalAveragePool", ["c2"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], "last", transB=1),
        helper.make_node("Softmax", ["logits"], ["y"], "softmax", axis=1),
    ]
    constants = {
        "w0": normal(seed, 8, 3, 3, 3),
        "b0": normal(seed + 1, 8),
        "w1": normal(seed + 2, 8, 1, 3, 3),
        "b1": normal(seed + 3, 8),
        "w2": normal(seed + 4, 16, 8, 1, 1),
        "w3": normal(seed + 5, classes, 16, scale=2.0),
        "b3": normal(seed + 6, classes),
    }
    return model(nodes, [value("x", [1, 3, height, width])], [value("y", [1, classes])], constants, opset)


def looped(turns: int = 5, channels: int = 6) -> ModelProto:
    """A loop as paddle2onnx writes it: features and weights are handed through unchanged, their product is computed at
    every turn, and h <- tanh(h V + mean(features W)).
    """
    axis = numpy_helper.from_array(np.array([0], np.int64), "axis")
    same = [
        helper.make_node("Unsqueeze", ["f_in", "axis"], ["f_wide"]),
        helper.make_node("Squeeze", ["f_wide", "axis"], ["f_out"]),
        helper.make_node("Identity", ["w_in"], ["w_out"]),
        helper.make_node("Identity", ["v_in"], ["v_out"]),
    ]
    work = [
        helper.make_node("MatMul", ["f_in", "w_in"], ["product"], "features"),
        helper.make_node("ReduceMean", ["product"], ["mean"], "pool", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["h_in", "v_in"], ["turned"], "recurrent"),
        helper.make_node("Add", ["turned", "mean"], ["raw"], "add"),
        helper.make_node("Tanh", ["raw"], ["h_out"], "tanh"),
        helper.make_node("Identity", ["condition"], ["go_on"]),
    ]
    inner = ["turn", "condition", "h_in", "f_in", "w_in", "v_in"]
    kinds = [TensorProto.INT64, TensorProto.BOOL, *[FLOAT] * 4]
    body = helper.make_graph(
        work + same,
        "body",
        [value(name, None if place > 1 else [], kind) for place, (name, kind) in enumerate(zip(inner, kinds))],
        [
            value("go_on", [], TensorProto.BOOL),
            *(value(name, None) for name in ("h_out", "f_out", "w_out", "v_out")),
        ],
        [axis],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], "before", strides=[4, 4]),
        helper.make_node("Reshape", ["c", "shape"], ["rows"], "rows"),
        helper.make_node("Transpose", ["rows"], ["f"], "turned_rows", perm=[0, 2, 1]),
        helper.make_node(
            "Loop", ["turns", "yes", "h", "f", "w", "v"], ["h_end", "f_end", "w_end", "v_end"], "loop", body=body
        ),
        helper.make_node("MatMul", ["h_end", "u"], ["y"], "after"),
    ]
    constants = {
        "w0": normal(1, channels, 3, 4, 4),
        "b0": normal(2, channels),
        "shape": np.array([1, channels, -1], np.int64),
        "turns": np.array(turns, np.int64),
        "yes": np.array(True),
        "h": np.zeros((1, channels), np.float32),
        "w": normal(3, channels, channels),
        "v": normal(4, channels, channels, scale=0.8),
        "u": normal(5, channels, 3),
    }
    return model(nodes, [value("x", [1, 3, 16, 16])], [value("y", [1, 3])], constants)


def transposed(opset: int = 13) -> ModelProto:
    """A transposed convolution, a constant added, a batch norm, and another with an added constant alone."""
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w0"], ["c0"], "up", strides=[2, 2]),
        helper.make_node("Add", ["c0", "a0"], ["d0"], "added"),
        helper.make_node("BatchNormalization", ["d0", "s", "t", "m", "v"], ["n0"], "norm"),
        helper.make_node("Relu", ["n0"], ["r0"], "relu"),
        helper.make_node("ConvTranspose", ["r0", "w1"], ["c1"], "up_again", strides=[2, 2]),
        helper.make_node("Add", ["c1", "a1"], ["d1"], "added_again"),
        helper.make_node("Sigmoid", ["d1"], ["y"], "sigmoid"),
    ]
    constants = {
        "w0": normal(1, 3, 4, 2, 2),
        "a0": normal(2, 1, 4, 1, 1),
        "s": normal(3, 4) + 1,
        "t": normal(4, 4),
        "m": normal(5, 4),
        "v": np.abs(normal(6, 4)) + 0.5,
        "w1": normal(7, 4, 1, 2, 2),
        "a1": normal(8, 1, 1, 1, 1),
    }
    return model(nodes, [value("x", [1, 3, "h", "w"])], [value("y", [1, 1, "a", "b"])], constants, opset)
