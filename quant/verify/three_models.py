"""Three models on the same samples, block after block, so that an export can be told from the quantization it was meant
to be:

    float     the source
    rounded   the source with its int8 linears rounded here: folded as the export is (audit_linear.Relation), weights, scales and ranges taken
              anew from the source's weights and from these samples. What W8A8 with this folding costs, whatever the export holds.
    export    the export, in its own integers (schemes.py)

Errors of a tensor against the float model's, both averaged over tokens, so that no token with a large norm hides the others:
    snr     -10 log10( mean_t |y'_t - y_t|^2 / |y_t|^2 ), dB                cosine    mean_t cos(y'_t, y_t)
of a block: its output when all blocks before it were the same model's, errors adding up; of a linear: that linear alone, on rows of the float
model's activations.

In memory at a time: one block of the source and of the export, what stands outside the blocks of one of them, and the
samples' hidden states, three times.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..arithmetic.int8 import ACT_MAX, ACT_MIN
from ..arithmetic.schemes import QuantizedLinear
from ..arithmetic.stats import ROWS, Observer, Stats
from ..export.reader import Export
from ..families.family import Family, Tower
from ..files.checkpoint import Checkpoint
from ..model.device import compute_dtype
from ..model.streamed import Feed, Skeleton
from ..model.threads import beside
from .folding import BlockAudit
from .linear import Relation
from .runtime import refuse_outside
from .tensors import Finding, check_outside

MODELS = ("rounded", "export")  # those that are measured against the float one
EQUAL = 1e-20  # least error, relative to the energy, that is told from none


class Streams:
    """inputs: the model's keyword arguments per sample; the export must have the format that audit.check_format asks
    for.

    findings: the damage found so far. Raises QuantError as refuse_outside, Skeleton and Observer do.
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
        self.int8 = set(export.linear_names)
        refuse_outside(export, family)
        self.float = Skeleton(checkpoint, family, compute_dtype(checkpoint.dtype, device), device, trust_remote_code)
        self.integer = Skeleton(export, family, compute_dtype(export.dtype, device), device, trust_remote_code)
        self.outputs: dict[str, dict[str, list[Tensor]]] = {"float": {}, "rounded": {}, "export": {}}
        self.findings: list[Finding] = []

    def run_tower(self, tower: Tower) -> Iterator[dict]:
        """Yields a record per block (docs/verify.md, "blocks"); afterwards self.outputs holds the tower's outputs."""
        used = tower.used(self.checkpoint.config)
        # Until the first int8 block the rounded model is the float one; it starts where it begins to differ.
        feeds: dict[str, list[Feed] | None] = {"rounded": None}
        apart = bool(self.outputs["rounded"])
        with beside("reader") as reader:
            coming = reader.submit(self._load, tower, 0)
            for index in range(used):
                source, exported = coming.result()
                if index + 1 < used:
                    coming = reader.submit(self._load, tower, index + 1)
                audit = audit_block(self.checkpoint, self.family, tower, index, source, exported, self.int8)
                self.findings += audit.findings
                integer = self._set(source, exported)
                with self.integer.replaced(list(integer.values())):
                    if index == 0:
                        feeds["float"] = self.float.enter(tower, self.inputs, self.outputs["float"])
                        feeds["export"] = self.integer.enter(tower, self.inputs, self.outputs["export"])
                        if apart:
                            feeds["rounded"] = self.float.enter(tower, self.inputs, self.outputs["rounded"])
                    if feeds["rounded"] is None and integer:
                        feeds["rounded"] = [Feed(feed.hidden, feed.calls) for feed in feeds["float"]]
                    yield self._block(tower, index, audit.relations, integer, feeds)
                self.float.clear(source)
                self.integer.clear([name for name in source if name in self.integer.names])
        for name in ("float", "export"):
            self.outputs[name][tower.name] = [feed.hidden for feed in feeds[name]]
        if feeds["rounded"] or self.outputs["rounded"]:
            self.outputs["rounded"] = {
                name: self.outputs["rounded"].get(name, hidden) for name, hidden in self.outputs["float"].items()
            }
        if feeds["rounded"]:
            self.outputs["rounded"][tower.name] = [feed.hidden for feed in feeds["rounded"]]

    def _load(self, tower: Tower, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        names = self.float.block_tensors(tower, index)
        return {name: self.checkpoint.load(name).to(self.float.device) for name in names}, {
            part: self.export.load(part).to(self.float.device) for name in names for part in self.export.parts(name)
        }

    def _set(self, source: dict[str, Tensor], exported: dict[str, Tensor]) -> dict[str, QuantizedLinear]:
        """Put a block into both skeletons; the export's int8 linears are returned."""
        for name, tensor in source.items():
            self.float.set(name, tensor)
            if name.rpartition(".")[0] not in self.int8:
                self.integer.set(name, exported[name])
        linears = [name.removesuffix(".weight") for name in source if name.removesuffix(".weight") in self.int8]
        return {
            name: self.export.scheme(name).read(
                name, exported.__getitem__, self.export.dtype, f"{name}.bias" in exported
            )
            for name in linears
        }

    # -- one block ---------------------------------------------------------------------------------------------------------------------

    def _block(
        self,
        tower: Tower,
        index: int,
        relations: dict[str, Relation],
        integer: dict[str, QuantizedLinear],
        feeds: dict[str, list[Feed] | None],
    ) -> dict:
        """Advances all three models past a block and measures it."""
        prefix = tower.block(index)
        groups = [
            [name for name in (prefix + linear for linear in group.linears) if name in integer]
            for group in tower.groups
        ]
        watches = {}
        for names in filter(None, groups):
            watches |= dict.fromkeys(names, Watch(names[0], relations, integer, -(-ROWS // len(self.inputs))))
        self._observe(tower, index, set(watches.values()), feeds["float"])
        rounded = {
            name: rounded_linear(name, self.float, relations[name], watch.stats(), self.export)
            for name, watch in watches.items()
        }
        if feeds["rounded"] is not None:
            with self.float.replaced(list(rounded.values())):
                self._advance(self.float, tower, index, feeds["rounded"])
        self._advance(self.integer, tower, index, feeds["export"])
        reference = [feed.hidden for feed in feeds["float"]]
        return {
            "block": prefix[:-1],
            "tower": tower.name,
            "index": index,
            "rounded": fidelity(reference, [feed.hidden for feed in feeds["rounded"] or feeds["float"]]),
            "export": fidelity(reference, [feed.hidden for feed in feeds["export"]]),
            "linears": [
                self._linear(name, relations[name], rounded[name], integer[name], watch)
                for name, watch in watches.items()
            ],
        }

    def _advance(self, skeleton: Skeleton, tower: Tower, index: int, feeds: list[Feed]) -> None:
        for feed in feeds:
            feed.hidden = feed.calls[index](skeleton.block(tower, index), feed.hidden)

    def _observe(self, tower: Tower, index: int, watches: set["Watch"], feeds: list[Feed]) -> None:
        """The float model's pass. Raises QuantError where it holds NaN or Inf."""
        hooks = [self.float.linear(watch.name).register_forward_pre_hook(watch) for watch in watches]
        try:
            self._advance(self.float, tower, index, feeds)
        finally:
            for hook in hooks:
                hook.remove()

    def _linear(
        self, name: str, relation: Relation, rounded: "RoundedLinear", integer: QuantizedLinear, watch: "Watch"
    ) -> dict:
        """A linear alone, on rows of the float model's activations."""
        module, stats = self.float.linear(name), watch.stats()
        expected = torch.nn.functional.linear(
            stats.rows, module.weight.float(), None if module.bias is None else module.bias.float()
        )
        smoothed = stats.smoothed(relation.column, relation.shift)
        got = {"rounded": rounded(stats.rows), "export": integer(smoothed.rows) / relation.row}
        record = {
            "linear": name,
            **{model: fidelity([expected], [got[model]]) for model in MODELS},
            "clipped_share": watch.clipped_share,
        }
        return record | {
            "range_seen": [smoothed.lo.min().item(), smoothed.hi.max().item()],
            "range_covered": list(watch.covered),
        }

    # -- the end of the model ----------------------------------------------------------------------------------------------------------

    def logits(self, positions: list[Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yields (sample, {"float", "rounded", "export" -> logits [positions, vocabulary]}), at these positions of
        every sample.
        """
        kept: dict[str, list[Tensor]] = {}
        for name, skeleton in (("float", self.float), ("rounded", self.float), ("export", self.integer)):
            if name == "rounded" and not self.outputs["rounded"]:
                kept[name] = kept["float"]
                continue
            with skeleton.outside(head=True):
                kept[name] = [
                    skeleton.outputs(
                        {**inputs, "logits_to_keep": keep},
                        {tower: hidden[number] for tower, hidden in self.outputs[name].items()},
                    )[0].cpu()
                    for number, (inputs, keep) in enumerate(zip(self.inputs, positions))
                ]
        for number in range(len(self.inputs)):
            yield number, {name: logits[number] for name, logits in kept.items()}


def rounded_linear(name: str, skeleton: Skeleton, relation: Relation, stats: Stats, export: Export) -> "RoundedLinear":
    """The source's linear, rounded as such an export would have to be, on the range that was seen."""
    module = skeleton.linear(name)
    weight, bias = module.weight.data.float(), None if module.bias is None else module.bias.data.float()
    shift = torch.zeros_like(relation.column) if relation.shift is None else relation.shift
    if relation.shift is not None:
        bias = weight @ shift if bias is None else bias + weight @ shift
    smoothed = stats.smoothed(relation.column, shift)
    range_ = smoothed.lo.min(), smoothed.hi.max()
    linear = export.scheme(name).quantize(name, weight * relation.column, bias, range_, export.dtype)
    return RoundedLinear(linear, relation.column, shift)


class RoundedLinear:
    """A QuantizedLinear that folds its input itself, so that it stands in the model that was not folded."""

    def __init__(self, linear: QuantizedLinear, column: Tensor, shift: Tensor):
        self.name, self.linear, self.column, self.shift = linear.name, linear, column, shift

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear((x.float() - self.shift) / self.column).to(x.dtype)


class Watch(Observer):
    """A hook on the first of a group's linears in the float model: Stats of what they read, and the share of it, folded
    as the export folds it, that the export's int8 codes do not reach. Not of the export's own activations: one bad
    linear would clip in all that follow.
    """

    def __init__(
        self, name: str, relations: dict[str, Relation], integer: dict[str, QuantizedLinear], rows_per_sample: int
    ):
        column = relations[name].column
        super().__init__(name, len(column), rows_per_sample, column.device)
        self.relation, self.linear, self.clipped, self.values = relations[name], integer[name], 0, 0
        scale, offset = self.linear.input_scale.item(), self.linear.input_offset.item()
        self.covered = ((ACT_MIN - offset) * scale, (ACT_MAX - offset) * scale)

    def __call__(self, module, args: tuple[Tensor]) -> None:
        self.update(args[0], number=len(self.rows), seed=self.values)
        self.values += args[0].numel()
        so_far = Stats(self.lo, self.hi, self.lo[None], self.count).smoothed(self.relation.column, self.relation.shift)
        if so_far.lo.min() < self.covered[0] or so_far.hi.max() > self.covered[1]:
            x = (args[0].float() - (0 if self.relation.shift is None else self.relation.shift)) / self.relation.column
            codes = torch.round(x / self.linear.input_scale + self.linear.input_offset)
            self.clipped += int(((codes < ACT_MIN) | (codes > ACT_MAX)).sum())

    @property
    def clipped_share(self) -> float:
        return self.clipped / self.values


def fidelity(expected: list[Tensor], got: list[Tensor]) -> dict[str, float]:
    """{"snr_db", "cosine"} over the tokens of all samples; tensors [..., width], one shape each pair. Equal tensors
    have 200 dB.
    """
    ratio, cosine, tokens = 0.0, 0.0, 0
    for wanted, other in zip(expected, got):
        wanted, other = (x.reshape(-1, x.shape[-1]).float() for x in (wanted, other))
        energy = wanted.square().sum(1)
        ratio += ((other - wanted).square().sum(1) / energy.clamp(min=1e-6 * energy.mean())).double().sum().item()
        cosine += torch.nn.functional.cosine_similarity(wanted, other, dim=1).double().sum().item()
        tokens += len(wanted)
    return {
        "snr_db": -10 * math.log10(max(ratio / tokens, EQUAL)) if math.isfinite(ratio) else math.nan,
        "cosine": cosine / tokens,
    }


def audit_block(
    checkpoint: Checkpoint, family: Family, tower: Tower, index: int, source: dict, exported: dict, int8: set[str]
) -> BlockAudit:
    """BlockAudit.run() on loaded tensors; a linear may have been confused with that of a neighbouring block."""
    prefix = tower.block(index)

    def nearby(name: str) -> dict:
        blocks = [other for other in (index - 1, index + 1) if 0 <= other < tower.blocks(checkpoint.config)]
        tensors = [f"{tower.block(other)}{name.removeprefix(prefix)}.weight" for other in blocks]
        return {f"{tensor} of the source": lambda tensor=tensor: checkpoint.load(tensor) for tensor in tensors}

    return BlockAudit(tower, prefix, source, exported, int8, tower.heads(checkpoint.config), nearby).run()


def unread(
    checkpoint: Checkpoint, export: Export, family: Family, spoiled: frozenset[str] | set[str] = frozenset()
) -> list[Finding]:
    """Damage to what the blocks in use do not hold: embeddings, merger or projector, norms and head, blocks without
    effect; but for `spoiled`.
    """

    def outside(name: str) -> bool:
        block = family.block_of(name)
        return block is None or block[1] >= block[0].used(checkpoint.config)

    return check_outside(
        checkpoint, export, [name for name in checkpoint.tensors if name not in spoiled and outside(name)]
    )
