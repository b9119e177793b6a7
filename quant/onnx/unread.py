"""What a graph computes and nobody reads: dropped, since onnxruntime computes it nevertheless."""

from collections.abc import Iterator

from onnx import GraphProto, ModelProto


def drop_unread(model: ModelProto) -> None:
    """Nodes that nothing reads, of the graph and of the graphs inside it, and the graph's constants; in place."""
    while True:
        graphs = list(_graphs(model.graph))
        read = {name for graph in graphs for node in graph.node for name in node.input}
        read |= {output.name for graph in graphs for output in graph.output}
        idle = [(graph, node) for graph in graphs for node in graph.node if not set(node.output) & read]
        if not idle:
            break
        for graph, node in idle:
            graph.node.remove(node)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _graphs(entry.g)
