"""Features of an ONNX model or export as a dump (features.py): the outputs of its layers, by the nodes' names, which an
export shares with the float model that was prepared for it.
"""

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ..base.errors import UsageError
from ..onnx import graph
from ..onnx.export import digest, is_export, read_export
from ..onnx.labels import read_items
from ..onnx.scores import Reader, signature_of
from ..onnx.sessions import Session
from ..onnx.tasks import TASKS, task_of
from ..onnx.verify import nodes
from .features import Dump, Writer


def dump(
    model_path: Path, directory: str, images: str | None, inputs: str | None, patterns: list[str] | None, count: int
) -> dict:
    """The manifest of what was written into `directory`. images: a folder or label file; inputs: an earlier dump.

    Raises UsageError for a pattern that matches nothing, QuantError for files that cannot be read.
    """
    export = read_export(model_path) if is_export(model_path) else None
    file = export.model if export else model_path
    model = graph.read(file)
    if export is None:
        model = graph.prepare(model, None, file.name)
    signature = signature_of(model)
    task = TASKS[export.record["task"]] if export else task_of(signature, None, file.name)
    made = {node.name: node.output[0] for node in nodes(model) if node.op_type in graph.WEIGHTED}
    chosen = {name: made[name] for name in made if any(fnmatchcase(name, each) for each in patterns or ["*"])}
    if not chosen:
        raise UsageError(
            f"--modules {patterns}: matches none of {len(made)} layers, such as {next(iter(made), 'none')}"
        )
    ends = {entry.name: entry.name for entry in model.graph.output}
    reader, samples = Reader(task, signature), []
    if inputs is not None:
        earlier = Dump(inputs)
        samples = [(name, earlier.inputs(number)) for number, name in enumerate(earlier.names)]
    else:
        samples = [(item.file.name, reader.feeds(item)) for item in read_items(str(images), task.name)[:count]]
    names = chosen | ends
    session = Session(model, file.name, list(names.values()))
    writer = Writer(directory, model=digest(file), path=str(model_path), int8=export is not None, repeat={})
    for name, feeds in samples:
        writer.sample(name, feeds)
        for feature, value in zip(names, session.run(feeds)):
            writer.feature(feature.replace("/", "."), np.asarray(value))
    writer.close()
    return writer.manifest
