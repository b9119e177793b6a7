"""Scores of a float ONNX model and its export on images with labels, none of which were calibrated on."""

from pathlib import Path

from ..base.errors import UsageError
from . import graph
from .export import Export, digest, read_export
from .labels import Item, read_items
from .scores import Reader, signature_of
from .tasks import TASKS, task_of


def evaluate(
    source: Path, directory: Path, data: str, count: int | None = None, seed: int = 0, known: dict | None = None
) -> dict:
    """{"task", "items", "metrics": {name: [float, int8]}, "interval": of the first metric's difference, in points}.

    known: the float model's tallies by source, data and count, taken from there and put there: for several exports of
    one model.

    Raises UsageError where an image was calibrated on or has no label, or the source is another model; QuantError for
    files that cannot be used.
    """
    export = read_export(directory)
    refuse_other_source(export, source)
    export.refuse_changed()
    task = export.record["task"]
    items = read_items(data, task)[:count]
    refuse_seen(export, items)
    if any(item.label is None for item in items):
        raise UsageError(f"{data}: holds no labels; {task} is scored against them")
    int8 = graph.read(export.model)
    reader = Reader(TASKS[task], signature_of(int8))
    # The float model is run as it came, not as it was prepared: what preparing changed would show here.
    original = graph.read(source) if source.is_file() else None
    if original is None:
        from .paddle import converted

        original = converted(source)
    task_of(signature_of(original, reader.signature.words), task, source.name)
    labels = [item.label for item in items]
    known, key = {} if known is None else known, (source, data, count)
    if key not in known:
        known[key] = reader.tallies(reader.answers(original, source.name, items), labels)
    one, other = known[key], reader.tallies(reader.answers(int8, export.model.name, items), labels)
    points = [reader.points(tallies) for tallies in (one, other)]
    return {
        "task": task,
        "items": len(items),
        "metrics": {name: [value, points[1][name]] for name, value in points[0].items()},
        "interval": list(reader.interval(one, other, seed)),
        "quantized": export.record["model"]["sha256"],
    }


def refuse_other_source(export: Export, source: Path) -> None:
    """Raises UsageError where `source` is not what the export was made from, QuantError where it cannot be read."""
    if not source.exists():
        raise UsageError(f"--model_path {source}: no such file")
    file = source / "inference.pdmodel" if source.is_dir() else source
    made, found = export.record["source"]["sha256"], digest(file)
    if made != found:
        raise UsageError(
            f"{source}: sha256 {found[:16]}, {export.directory} was made from {export.record['source']['file']},"
            f" {made[:16]}; name that one"
        )


def refuse_seen(export: Export, items: list[Item]) -> None:
    """Raises UsageError where an image was used in making the export, QuantError where one cannot be read."""
    seen = {*export.record["calibration"]["sha256"], *export.record["held_out"]["sha256"]}
    for item in items:
        if digest(item.file) in seen:
            raise UsageError(f"{item.file}: was used to make {export.directory}; score on other images")
