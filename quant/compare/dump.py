"""Features of a float checkpoint or of an export, streamed block after block, as a dump (features.py) that compare can
put beside another.

Hooks catch the outputs of the chosen modules while their block runs; those of modules outside the blocks are caught in
a last forward of the model, in which what is kept of the blocks answers for them. Sample 0 goes through each block
twice: what differs then is recorded as "repeat", since a difference to another implementation means nothing below it.

Left out: outputs that are no tensor, or a tuple that does not begin with one; logits but for the last position's.
"""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from ..arithmetic.schemes import QuantizedLinear
from ..base.config import QuantConfig
from ..base.console import SILENT, Reporter
from ..base.errors import UsageError
from ..export import reader
from ..export.reader import Export
from ..families import family_of
from ..files.checkpoint import Checkpoint
from ..inputs.samples import prepare
from ..model.device import compute_dtype, pick_device
from ..model.paused import Key, Passed, Walk, first, logits_at
from ..model.streamed import StreamedModel
from ..verify import runtime
from .features import Dump, Writer

LOGITS = "logits"


class Catcher:
    """Hooks on modules: the output of each, by feature name, float32 [...] on the CPU."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.caught: dict[str, Tensor] = {}
        self.hooks = [module.register_forward_hook(self._hook(name)) for name, module in modules.items()]

    def _hook(self, name: str):
        def hook(module, args, output):
            output = first(output)
            if isinstance(output, Tensor) and output.is_floating_point():
                self.caught[name] = output.detach().float().cpu()

        return hook

    def take(self) -> dict[str, Tensor]:
        """What was caught since the last time, in the order of execution."""
        caught, self.caught = self.caught, {}
        return caught

    def remove(self) -> None:
        """Take the hooks away again."""
        for hook in self.hooks:
            hook.remove()


@torch.inference_mode()
def dump(
    model_path: str | Path,
    directory: str | Path,
    config: QuantConfig,
    images=None,
    *,
    modules: list[str] | None = None,
    inputs: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Writer:
    """Write the features of a model into `directory`.

    config: prompt, num_samples, max_pixels, seed, dev_type are used; images: as Calibrator's calib_data. inputs: an
    earlier dump, whose inputs are taken in place of images. modules: globs on hub module names; None takes the blocks
    and what stands outside of them. Raises UsageError for a pattern that matches nothing, and as Checkpoint,
    reader.read and StreamedModel do.
    """
    source = reader.read(model_path) if reader.is_export(model_path) else Checkpoint(model_path)
    family, device = family_of(source.config, source.dir), pick_device(config.dev_type)
    names, samples = _samples(source, family, config, images, inputs, reporter)
    model = StreamedModel(source, family, compute_dtype(source.dtype, device), device, config.trust_remote_code)
    int8: set[str] = set()
    if isinstance(source, Export):
        int8 = set(source.linear_names)
        runtime.refuse_outside(source, family)
    chosen = _choose(model, modules)
    writer = Writer(
        directory,
        model=digest(source),
        path=str(source.dir),
        int8=bool(int8),
        dtype=str(model.dtype),
        device=device,
        torch=torch.__version__,
        repeat={},
    )
    for name, sample in zip(names, samples):
        writer.sample(name, {key: value.numpy() for key, value in sample.items()})
    inner: dict[str, list[str]] = {}  # block -> the features caught inside it and at it
    passed: dict[str, dict[Key, Passed]] = {}
    for tower in family.towers:
        used = tower.used(source.config)
        walk = Walk(model, tower, dict(enumerate(samples)), passed)
        with walk, reporter.progress(f"{tower.name} tower", used) as advance:
            for index in range(used):
                name = tower.block(index)[:-1]
                tensors = model.block_tensors(tower, index)
                with model.replaced(_load_block(model, source, tensors, int8)):
                    if index == 0:
                        walk.enter()
                    inside = [feature for feature in chosen if feature == name or feature.startswith(f"{name}.")]
                    catcher = Catcher({feature: chosen[feature] for feature in inside})
                    inner[name] = _run_block(walk, catcher, writer)
                    catcher.remove()
                model.clear(tensors)
                advance()
        passed[tower.name] = walk.passed
    _dump_outside(model, chosen, writer, samples, passed, inner)
    writer.close()
    return writer


def _run_block(walk: Walk, catcher: Catcher, writer: Writer) -> list[str]:
    """Bring all samples past a block; the features that were caught in it, in the order of execution."""
    block, outputs, order = walk.model.block(walk.tower, walk.index), {}, []
    for (number, turn), call in walk.calls.items():
        again = call.on(call.hidden.clone())
        outputs[number, turn] = call(block)
        caught = catcher.take()
        if (number, turn) == (0, 0):
            again(block)
            _note_repeat(writer, caught, catcher.take())
            order = list(caught)
        for feature, value in caught.items() if turn == 0 else ():
            writer.feature(feature, value.numpy(), number)
    walk.advance(outputs)
    return order


def _samples(
    source, family, config: QuantConfig, images, inputs, reporter: Reporter
) -> tuple[list[str], list[dict[str, Tensor]]]:
    if inputs is not None:
        earlier = Dump(inputs)
        return earlier.names, [
            {key: torch.from_numpy(value) for key, value in earlier.inputs(number).items()}
            for number in range(len(earlier.names))
        ]
    prepared = prepare(images, source, family, config.model_copy(update={"calib_text": "none"}))
    for notice in prepared.notices:
        reporter.line(notice)
    return prepared.names, prepared.inputs


def _choose(model: StreamedModel, patterns: list[str] | None) -> dict[str, nn.Module]:
    """Feature name -> module."""
    blocks: dict[str, nn.Module] = {}
    every: dict[str, nn.Module] = {}
    for tower in model.family.towers:
        for index in range(tower.used(model.checkpoint.config)):
            block = model.block(tower, index)
            blocks[tower.block(index)[:-1]] = block
            every |= {f"{tower.block(index)}{path}": module for path, module in block.named_modules() if path}
    inside = set(map(id, blocks.values())) | set(map(id, every.values()))
    outside = {}
    for tensor, place in model.names.items():
        if model.family.block_of(tensor) is None and tensor.endswith((".weight", ".bias")):
            module = model.model.get_submodule(place.rpartition(".")[0])
            if id(module) not in inside:
                outside[tensor.rpartition(".")[0]] = module
    if patterns is None:
        return {name: module for name, module in (blocks | outside).items() if name != model.family.head}
    every |= blocks | outside
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(
                f"--modules {pattern}: matches none of the {len(every)} modules; names look like {next(iter(every))}"
            )
    return {name: module for name, module in every.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _load_block(
    model: StreamedModel, source: Checkpoint | Export, tensors: list[str], int8: set[str]
) -> list[QuantizedLinear]:
    """Load a block; its int8 linears are returned."""
    for tensor in tensors:
        if tensor.rpartition(".")[0] not in int8:
            model.set(tensor, source.load(tensor))
    if not isinstance(source, Export):
        return []
    names = [tensor.removesuffix(".weight") for tensor in tensors if tensor.removesuffix(".weight") in int8]
    return [source.linear(name).to(model.device) for name in names]


def _dump_outside(
    model: StreamedModel, chosen: dict, writer: Writer, samples: list[dict], passed: dict, inner: dict[str, list[str]]
) -> None:
    """What stands outside the blocks, and the logits; puts the features of all modules into the order of execution."""
    places = {name: model.family.block_of(f"{name}.") for name in (*chosen, *inner)}
    blocks = {name: model.block(*place) for name in inner if (place := places[name])}
    catcher = Catcher({name: module for name, module in chosen.items() if places[name] is None} | blocks)
    with model.outside():
        for number, inputs in enumerate(samples):
            keep = torch.tensor([inputs["input_ids"].shape[1] - 1])
            values = logits_at(model, number, inputs, passed, keep)[0, -1]
            caught = catcher.take()
            if number == 0:
                again = logits_at(model, number, inputs, passed, keep)[0, -1]
                _note_repeat(
                    writer, caught | {LOGITS: values.float().cpu()}, catcher.take() | {LOGITS: again.float().cpu()}
                )
                order = [feature for name in caught for feature in (inner[name] if name in blocks else [name])]
            for name, value in caught.items():
                if name not in blocks:  # what was kept of it answered
                    writer.feature(name, value.numpy(), number)
            writer.feature(LOGITS, values.float().cpu().numpy(), number)
    catcher.remove()
    writer.manifest["features"] = [*order, LOGITS]


def _note_repeat(writer: Writer, one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        if not torch.equal(value, other[name]):
            writer.manifest["repeat"][name] = (value - other[name]).abs().max().item()


def digest(source: Checkpoint | Export) -> str:
    """Of config.json and of every tensor's name, dtype, shape and first values: enough to tell models apart, without
    reading them.
    """
    sha = hashlib.sha256((source.dir / "config.json").read_bytes())
    for name in sorted(source.tensors):
        info = source.tensors[name]
        with open(info.file, "rb") as stream:
            stream.seek(info.offset)
            sha.update(f"{name} {info.dtype} {info.shape}".encode() + stream.read(min(info.nbytes, 256)))
    return sha.hexdigest()
