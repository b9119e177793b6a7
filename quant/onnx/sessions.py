"""Running a graph on this CPU. By default as it is written: pairs of QuantizeLinear and DequantizeLinear round, and the
layers compute in float32, exact for codes of eight bits up to the rounding of sums. Onnxruntime's own int8 kernels are
another matter: without VNNI they may saturate (its documentation says so), so they are used for timing only.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from ..base.errors import QuantError, one_line
from .graph import loops
from .unread import drop_unread

THREADS = 0  # onnxruntime's choice: one a core


class Session:
    """A graph that is ready to run; wanted: names of the tensors to answer, the graph's outputs by default.

    Raises QuantError where onnxruntime cannot load it.
    """

    def __init__(self, model: ModelProto, name: str, wanted: Sequence[str] = (), threads: int = THREADS, fuse=False):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if not fuse:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.name = name
        try:
            self.session = onnxruntime.InferenceSession(
                with_outputs(model, wanted).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # onnxruntime's own classes, without a common one
            raise QuantError(f"{name}: onnxruntime cannot load it: {one_line(err)}") from None
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.wanted = list(wanted) or self.outputs

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The wanted tensors. Raises QuantError where an input's shape does not do."""
        try:
            return self.session.run(self.outputs, feeds)
        except Exception as err:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise QuantError(f"{self.name}: fails on an input of {shapes}: {one_line(err)}") from None


def with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The graph with these tensors as its only outputs, without what they do not need; the graph itself where there are
    none. Of a tensor inside a loop all turns come out, one after the other along a first axis of their own.
    """
    if not names:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    known = {entry.name: entry for entry in result.graph.output}
    del result.graph.output[:]
    for name in names:
        outer = name
        for node, body in loops(result):
            if any(name in inner.output for inner in body.node) or name in {entry.name for entry in body.input}:
                outer = f"{name}/turns"
                handed = f"{name}/turn"  # an output may be named once only, and may not be an input
                body.node.append(helper.make_node("Identity", [name], [handed], handed))
                body.output.append(helper.make_tensor_value_info(handed, TensorProto.FLOAT, None))
                node.output.append(outer)
        result.graph.output.append(known.get(outer) or helper.make_tensor_value_info(outer, TensorProto.FLOAT, None))
    drop_unread(result)
    return result
