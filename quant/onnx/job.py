"""From a float ONNX model and a folder of images to an exported directory (export.py): the graph is prepared, ranges
are taken from one part of the images, every layer is tried alone, and on the other part int8 is scored against float.
"""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import ModelProto

from ..base.console import SILENT, Reporter, duration
from ..base.errors import QuantError, UsageError
from ..base.output import appearing, check_output
from . import choose, graph
from .calibrate import corrected, observe, ranges
from .equalize import divided, equalized, evened, exponents, output_exponents
from .export import FORMAT, RECORD, digest
from .graph import Layer
from .labels import Item, read_items
from .measure import Trials, multiply_adds
from .paddle import converted, is_paddle
from .qdq import Ranges, only, quantized
from .scores import Reader, signature_of
from .tasks import task_of

CALIBRATION, SHARE = 48, 0.4  # images that ranges are taken from: at most so many, and at most this part of all
MOST_TRIED, TRIED_SIZE = 8, 2_500_000  # images that every layer is tried alone on: so many, or elements of inputs
PAYS = 0.8  # equalizing an input must bring its layer's damage down to this part
RIGHT_OR_WRONG = ("accuracy", "exact lines")  # scores in which one image is worth 100 / images
LEAST = 8  # images altogether: fewer leave nothing to hold out


@dataclass(frozen=True)
class Options:
    """What can be chosen. task: None guesses; input_shape: None leaves the shape as it is; characters: a file, a word a
    line; plain: what was seen is the range, every layer int8, nothing corrected (the comparison in docs/ppocr.md).
    """

    task: str | None = None
    max_drop: float = 1.0
    input_shape: tuple[int, ...] | None = None
    characters: Path | None = None
    num_samples: int | None = None
    seed: int = 0
    plain: bool = False


def quantize(source: Path, images: Path, target: Path, options: Options, reporter: Reporter = SILENT) -> dict:
    """Write the directory `target`; its record. Raises UsageError for what cannot be done as asked, QuantError for
    what fails; in both cases nothing is left.
    """
    start = time.perf_counter()
    if not source.exists():
        raise UsageError(f"--model_path {source}: no such file")
    target = check_output(target, source)
    work = Work(source, images, options, reporter)
    for line in work.heading():
        reporter.line(line)
    chosen = work.plain() if options.plain else work.chosen()
    with appearing(target) as partial:
        record = work.write(partial, *chosen)
        record["seconds"] = round(time.perf_counter() - start, 1)
        (partial / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for file in partial.iterdir():
            file.chmod(0o640)
    reporter.line(f"{target}: {duration(record['seconds'])}")
    return record


class Work:
    """A job's graph, images and measurements. Raises UsageError, QuantError as `quantize` says."""

    def __init__(self, source: Path, images: Path, options: Options, reporter: Reporter):
        self.source, self.options, self.reporter = source, options, reporter
        loaded = converted(source) if is_paddle(source) else graph.read(source)
        words = read_words(options.characters) if options.characters else ()
        self.float = graph.prepare(loaded, options.input_shape, source.name)
        if words:
            onnx.helper.set_model_props(
                self.float,
                {entry.key: entry.value for entry in self.float.metadata_props} | {"character": "\n".join(words)},
            )
        signature = signature_of(self.float)
        self.reader = Reader(task_of(signature, options.task, source.name), signature)
        self.layers = graph.layers(self.float)
        if not self.layers:
            raise UsageError(f"{source}: has no Conv, Gemm or MatMul with a constant weight, so nothing can be int8")
        self.fitting, self.held_out = split(read_items(images, self.reader.task.name), options)
        feeds = [self.reader.feeds(item) for item in self.fitting]
        self.stats = observe(self.float, self.layers, feeds)
        count = TRIED_SIZE * len(feeds) // sum(value.size for each in feeds for value in each.values())
        self.tried = feeds[: max(2, min(MOST_TRIED, count))]
        self.costs = multiply_adds(self.float, feeds[0])
        self.damages: dict[str, float] = {}
        self.turns: list[dict] = []
        self.exponents: dict[str, list[int]] = {}
        self.output_exponents: dict[str, list[int]] = {}
        self.scores: dict = {}

    def heading(self) -> list[str]:
        """The job in two lines."""
        work = f"{len(self.layers)} layers, {sum(self.costs.values()) / 1e6:.0f} M multiply-adds"
        images = f"{len(self.fitting)} images for ranges, {len(self.held_out)} held out"
        return [f"{self.source.name}: {self.reader.task.name}", f"{work}; {images}"]

    def plain(self) -> tuple[ModelProto, list[Layer], Ranges]:
        """Every layer int8, by what was seen."""
        chosen = ranges(self.float, self.layers, self.stats)
        self._drop(quantized(self.float, self.layers, chosen))
        return self.float, [], chosen

    def chosen(self) -> tuple[ModelProto, list[Layer], Ranges]:
        """(the float model with corrected biases, the layers that stay float, ranges)."""
        self._equalize()
        model, layers = self.float, self.layers
        seen = ranges(model, layers, self.stats)
        order = choose.ranking(layers, self.damages, self.costs)
        floats = choose.first_choice(order, self.damages, self.costs)
        full = quantized(corrected(model, layers, seen, self.stats), layers, seen)

        def drop(floats: list[Layer]) -> float:
            lost = self._drop(only(full, model, [layer for layer in layers if layer not in floats]))
            self.reporter.line(f"  {len(floats)} of {len(layers)} layers float: {lost:+.2f} points lost")
            return lost

        floats, self.turns = choose.until_it_holds(order, floats, drop, self.allowed())
        # A layer that stays float keeps its own bias.
        model = corrected(model, [layer for layer in layers if layer not in floats], seen, self.stats)
        return model, floats, seen

    def allowed(self) -> float:
        """Points that int8 may lose on the held-out images: --max_drop; or what one image of them is worth, where an
        image is right or wrong.
        """
        counted = self.reader.task.metrics[0] in RIGHT_OR_WRONG
        return max(self.options.max_drop, 100 / len(self.held_out) if counted else 0)

    def _equalize(self) -> None:
        """Every layer's damage, and equalized channels for the layers whose damage matters and comes down by it."""
        layers = self.layers
        tried = exponents(self.float, layers, self.stats)
        self.damages = self._damages(self.float, self.stats, layers)
        other = equalized(self.float, layers, tried)
        outputs = output_exponents(other, layers)
        changed = [
            layer
            for layer in layers
            if (layer.input in tried or layer.name in outputs) and choose.matters(layer, self.damages, len(layers))
        ]
        found = self._damages(evened(other, layers, outputs), divided(self.stats, tried), changed)
        better = {name: value for name, value in found.items() if value < PAYS * self.damages[name]}
        inputs = {layer.input for layer in layers if layer.name in better}
        self.exponents = {name: powers for name, powers in tried.items() if name in inputs}
        self.output_exponents = {name: powers for name, powers in outputs.items() if name in better}
        self.float = evened(equalized(self.float, layers, self.exponents), layers, self.output_exponents)
        self.stats = divided(self.stats, self.exponents)
        self.damages |= better

    def _damages(self, model: ModelProto, stats: dict, layers: list[Layer]) -> dict[str, float]:
        """Of layers one by one, with the biases that they will have."""
        seen = ranges(model, self.layers, stats)
        full = quantized(corrected(model, self.layers, seen, stats), self.layers, seen)
        trials = Trials(model, self.tried)
        return {layer.name: trials.damage(full, layer) for layer in layers}

    def _drop(self, model: ModelProto) -> float:
        """What int8 loses on the held-out images, in points of the task's first metric."""
        if "float" not in self.scores:
            self.answers = self.reader.answers(self.float, self.source.name, self.held_out)
            labels = [item.label for item in self.held_out]
            self.against = "labels"
            if any(label is None for label in labels):
                labels, self.against = [self.reader.task.as_label(said) for said in self.answers], "the float model"
            self.labels = labels
            self.scores["float"] = self.reader.points(self.reader.tallies(self.answers, labels))
        said = self.reader.answers(model, f"{self.source.name} in int8", self.held_out)
        self.scores["int8"] = self.reader.points(self.reader.tallies(said, self.labels))
        metric = self.reader.task.metrics[0]
        return self.scores["float"][metric] - self.scores["int8"][metric]

    def write(self, directory: Path, model: ModelProto, floats: Sequence[Layer], chosen: Ranges) -> dict:
        """The models, and the record of the job. Raises QuantError where the disk refuses."""
        int8 = [layer for layer in self.layers if layer not in floats]
        names = {"model": f"{self.source.stem}.int8.onnx", "amct": f"{self.source.stem}.amct.onnx"}
        files = {}
        for part, pairs in (("model", False), ("amct", True)):
            made = quantized(model, int8, chosen, pairs)
            made.producer_name, made.producer_version = "quant", str(FORMAT)
            file = directory / names[part]
            try:
                onnx.save(made, str(file))
            except ValueError as err:
                raise QuantError(f"{file}: {err}") from None
            files[part] = {"file": names[part], "bytes": file.stat().st_size, "sha256": digest(file)}
        total = sum(self.costs.values())
        share = sum(self.costs[layer.name] for layer in int8) / total
        kept = {layer.name for layer in floats}
        return {
            "format": FORMAT,
            "task": self.reader.task.name,
            "source": source_facts(self.source),
            **files,
            "opset": model.opset_import[0].version,
            "inputs": {name: list(shape) for name, shape in self.reader.signature.inputs.items()},
            "options": {"max_drop": self.options.max_drop, "seed": self.options.seed, "plain": self.options.plain},
            "calibration": {"images": len(self.fitting), "sha256": [digest(item.file) for item in self.fitting]},
            "held_out": {
                "images": len(self.held_out),
                "sha256": [digest(item.file) for item in self.held_out],
                "against": self.against,
                "scores": self.scores,
                "turns": self.turns,
            },
            "multiply_adds": {"all": total, "int8": round(share, 6)},
            "layers": [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "shape": list(layer.shape),
                    "loop": layer.loop,
                    "multiply_adds": self.costs[layer.name],
                    "int8": layer.name not in kept,
                    "damage_db": decibels(self.damages.get(layer.name)),
                    "exponents": self.exponents.get(layer.input),
                    "output_exponents": self.output_exponents.get(layer.name),
                    "range": [round(value, 6) for value in chosen.inputs[layer.input]],
                }
                for layer in self.layers
            ],
            "versions": {name: version(name) for name in ("onnx", "onnxruntime", "numpy")}
            | {"python": platform.python_version()},
        }


def source_facts(source: Path) -> dict:
    """What the export was made from."""
    file = source / "inference.pdmodel" if source.is_dir() else source
    return {"file": source.name, "bytes": file.stat().st_size, "sha256": digest(file)}


def split(items: list[Item], options: Options) -> tuple[list[Item], list[Item]]:
    """(those that ranges are taken from, those that are held out), by chance. Raises UsageError where there are too
    few.
    """
    items = sorted(items, key=lambda item: str(item.file))
    Random(options.seed).shuffle(items)
    items = items[: options.num_samples]
    if len(items) < LEAST:
        raise UsageError(f"--calib_images: {len(items)} images, {LEAST} at least, of which some are held out")
    count = min(CALIBRATION, int(SHARE * len(items)))
    return items[:count], items[count:]


def read_words(file: Path) -> list[str]:
    """A word a line. Raises UsageError where there is no such file, or no word in it."""
    try:
        words = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"--characters {file}: {err}") from None
    if not words:
        raise UsageError(f"--characters {file}: is empty")
    return words


def decibels(share: float | None) -> float | None:
    """-10 log10 of a share; None of None, 300 of nothing."""
    return None if share is None else round(float(-10 * np.log10(max(share, 1e-30))), 2)
