"""Three models on the same samples, block after block, so that an export can be told from the quantization it was meant
to be:

    float     the source
    rounded   the source with its int8 linears rounded here: folded as the export is (linear.Relation), weights, scales
              and ranges taken anew from the source's weights and from these samples. What W8A8 with this folding costs,
              whatever the export holds.
    export    the export, in its own integers (schemes.py)

Errors (measure.py) of a block: of its output when all blocks before it were the same model's, errors adding up; of a
linear: that linear alone, on rows of the float model's activations.

In memory at a time: one block of the source and of the export, what stands outside the blocks of one of them, and the
samples' hidden states, three times.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from ..arithmetic.schemes import QuantizedLinear
from ..arithmetic.stats import ROWS
from ..export.reader import Export
from ..export.recipe import biases_corrected
from ..families.family import Family, Tower
from ..files.checkpoint import Checkpoint
from ..model.device import compute_dtype
from ..model.parallel import background_thread
from ..model.paused import Kept, Key, Passed, Walk, first, logits_at
from ..model.streamed import StreamedModel
from .folding import check_block
from .linear import Relation
from .measure import RoundedLinear, Watch, fidelity, rounded_linear
from .runtime import refuse_outside
from .tensors import Damage

MODELS = ("rounded", "export")  # those that are measured against the float one
MOST = 8  # linears of a group that are measured alone: of a block's experts the first few stand for all


class ThreeModels:
    """inputs: the model's keyword arguments per sample; the export must have the format that tensors.check_format asks
    for.

    damage: what was found so far. Raises QuantError as refuse_outside, StreamedModel, Walk and Observer do.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        export: Export,
        family: Family,
        device: str,
        inputs: list[dict[str, Tensor]],
        trust_remote_code: bool = False,
    ):
        self.checkpoint, self.export, self.family, self.inputs = checkpoint, export, family, inputs
        self.int8, self.corrected = set(export.linear_names), biases_corrected(export.dir)
        refuse_outside(export, family)
        self.float = StreamedModel(
            checkpoint, family, compute_dtype(checkpoint.dtype, device), device, trust_remote_code
        )
        self.integer = StreamedModel(export, family, compute_dtype(export.dtype, device), device, trust_remote_code)
        self.passed: dict[str, dict[str, dict[Key, Passed]]] = {"float": {}, "rounded": {}, "export": {}}
        self.damage: list[Damage] = []

    def run_tower(self, tower: Tower) -> Iterator[dict]:
        """Yields a record per block (docs/verify.md, "blocks"); afterwards self.passed holds the tower's outputs."""
        used, samples = tower.used(self.checkpoint.config), dict(enumerate(self.inputs))
        with ExitStack() as ended:
            reader = ended.enter_context(background_thread("reader"))
            walks = {
                "float": ended.enter_context(Walk(self.float, tower, samples, self.passed["float"])),
                "export": ended.enter_context(Walk(self.integer, tower, samples, self.passed["export"])),
            }
            if self.passed["rounded"]:
                walks["rounded"] = ended.enter_context(Walk(self.float, tower, samples, self.passed["rounded"]))
            coming = reader.submit(self._load, tower, 0)
            for index in range(used):
                source, exported = coming.result()
                if index + 1 < used:
                    coming = reader.submit(self._load, tower, index + 1)
                checked = check_block(self.checkpoint.config, tower, index, source, exported, self.int8, self.corrected)
                self.damage += checked.damage
                integer = self._set(source, exported)
                with self.integer.replaced(list(integer.values())):
                    if index == 0:
                        for walk in walks.values():
                            walk.enter()
                    if "rounded" not in walks and integer:
                        # Until the first int8 block the rounded model is the float one: it sets out where they part.
                        walks["rounded"] = ended.enter_context(self._branch(walks["float"], samples))
                        walks["rounded"].enter()
                    yield self._block(tower, index, checked.relations, integer, walks)
                self.float.clear(source)
                self.integer.clear([name for name in source if name in self.integer.names])
        if "rounded" in walks and not self.passed["rounded"]:
            self.passed["rounded"] = dict(self.passed["float"])
        for name, walk in walks.items():
            self.passed[name][tower.name] = walk.passed

    def _branch(self, walk: Walk, samples: dict[int, dict[str, Tensor]]) -> Walk:
        """A walk of its own from where `walk` stands."""
        kept = {key: Kept(call.hidden.clone(), walk.taps(key)) for key, call in walk.calls.items()}
        return Walk(walk.model, walk.tower, samples, walk.earlier, walk.index, kept)

    def _load(self, tower: Tower, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        names = self.float.block_tensors(tower, index)
        return {name: self.checkpoint.load(name).to(self.float.device) for name in names}, {
            part: self.export.load(part).to(self.float.device) for name in names for part in self.export.parts(name)
        }

    def _set(self, source: dict[str, Tensor], exported: dict[str, Tensor]) -> dict[str, QuantizedLinear]:
        """Put a block into both models; the export's int8 linears are returned."""
        self.float.set_all(source)
        self.integer.set_all({name: exported[name] for name in source if name.rpartition(".")[0] not in self.int8})
        linears = [name.removesuffix(".weight") for name in source if name.removesuffix(".weight") in self.int8]
        return {
            name: self.export.scheme(name).read(
                name, exported.__getitem__, self.export.dtype, f"{name}.bias" in exported
            )
            for name in linears
        }

    # -- one block

    def _block(
        self,
        tower: Tower,
        index: int,
        relations: dict[str, Relation],
        integer: dict[str, QuantizedLinear],
        walks: dict[str, Walk],
    ) -> dict:
        """Brings all three models past a block and measures it."""
        prefix = tower.block(index)
        watches: dict[str, Watch | None] = {}
        measured: list[str] = []
        for group in tower.groups_of(self.checkpoint.config, index):
            names = [name for name in (prefix + linear for linear in group.linears) if name in integer]
            if not names:
                continue
            watch = None
            if group.observed:
                watch = Watch(names[0], relations, integer, -(-ROWS // len(self.inputs)), prefix + group.watched)
                measured += names[:MOST]
            watches |= dict.fromkeys(names, watch)
        seen = {watch for watch in watches.values() if watch}
        outputs = {"float": self._observe(tower, index, seen, walks["float"])}
        stats = {watch: watch.stats() for watch in seen}
        rounded = {
            name: rounded_linear(name, self.float, relations[name], stats[watch] if watch else None, self.export)
            for name, watch in watches.items()
        }
        if "rounded" in walks:
            with self.float.replaced(list(rounded.values())):
                outputs["rounded"] = run(walks["rounded"])
        outputs["export"] = run(walks["export"])
        hidden = {name: [first(output) for output in answers.values()] for name, answers in outputs.items()}
        record = {
            "block": prefix[:-1],
            "tower": tower.name,
            "index": index,
            "rounded": fidelity(hidden["float"], hidden.get("rounded", hidden["float"])),
            "export": fidelity(hidden["float"], hidden["export"]),
            "linears": [
                self._linear(name, relations[name], rounded[name], integer[name], watch)
                for name in measured
                if (watch := watches[name])
            ],
        }
        for name, walk in walks.items():
            walk.advance(outputs[name])
        return record

    def _observe(self, tower: Tower, index: int, watches: set[Watch], walk: Walk) -> dict[Key, Tensor | tuple]:
        """The float model's pass. Raises QuantError where it holds NaN or Inf."""
        hooks = [self.float.linear(watch.at).register_forward_pre_hook(watch) for watch in watches]
        try:
            return run(walk)
        finally:
            for hook in hooks:
                hook.remove()

    def _linear(
        self, name: str, relation: Relation, rounded: "RoundedLinear", integer: QuantizedLinear, watch: "Watch"
    ) -> dict:
        """A linear alone, on rows of the float model's activations."""
        (weight, bias), stats = self.float.weights(name), watch.stats()
        expected = torch.nn.functional.linear(stats.rows, weight.float(), None if bias is None else bias.float())
        smoothed = stats.smoothed(relation.column, relation.shift)
        got = {"rounded": rounded(stats.rows), "export": integer(smoothed.rows) / relation.row}
        record = {
            "linear": name,
            **{model: fidelity([expected], [got[model]]) for model in MODELS},
            "clipped_share": watch.clipped_share,
        }
        return record | {
            "range_seen": [smoothed.lo.min().item(), smoothed.hi.max().item()],
            "range_covered": watch.covered and list(watch.covered),
        }

    # -- the end of the model

    def logits(self, positions: list[Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yields (sample, {"float", "rounded", "export" -> logits [positions, vocabulary]}), at these positions of
        every sample.
        """
        kept: dict[str, list[Tensor]] = {}
        for name, model in (("float", self.float), ("rounded", self.float), ("export", self.integer)):
            if name == "rounded" and not self.passed["rounded"]:
                kept[name] = kept["float"]
                continue
            with model.outside():
                kept[name] = [
                    logits_at(model, number, inputs, self.passed[name], keep)[0].cpu()
                    for number, (inputs, keep) in enumerate(zip(self.inputs, positions))
                ]
        for number in range(len(self.inputs)):
            yield number, {name: values[number] for name, values in kept.items()}


def run(walk: Walk) -> dict[Key, Tensor | tuple]:
    """The outputs, [..., tokens, width] or a tuple that begins with one, of the block that a walk stands at."""
    block = walk.model.block(walk.tower, walk.index)
    return {key: call(block) for key, call in walk.calls.items()}
