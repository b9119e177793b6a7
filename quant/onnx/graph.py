"""An ONNX file as a graph to quantize: read and checked, brought to an opset that has scales per channel, its batch
norms folded into the convolutions before them, its shapes fixed where that is asked for; and its layers with weights.

Onnxruntime folds (its basic optimization knows only operators of ONNX itself, so the result is for any runtime); what
it has no pass for is here: a batch norm after a transposed convolution, and products in a loop whose factors never
change, which are taken out of it (hoist.py).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, numpy_helper, version_converter
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ..base.errors import QuantError, UsageError, one_line
from .hoist import hoist

OPSET = 13  # the first whose DequantizeLinear has an axis
STANDARD = ("", "ai.onnx")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What AMCT takes as fake-quantized (its convert_qat_model), and what this project rounds."""


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight. input, weight, bias: names of tensors, "" without a bias; shape: the weight's;
    loop: the node of the loop that it stands in, or "".
    """

    name: str
    op: str
    input: str
    weight: str
    bias: str
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    loop: str = ""

    @property
    def axis(self) -> int:
        """The weight's axis of output channels."""
        if self.op == "Conv" or self.transposed:
            return 0
        return 1

    @property
    def per_channel(self) -> bool:
        """AMCT takes scales per channel of convolutions, and one for the weight of a Gemm or MatMul."""
        return self.op in ("Conv", "ConvTranspose")


def read(path: str | Path) -> ModelProto:
    """The model with its weights in memory. Raises UsageError where there is no such file, QuantError where it is not
    ONNX, not valid, quantized already, or its external data is missing, too short or outside the model's directory.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; an ONNX model is expected")
    try:
        model = onnx.load(str(path), load_external_data=False)
        if not model.graph.node or not model.opset_import:
            raise DecodeError("no graph in it")
    except (DecodeError, OSError, ValueError) as err:
        raise QuantError(f"{path}: not an ONNX model ({one_line(err)})") from None
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            _check_external(path, tensor)
    try:
        model = onnx.load(str(path))
        if not set(operators(model)) & {"QuantizeLinear", "DequantizeLinear"}:
            onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError, DecodeError) as err:
        # A domain that is imported and not used is refused by nobody else.
        raise QuantError(f"{path}: not a valid ONNX model: {one_line(err)}") from None
    return model


def _check_external(path: Path, tensor) -> None:
    info = ExternalDataInfo(tensor)
    file = (path.parent / info.location).resolve()
    where = f"{path}: weight {tensor.name} is in external data {info.location!r}"
    if path.parent.resolve() not in file.parents or (path.parent / info.location).is_symlink():
        raise QuantError(f"{where}, which is outside the model's directory; put the file beside the model")
    if not file.is_file():
        raise QuantError(f"{where}, which is missing; copy it beside the model")
    needed = (info.offset or 0) + (info.length or 0)
    if file.stat().st_size < needed:
        raise QuantError(f"{where}, which has {file.stat().st_size} bytes, {needed} are needed; copy it again")


def operators(model: ModelProto) -> list[str]:
    """The operators of the graph and of the graphs inside it."""
    found, ahead = [], [model.graph]
    while ahead:
        for node in ahead.pop().node:
            found.append(node.op_type)
            ahead += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def prepare(model: ModelProto, shape: tuple[int, ...] | None, name: str) -> ModelProto:
    """The float graph that is quantized: see above. shape: of the image input, or None to leave it as it is; name: of
    the file, for errors. Raises QuantError where an operator is unknown or a shape does not do, UsageError where the
    model is quantized already.
    """
    found = operators(model)
    if {"QuantizeLinear", "DequantizeLinear", "QLinearConv"} & set(found):
        raise UsageError(f"{name}: is quantized already; the float model is needed")
    domains = {node.domain for node in model.graph.node} - set(STANDARD)
    if domains:
        node = next(node for node in model.graph.node if node.domain not in STANDARD)
        raise QuantError(
            f"{name}: node {node.name or node.output[0]} is {node.domain}.{node.op_type}, which is no operator of ONNX;"
            " export the model with standard operators"
        )
    words = list(model.metadata_props)
    _drop_domains(model)
    if shape:
        _fix_shape(model, shape, name)
    version = model.opset_import[0].version
    try:
        if version < OPSET:
            model = version_converter.convert_version(model, OPSET)
        model = _optimized(model)
        hoist(model)
        _name_nodes(model)
        _fold_transposed(model)
        model = _optimized(model)
    except QuantError:
        raise
    except Exception as err:  # onnx and onnxruntime raise classes of their own, without a common one
        raise QuantError(f"{name}: onnxruntime cannot take it: {one_line(err)}") from None
    _name_nodes(model)
    _drop_domains(model)
    del model.metadata_props[:]
    model.metadata_props.extend(words)
    return model


def _drop_domains(model: ModelProto) -> None:
    """Domains that are imported and not used: onnxruntime writes all that it knows."""
    keep = [entry for entry in model.opset_import if entry.domain in STANDARD]
    del model.opset_import[:]
    model.opset_import.extend(keep[:1])


def _optimized(model: ModelProto) -> ModelProto:
    """By onnxruntime's basic optimization: constants and batch norms folded, nodes that do nothing taken out."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _fix_shape(model: ModelProto, shape: tuple[int, ...], name: str) -> None:
    for tensor in model.graph.input:
        sizes = tensor.type.tensor_type.shape.dim
        if len(sizes) != 4:
            continue
        there = [size.dim_value for size in sizes]
        if len(shape) != 4 or any(fixed > 0 and fixed != asked for fixed, asked in zip(there, shape)):
            raise UsageError(f"--input_shape {list(shape)}: the input {tensor.name} of {name} is {there}, 0 being free")
        for size, asked in zip(sizes, shape):
            size.Clear()
            size.dim_value = asked
        del model.graph.value_info[:]
        for output in model.graph.output:  # what was said of them was said of any input
            for size in output.type.tensor_type.shape.dim:
                if not size.dim_value:
                    size.Clear()
        return
    raise UsageError(f"--input_shape {list(shape)}: {name} has no input of four axes")


def _name_nodes(model: ModelProto) -> None:
    """Every node gets a name of its own: by it, layers are told apart."""
    taken: set[str] = set()
    for graph in [model.graph, *(body for _, body in loops(model))]:
        for node in graph.node:
            name = node.name or node.output[0]
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def loops(model: ModelProto) -> list[tuple[NodeProto, onnx.GraphProto]]:
    """(node, body) of every Loop in the graph itself."""
    return [
        (node, attribute.g)
        for node in model.graph.node
        if node.op_type == "Loop"
        for attribute in node.attribute
        if attribute.name == "body"
    ]


def _fold_transposed(model: ModelProto) -> None:
    """A constant that is added after a transposed convolution becomes its bias, and a batch norm after it,
    y = s (W^T x + b) + t, goes into its weight, [I, O, kH, kW], and bias.
    """
    graph = model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConvTranspose"]:
        weight = tensors.get(node.input[1])
        if weight is None or weight.ndim != 4 or attribute(node, "group", 1) != 1:
            continue
        channels = weight.shape[1]
        bias = tensors[node.input[2]] if len(node.input) > 2 else np.zeros(channels, np.float32)
        while (after := _only_reader(graph, node.output[0])) is not None:
            if after.op_type == "Add" and after.input[0] == node.output[0] and after.input[1] in tensors:
                added = tensors[after.input[1]]
                if added.shape not in ((1, channels, 1, 1), (channels, 1, 1)):
                    break
                bias = bias + added.reshape(-1)
            elif after.op_type == "BatchNormalization":
                scale, shift, mean, variance = (tensors[name].astype(float) for name in after.input[1:5])
                factor = scale / np.sqrt(variance + attribute(after, "epsilon", 1e-5))
                weight, bias = weight * factor[None, :, None, None], (bias - mean) * factor + shift
            else:
                break
            node.output[0] = after.output[0]
            graph.node.remove(after)
        names = [f"{node.name}.weight", f"{node.name}.bias"]
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, np.float32), name) for value, name in zip((weight, bias), names)
        )
        del node.input[1:]
        node.input.extend(names)


def _only_reader(graph, name: str) -> NodeProto | None:
    """The node that alone reads a tensor, which is no result of the graph."""
    readers = [node for node in graph.node if name in node.input]
    return readers[0] if len(readers) == 1 and name not in {output.name for output in graph.output} else None


def attribute(node: NodeProto, name: str, default):
    """The value of a node's attribute, or the default."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def layers(model: ModelProto) -> list[Layer]:
    """All nodes with a constant weight of float32, in the order of execution, those in loops after the loop's place."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: list[Layer] = []
    bodies = {node.name: body for node, body in loops(model)}
    for node in model.graph.node:
        found += _layer(node, weights, "")
        for inner in bodies[node.name].node if node.name in bodies else ():
            inside = {tensor.name: tensor for tensor in bodies[node.name].initializer}
            found += _layer(inner, weights | inside, node.name)
    return found


def _layer(node: NodeProto, weights: dict, loop: str) -> list[Layer]:
    if node.op_type not in WEIGHTED or node.input[1] not in weights:
        return []
    weight = weights[node.input[1]]
    transposed = bool(attribute(node, "transB", 0)) if node.op_type == "Gemm" else False
    if weight.data_type != onnx.TensorProto.FLOAT or node.input[0] in weights:
        return []
    if node.op_type in ("Gemm", "MatMul") and len(weight.dims) != 2 or attribute(node, "transA", 0):
        return []  # AMCT takes weights of two axes, and no transposed input
    bias = node.input[2] if len(node.input) > 2 else ""
    groups = attribute(node, "group", 1)
    return [
        Layer(node.name, node.op_type, node.input[0], weight.name, bias, tuple(weight.dims), groups, transposed, loop)
    ]
