"""Reading, preparing, hoisting; what is refused."""

import numpy as np
import onnx
import pytest
from graphs import classifier, looped, model, normal, transposed, value
from onnx import TensorProto, helper

from quant.base.errors import QuantError, UsageError
from quant.onnx import graph, hoist
from quant.onnx.sessions import Session, with_outputs


def run(made, x, names=()):
    return Session(made, "test", names).run({"x": x})


def saved(tmp_path, made, name="m.onnx"):
    file = tmp_path / name
    onnx.save(made, str(file))
    return file


@pytest.mark.parametrize(
    "make, shape", [(classifier, (1, 3, 32, 32)), (looped, (1, 3, 16, 16)), (transposed, (1, 3, 5, 7))]
)
def test_prepared_computes_the_same(make, shape):
    made = make()
    prepared = graph.prepare(made, None, "m.onnx")
    for one, other in zip(run(made, normal(9, *shape)), run(prepared, normal(9, *shape))):
        np.testing.assert_allclose(one, other, atol=2e-6)
    assert prepared.opset_import[0].version >= graph.OPSET and len(prepared.opset_import) == 1
    assert len({node.name for node in prepared.graph.node}) == len(prepared.graph.node)


@pytest.mark.parametrize("opset", [11, 12])
def test_older_opsets_are_raised(opset):
    prepared = graph.prepare(classifier(opset=opset), None, "m.onnx")
    assert prepared.opset_import[0].version == graph.OPSET


def test_batch_norm_and_sum_go_into_the_transposed_convolution():
    found = graph.operators(graph.prepare(transposed(), None, "m.onnx"))
    assert "BatchNormalization" not in found and "Add" not in found


def test_hoisting_computes_the_same_and_takes_the_product_out():
    made = looped()
    moved = onnx.ModelProto()
    moved.CopyFrom(made)
    hoist.hoist(moved)
    onnx.checker.check_model(moved, full_check=True)
    x = normal(3, 1, 3, 16, 16)
    for one, other in zip(run(made, x), run(moved, x)):
        np.testing.assert_allclose(one, other, atol=1e-6)
    ((_, body),) = graph.loops(moved)
    assert [node.op_type for node in body.node] == ["MatMul", "Add", "Tanh", "Identity"]
    assert "features" in [node.name for node in moved.graph.node] and len(moved.graph.node) == 7
    found = {layer.name: layer.loop for layer in graph.layers(moved)}
    assert found == {"before": "", "features": "", "recurrent": "loop", "after": ""}


def test_what_a_loop_changes_stays_inside():
    """The state that comes out as it went in only in name: a Squeeze of another axis is no handing on."""
    made = looped()
    ((_, body),) = graph.loops(made)
    squeeze = next(node for node in body.node if node.op_type == "Squeeze")
    body.initializer.append(helper.make_tensor("other", TensorProto.INT64, [1], [1]))
    squeeze.input[1] = "other"
    hoist.hoist(made)
    assert "features" in [node.name for node in graph.loops(made)[0][1].node]


def test_tensors_of_a_loop_come_out_turn_by_turn():
    made = looped(turns=5)
    hoist.hoist(made)
    states, end = run(made, normal(3, 1, 3, 16, 16), ["h_out", "y"])
    assert states.shape[0] == 5 and end.shape == (1, 3)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    np.testing.assert_allclose(states[-1] @ weights["u"], end, atol=1e-6)
    assert [entry.name for entry in with_outputs(made, ["y"]).graph.output] == ["y"]


def test_layers_know_axes_and_scales():
    found = {layer.name: layer for layer in graph.layers(graph.prepare(classifier(), None, "m"))}
    assert found["by_channel"].groups == 8 and found["by_channel"].per_channel and found["by_channel"].axis == 0
    assert found["last"].transposed and not found["last"].per_channel and found["last"].axis == 0
    assert graph.layers(graph.prepare(transposed(), None, "m"))[0].axis == 1


def test_a_shape_is_fixed():
    prepared = graph.prepare(transposed(), (1, 3, 6, 8), "m.onnx")
    assert [size.dim_value for size in prepared.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 6, 8]
    assert run(prepared, normal(1, 1, 3, 6, 8))[0].shape == (1, 1, 24, 32)


def test_a_shape_that_does_not_do():
    with pytest.raises(UsageError, match=r"--input_shape \[1, 3, 8, 8\].*\[1, 3, 32, 32\]"):
        graph.prepare(classifier(), (1, 3, 8, 8), "m.onnx")


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        graph.read(tmp_path / "gone.onnx")
    for content in (b"", b"not a model at all", classifier().SerializeToString()[:500]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(QuantError, match="not a"):
            graph.read(tmp_path / "bad.onnx")


def external(tmp_path, **facts):
    """A model whose first weight is in another file."""
    made = classifier()
    onnx.save(made, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    made = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            entry.value = facts.get(entry.key, entry.value)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    return tmp_path / "m.onnx"


def test_external_data(tmp_path):
    file = external(tmp_path)
    assert graph.read(file).graph.initializer[0].raw_data
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:100])
    with pytest.raises(QuantError, match="which has 100 bytes"):
        graph.read(file)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(QuantError, match="which is missing"):
        graph.read(file)


def test_external_data_stays_inside(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(10000))
    inner = tmp_path / "model"
    inner.mkdir()
    with pytest.raises(QuantError, match="outside the model's directory"):
        graph.read(external(inner, location="../secret.bin"))
    (inner / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(QuantError, match="outside the model's directory"):
        graph.read(external(inner, location="link.bin"))


def test_operators_that_onnx_does_not_have():
    node = helper.make_node("Magic", ["x"], ["y"], "wand", domain="my.company")
    made = helper.make_model(
        helper.make_graph([node], "g", [value("x", [1, 3, 8, 8])], [value("y", [1, 3, 8, 8])]),
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("my.company", 1)],
        ir_version=8,
    )
    with pytest.raises(QuantError, match="wand is my.company.Magic"):
        graph.prepare(made, None, "m.onnx")


def test_a_model_that_is_quantized_already():
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], "q")]
    constants = {"s": np.float32(1), "z": np.int8(0)}
    made = model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 3, 8, 8], TensorProto.INT8)], constants)
    with pytest.raises(UsageError, match="is quantized already"):
        graph.prepare(made, None, "m.onnx")


def test_what_outputs_do_not_need_is_not_computed():
    """A loop takes half of a table model's time, and trials of the layers before it look at what it reads."""
    prepared = graph.prepare(looped(), None, "m.onnx")
    x, early = normal(3, 1, 3, 16, 16), ["c"]
    small = with_outputs(prepared, early)
    assert graph.operators(small) == ["Conv"] and len(small.graph.initializer) == 2
    np.testing.assert_array_equal(run(small, x)[0], run(prepared, x, ["c", "y"])[0])


def test_what_graphs_inside_read_is_kept():
    branch = lambda name: helper.make_graph(
        [helper.make_node(name, ["a"], [f"{name}_out"], name)], name, [], [value(f"{name}_out", [1, 4])]
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], "made"),
        helper.make_node("If", ["yes"], ["y"], "choice", then_branch=branch("Abs"), else_branch=branch("Exp")),
        helper.make_node("Exp", ["x"], ["z"], "idle"),
    ]
    made = model(nodes, [value("x", [1, 4])], [value("y", [1, 4]), value("z", [1, 4])], {"yes": np.array(True)})
    found = with_outputs(made, ["y"])
    assert [node.name for node in found.graph.node] == ["made", "choice"]
