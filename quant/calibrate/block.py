"""One block: observe its inputs, smooth its groups, round its linears, measure what that did. Everything about the
order of the blocks and the disk is calibrator.py's.

    observe   hidden states of all samples -> Stats per group, and the block's outputs            (the one float pass)
    smooth    per group: method.solve(Stats, weights) -> scale, shift -> folded into source and linears
    round     folded weights and the group's range -> QuantizedLinear
    measure   one sample, and those held out, through the block with these in place -> signal-to-noise of what the block
              adds to its input
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arithmetic.fold import FoldedLinear, FoldedNorm, power_of_two, share_heads, spread_heads
from ..arithmetic.int8 import signal_to_noise
from ..arithmetic.prior import Prior
from ..arithmetic.ranges import activation_range
from ..arithmetic.rounding import mean_error
from ..arithmetic.schemes import NEAREST, SCHEMES, QuantizedLinear
from ..arithmetic.smoothing import Problem, Smoothing, some_outputs
from ..arithmetic.stats import Observer, Stats
from ..base.choices import METHODS, ROUNDINGS
from ..base.config import QuantConfig
from ..export.plan import Plan
from ..families.family import Group, Tower
from ..model.paused import Call, Key, first
from ..model.streamed import StreamedModel
from . import heldout
from .chains import chains
from .expected import channel_sizes
from .observe import Rows, observe
from .ranks import Ranks
from .record import GroupRange, group_range

ORDER = ("up", "value", "norm")  # kinds of groups; later ones see the earlier folds


@dataclass
class BlockResult:
    """What a block becomes. outputs: what it answered in float, for every pass of this rank's samples; floats: hub
    tensor name -> what folding made of it, float32; snr in dB, plain: without smoothing, held_out: of samples that
    nothing was fitted to; seconds: by the step of the work (on a card, where work is queued, a step's time may count
    for the next).
    """

    outputs: dict[Key, Tensor | tuple]
    linears: list[QuantizedLinear] = field(default_factory=list)
    floats: dict[str, Tensor] = field(default_factory=dict)
    ranges: list[GroupRange] = field(default_factory=list)
    snr: float = float("nan")
    snr_plain: float = float("nan")
    snr_held_out: float = float("nan")
    seconds: dict[str, float] = field(default_factory=dict)


class BlockQuantizer:
    """Quantizes the blocks of a tower, one after the other, each loaded in the model at its time.

    plan: which linears, by which method; config: the choices; dtype: of what is exported, and of the server's
    arithmetic; rows: which rows are kept to judge by; doubt: how little was seen of what there is (arithmetic.prior);
    ranks: who shares the work; what the ranks but the first return has no linears and no signal-to-noise.
    """

    def __init__(
        self,
        model: StreamedModel,
        plan: Plan,
        config: QuantConfig,
        dtype: torch.dtype,
        rows: Rows,
        doubt: float,
        ranks: Ranks | None = None,
    ):
        self.model, self.plan, self.config, self.dtype, self.ranks = model, plan, config, dtype, ranks or Ranks()
        self.rows, self.doubt = rows, doubt
        self.rounding = ROUNDINGS[config.w_method].load()
        self.seconds: dict[str, float] = {}

    def quantize(self, tower: Tower, index: int, calls: dict[Key, Call]) -> BlockResult:
        """Run block `index` of `tower` on this rank's calls, and quantize it."""
        self.seconds = {}
        self.tower, self.prefix = tower, tower.block(index)
        self.members = tower.groups_of(self.plan.config, index)
        groups = [group for group in self.members if self.plan.int8_group(tower, index, group)]
        probe = min(calls, default=None) if self.ranks.rank == 0 else None
        # A block may write into its input: what is measured on is a copy.
        measured = [key for key in calls if groups and (key == probe or key[0] >= len(self.rows.seeds))]
        copies = {key: calls[key].on(calls[key].hidden.clone()) for key in measured}
        probe_call = None if probe is None else copies.pop(probe, None)
        with self._timed("observe"):
            outputs, stats = self._observe(self.model.block(tower, index), groups, calls)
        result = BlockResult(outputs, seconds=self.seconds)
        if not groups:
            return result
        linears, norms = self._folded()
        plain = self._round(groups, linears, stats)
        added = None if probe_call is None else first(outputs[probe]) - probe_call.hidden
        result.snr = result.snr_plain = self._measure(index, plain, probe_call, added)
        smoothed = stats
        if self.config.anti_method == "none":
            result.linears = plain
        else:
            del plain
            smoothed = self._smooth(groups, linears, norms, stats)
            result.linears = self._round(groups, linears, smoothed)
            result.floats = self._changed_floats(linears, norms)
            for name, value in result.floats.items():
                self.model.set(name, value)
            result.snr = self._measure(index, result.linears, probe_call, added)
        names = {group: [self.prefix + name for name in group.linears] for group in groups}
        held = heldout.HeldOut()
        if copies and self.ranks.rank == 0:
            with self._timed("measure"):
                leaders = [members[0] for members in names.values()]
                block = self.model.block(tower, index)
                held = heldout.measure(self.model, block, result.linears, leaders, copies, outputs)
        result.snr_held_out = held.snr
        result.ranges = [
            group_range(names[group], stats[group], smoothed[group], held.outside.get(names[group][0]))
            for group in groups
            if group in stats
        ]
        return result

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Add the time that the with block takes to self.seconds[step]."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    def _observe(self, block, groups: list[Group], calls: dict[Key, Call]) -> tuple[dict, dict[Group, Stats]]:
        """The float pass: outputs by key, Stats by group. A group's input is observed once, at its first linear."""
        observers = {}
        for group in (group for group in groups if group.observed):
            name = self.prefix + group.watched
            channels = self.model.weights(name)[0].shape[-1]
            observers[group] = Observer(name, channels, 0, self.model.device, self.rounding.needs_moments)
        watched = [(self.model.linear(each.name), each) for each in observers.values()]
        outputs = observe(lambda call: call(block), watched, calls, self.rows, self.prefix[:-1], self.model.device)
        self.ranks.join(list(observers.values()))
        return outputs, {group: each.stats() for group, each in observers.items()}

    def _folded(self) -> tuple[dict[str, FoldedLinear], dict[str, FoldedNorm]]:
        """The block's linears and norms by name, with nothing folded yet."""
        linears, norms = {}, {}
        for name in (self.prefix + linear for group in self.members for linear in (*group.linears, *group.readers)):
            weight, bias = self.model.weights(name)
            linears[name] = FoldedLinear(name, weight, None if bias is None else bias.float())
        for group in (group for group in self.members if group.kind == "norm"):
            name = group.source_in(self.prefix)
            weight, bias = self.model.weights(name)
            norms[name] = FoldedNorm(
                name, weight.float(), None if bias is None else bias.float(), self.dtype, group.adds
            )
        return linears, norms

    def _smooth(self, groups: list[Group], linears: dict, norms: dict, stats: dict) -> dict[Group, Stats]:
        """Solve and fold every group that has a source, in ORDER. Returns the statistics of the smoothed inputs.

        Groups that share no weight do not wait for each other: each chain of groups that do is solved by one rank, and
        folded by all.
        """
        with self._timed("smooth"):
            order = sorted((group for group in groups if group.source), key=lambda group: ORDER.index(group.kind))
            chain, smoothed, solutions = chains(order), dict(stats), {}
            heads = self.tower.heads(self.plan.config)
            sizes = {group: channel_sizes(group, self.prefix, heads, linears, norms, stats) for group in order}
            self.priors = {group: Prior(size, self.doubt) for group, size in sizes.items()}
            for group in (group for group in order if self.ranks.owns(chain[group])):
                solutions[group] = self._solve(group, linears, norms, stats[group])
                smoothed[group] = self._fold(group, linears, norms, stats[group], solutions[group])
            mine = {group: solution.to("cpu") for group, solution in solutions.items()} if self.ranks.size > 1 else {}
            for theirs in self.ranks.gather(mine):
                for group in (group for group in order if group in theirs and group not in solutions):
                    solution = theirs[group].to(stats[group].lo.device)
                    smoothed[group] = self._fold(group, linears, norms, stats[group], solution)
            return smoothed

    def _solve(self, group: Group, linears: dict, norms: dict[str, FoldedNorm], stats: Stats) -> Smoothing:
        consumers = [linears[self.prefix + name] for name in group.linears]
        norm = norms.get(group.source_in(self.prefix))
        problem = Problem(
            stats=stats,
            weight=torch.cat(
                [
                    consumer.float(some_outputs(len(consumer.weight), consumer.weight.device, len(consumers)))
                    for consumer in consumers
                ]
            ),
            column_max=torch.stack([consumer.column_max() for consumer in consumers]).amax(0),
            share=lambda x: self._shared(group, x),
            may_shift=norm is not None
            and norm.bias is not None
            and all(consumer.bias is not None for consumer in consumers),
            act_method=self.config.act_method,
            scheme=SCHEMES[self.plan.words[self.prefix + group.linears[0]]],
            prior=self.priors[group],
        )
        return METHODS[self.config.anti_method].load()(problem, self.config.alpha)

    def _shared(self, group: Group, per_column: Tensor) -> Tensor:
        """[I] -> [I]: one value for the columns that must have one scale, the largest (grouped-query attention)."""
        if group.kind != "value":
            return per_column
        heads = self.tower.heads(self.plan.config)
        return spread_heads(share_heads(per_column, *heads), *heads)

    def _fold(self, group: Group, linears: dict, norms: dict, stats: Stats, solution: Smoothing) -> Stats:
        """The statistics of the smoothed input; those that there were of one that is left as it is."""
        scale, shift = solution.scale, solution.shift
        if scale is None:
            return stats
        consumers = [linears[self.prefix + name] for name in group.linears]
        if group.kind == "norm":
            if group.readers:  # which are stored as floats
                scale, shift = power_of_two(scale), None
            scale, shift = norms[group.source_in(self.prefix)].absorb(scale, shift)
        else:
            source = linears[group.source_in(self.prefix)]
            # Whatever a method answers, only columns that read one row of the source can share what it is divided by.
            scale = self._shared(group, scale)
            if not self.plan.is_int8(source.name):
                scale = power_of_two(scale)  # rows that are stored as floats keep all their bits
            rows = share_heads(scale, *self.tower.heads(self.plan.config)) if group.kind == "value" else scale
            source.divide_rows(rows, group.divided(len(source.weight), len(rows)))
        for consumer in consumers:
            # Without a bias there is nothing to take a shift up with; a method gives none then, and what rounding the
            # norm's own bias left is lost, as it is in any export of that norm.
            consumer.scale_columns(scale, shift if consumer.bias is not None else None)
        for reader in group.readers:
            linears[self.prefix + reader].scale_columns(scale)
        return self.priors[group].widened(stats).smoothed(scale, shift)

    def _round(
        self, groups: list[Group], linears: dict[str, FoldedLinear], stats: dict[Group, Stats]
    ) -> list[QuantizedLinear]:
        """One scale and offset per group: q, k, v and gate, up read the same tensor, and servers demand the same."""
        with self._timed("round"):
            rounded = []
            for group in (group for number, group in enumerate(groups) if self.ranks.owns(number)):
                members = [linears[self.prefix + name] for name in group.linears]
                scheme, seen = SCHEMES[self.plan.words[members[0].name]], stats.get(group)
                moments = seen and seen.moments
                range_ = self._range(members, stats[group]) if scheme.needs_range else None
                rounding = self.rounding(members[0].name, moments and moments.matrix()) if seen else NEAREST
                for member in members:
                    linear = scheme.quantize(member.name, member.parts(), member.bias, range_, self.dtype, rounding)
                    if self.config.bias_correction and seen and len(seen.rows):
                        error = mean_error(member.parts(), linear.weight, linear.weight_scale, seen.rows.mean(0))
                        linear.take_up(error)
                    rounded.append(linear)
            if self.ranks.size == 1:
                return rounded
            gathered = self.ranks.gather_at_first([linear.to("cpu") for linear in rounded])
            return [linear.to(self.model.device) for theirs in gathered for linear in theirs]

    def _range(self, members: list[FoldedLinear], stats: Stats) -> tuple[Tensor, Tensor]:
        """(lo, hi) of what these linears read, by the act_method that was chosen."""
        if self.config.act_method == 1:
            return activation_range(stats, [], 1)
        sampled = [member.float(some_outputs(len(member.weight), member.weight.device)) for member in members]
        return activation_range(stats, sampled, self.config.act_method)

    def _changed_floats(self, linears: dict[str, FoldedLinear], norms: dict[str, FoldedNorm]) -> dict[str, Tensor]:
        """What folding changed and int8 does not hold: norms, and the float linears whose rows were divided."""
        floats: dict[str, Tensor] = {}
        sources = {
            group.source_in(self.prefix)
            for group in self.members
            if group.source and self.plan.is_int8(self.prefix + group.linears[0])
        }
        divided = [
            linear
            for linear in linears.values()
            if (linear.row is not None or linear.column is not None) and not self.plan.is_int8(linear.name)
        ]
        for part in [norms[name] for name in norms if name in sources] + divided:
            floats[f"{part.name}.weight"] = part.weight if isinstance(part, FoldedNorm) else part.float()
            if part.bias is not None:
                floats[f"{part.name}.bias"] = part.bias
        return floats

    def _measure(self, index: int, linears: list[QuantizedLinear], call: Call | None, added: Tensor | None) -> float:
        """dB: what the block adds to its input in float, `added`, against the error of adding it with `linears`."""
        if call is None or added is None:
            return float("nan")
        with self._timed("measure"), self.model.replaced(linears):
            hidden = call.hidden
            error = first(call.on(hidden.clone())(self.model.block(self.tower, index))) - hidden - added
        return signal_to_noise(added, error)
