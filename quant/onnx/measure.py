"""What each layer costs and what it damages: multiply-adds, and the error at the model's end when that layer alone is
int8.

damage_i = |f(x) - f_i(x)|^2 / |f(x)|^2, over the samples, f_i having layer i int8. Errors of different layers are taken
as uncorrelated, so that the damage of many is the sum of theirs. The model's end is its outputs, or what goes into a
softmax there, in which one character that is about to change would outweigh all the others. Where the model ends in a
loop that writes answers word by word, the error of layers before it is taken at what the loop reads.

"""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from .graph import WEIGHTED, Layer, loops
from .qdq import only
from .sessions import Session

Feeds = dict[str, np.ndarray]


def multiply_adds(model: ModelProto, feeds: Feeds) -> dict[str, int]:
    """Node -> multiply-adds for this input, of every Conv, ConvTranspose, Gemm and MatMul, those of a loop for all its
    turns.
    """
    nodes = [node for node in model.graph.node if node.op_type in WEIGHTED]
    inner = [node for _, body in loops(model) for node in body.node if node.op_type in WEIGHTED]
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = list(dict.fromkeys(name for node in nodes + inner for name in (node.input[0], node.output[0])))
    wanted = [name for name in wanted if name not in weights]
    if not wanted:
        return {}
    session = Session(model, "the float model", wanted)
    shapes = weights | {name: value.shape for name, value in zip(wanted, session.run(feeds))}
    return {node.name: _count(node, shapes) for node in nodes + inner}


def _count(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Elements of the output times products for each."""
    given, made = shapes[node.input[0]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return int(np.prod(made)) * int(np.prod(shapes[node.input[1]][1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(given)) * int(np.prod(shapes[node.input[1]][1:]))
    return int(np.prod(made)) * given[-1]


class Trials:
    """The model's error at its end with some layers int8. samples: inputs that it is measured on."""

    def __init__(self, model: ModelProto, samples: Sequence[Feeds]):
        self.model, self.samples = model, samples
        self.late = ends(model)
        self.early = read_by_loops(model) or self.late
        self.expected: dict[bool, list[list[np.ndarray]]] = {}

    def damage(self, full: ModelProto, layer: Layer) -> float:
        """Of one layer, by the formula above. full: the model with all layers int8."""
        late = bool(layer.loop)
        names = self.late if late else self.early
        if late not in self.expected:
            self.expected[late] = self._run(self.model, names)
        return relative(self.expected[late], self._run(only(full, self.model, [layer]), names))

    def _run(self, model: ModelProto, names: list[str]) -> list[list[np.ndarray]]:
        session = Session(model, "a trial of the model", names)
        return [session.run(feeds) for feeds in self.samples]


def ends(model: ModelProto) -> list[str]:
    """The graph's outputs, or what a softmax makes them of."""
    made = {node.output[0]: node for node in model.graph.node}
    softmax = lambda name: name in made and made[name].op_type == "Softmax"
    return [made[entry.name].input[0] if softmax(entry.name) else entry.name for entry in model.graph.output]


def relative(expected: list[list[np.ndarray]], given: list[list[np.ndarray]]) -> float:
    """|a - b|^2 / |a|^2 over all tensors of all samples, each tensor by its own size."""
    shares = []
    for place in range(len(expected[0])):
        pairs = [(one[place].astype(np.float64), other[place]) for one, other in zip(expected, given)]
        size = sum(float(np.square(one).sum()) for one, _ in pairs)
        error = sum(float(np.square(one - other).sum()) for one, other in pairs if one.shape == other.shape)
        if size:
            shares.append(error / size)
    return sum(shares) / max(1, len(shares))


def read_by_loops(model: ModelProto) -> list[str]:
    """Tensors of several numbers that nodes make and loops read."""
    made = {name: node for node in model.graph.node for name in node.output}
    names: dict[str, None] = {}
    for node, body in loops(model):
        for name in [*node.input, *(name for inner in body.node for name in inner.input)]:
            if name in made and made[name].op_type in (*WEIGHTED, "Transpose", "Reshape", "Add", "Mul"):
                names[name] = None
    return list(names)
