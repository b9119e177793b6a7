"""Loops whose bodies compute the same at every turn: paddle2onnx hands weights through a loop as if they changed, and
so a product of features and weights, the same for all of 500 steps, is computed 500 times. Here what never changes is
read from outside, and what follows from it alone is computed once, before the loop. The result is the same, up to the
order of a product's sums; and weights in the loop's body are seen to be constant, which they must be to be rounded.
"""

from onnx import GraphProto, ModelProto, NodeProto, numpy_helper


def hoist(model: ModelProto) -> None:
    """In place, in every loop of the graph."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Loop"]:
        body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
        _read_from_outside(graph, node, body)
        _drop_unread(body)
        place = list(graph.node).index(node)
        for offset, inner in enumerate(_independent(body)):
            body.node.remove(inner)
            graph.node.insert(place + offset, inner)
        # What a body defines may not be defined around it: its constants move with the nodes, or as a whole.
        graph.initializer.extend(body.initializer)
        del body.initializer[:]


def _read_from_outside(graph: GraphProto, node: NodeProto, body: GraphProto) -> None:
    """Loop-carried values that come out as they went in are read from the graph around, inside the loop and after it.

    Of a Loop's inputs the first two are the number of turns and the condition; of the body's inputs, the turn and the
    condition; of its outputs, the condition.
    """
    results = {output.name for output in graph.output}
    for place in reversed(range(len(node.input) - 2)):
        inner, given = body.input[place + 2].name, node.input[place + 2]
        if _origin(body.output[place + 1].name, body) != inner or node.output[place] in results:
            continue
        for nodes, old in ((body.node, inner), (graph.node, node.output[place])):
            for user in nodes:
                for position, name in enumerate(user.input):
                    if name == old and user is not node:
                        user.input[position] = given
        del node.input[place + 2], node.output[place], body.input[place + 2], body.output[place + 1]


def _origin(name: str, body: GraphProto) -> str:
    """Where a value comes from, through nodes that hand it on: paddle2onnx ends with an Unsqueeze and a Squeeze of the
    same axis.
    """
    made = {output: node for node in body.node for output in node.output}
    constants = {tensor.name: tensor for tensor in body.initializer}
    while (node := made.get(name)) is not None:
        if node.op_type == "Squeeze" and len(node.input) == 2:
            before = made.get(node.input[0])
            if before is None or before.op_type != "Unsqueeze":
                return name
            axes = [constants.get(entry) for entry in (node.input[1], before.input[1])]
            if None in axes or numpy_helper.to_array(axes[0]).tolist() != numpy_helper.to_array(axes[1]).tolist():
                return name
            node = before
        elif node.op_type != "Identity":
            return name
        name = node.input[0]
    return name


def _drop_unread(body: GraphProto) -> None:
    while True:
        read = {name for node in body.node for name in node.input} | {output.name for output in body.output}
        idle = [node for node in body.node if not set(node.output) & read]
        if not idle:
            return
        for node in idle:
            body.node.remove(node)


def _independent(body: GraphProto) -> list[NodeProto]:
    """The nodes that read nothing which the loop changes."""
    changing, outputs = {entry.name for entry in body.input}, {entry.name for entry in body.output}
    moved = []
    for node in body.node:
        if changing & set(node.input) or set(node.output) & outputs or node.op_type in ("Loop", "If", "Scan"):
            changing |= set(node.output)
        else:
            moved.append(node)
    return moved
