"""One block: observe its inputs, smooth its groups, round its linears, measure what that did. Everything about the
order of the work and the disk is the calibrator's.

    observe   hidden states of all samples -> Stats per group, and the next block's hidden states    (the one float pass)
    smooth    per group: method.solve(Stats, weights) -> scale, shift -> folded into source and linears
    round     folded weights and the group's range -> QuantizedLinear
    measure   one sample through the block with these in place -> signal-to-noise of what the block adds to its input
"""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps

import torch
from torch import Tensor

from ..arithmetic.fold import FoldedLinear, FoldedNorm, share_heads, spread_heads
from ..arithmetic.int8 import signal_to_noise
from ..arithmetic.ranges import activation_range
from ..arithmetic.schemes import SCHEMES, QuantizedLinear
from ..arithmetic.smoothing import Problem, Smoothing, some_outputs
from ..arithmetic.stats import ROWS, Observer, Stats
from ..base.choices import METHODS, ROUNDINGS
from ..base.config import QuantConfig
from ..base.errors import SourceError
from ..export.plan import Plan
from ..families.family import Group, Tower
from ..model.streamed import Feed, Skeleton
from ..model.threads import side_by_side
from .ranks import Ranks

ORDER = {"up": 0, "value": 1, "norm": 2}  # later groups see the earlier folds


@dataclass
class GroupRange:
    """A group's input before and after smoothing, for the record: its range [lo, hi], and the largest |x| of its median
    channel, of the channel that 1 % exceed, and of its largest. The last two far above the first are outlier channels.
    """

    linears: list[str]
    before: tuple[float, float]
    after: tuple[float, float]
    channels_before: tuple[float, float, float]
    channels_after: tuple[float, float, float]


@dataclass
class BlockResult:
    """What a block becomes. floats: hub tensor name -> what folding made of it, float32; snr in dB, plain: without
    smoothing; seconds: by the step of the work (on a card, where work is queued, a step's time may count for the next).
    """

    linears: list[QuantizedLinear]
    floats: dict[str, Tensor]
    ranges: list[GroupRange]
    snr: float = field(default=float("nan"))
    snr_plain: float = field(default=float("nan"))
    seconds: dict[str, float] = field(default_factory=dict)


def timed(step: Callable) -> Callable:
    """A method whose time is added up in self.seconds under its name."""

    @wraps(step)
    def wrapper(self, *args):
        start = time.perf_counter()
        try:
            return step(self, *args)
        finally:
            self.seconds[step.__name__] = self.seconds.get(step.__name__, 0.0) + time.perf_counter() - start

    return wrapper


class BlockQuantizer:
    """Quantizes the blocks of a tower, one after the other, each loaded in the skeleton at its time.

    dtype: of what is exported, and of the server's arithmetic. keys: the identities of all samples, which seed the
    choice of rows. ranks: who shares the work; what the ranks but the first return has no linears and no
    signal-to-noise.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        tower: Tower,
        plan: Plan,
        config: QuantConfig,
        dtype: torch.dtype,
        keys: list[str],
        ranks: Ranks = Ranks(),
    ):
        self.skeleton, self.tower, self.plan, self.config, self.dtype, self.ranks = (
            skeleton,
            tower,
            plan,
            config,
            dtype,
            ranks,
        )
        self.seconds: dict[str, float] = {}
        self.seeds = [
            int.from_bytes(hashlib.sha256(f"{config.seed}:{key}".encode()).digest()[:8], "big") >> 1 for key in keys
        ]

    def __call__(self, index: int, feeds: dict[int, Feed]) -> BlockResult:
        """Advances every feed's hidden state past block `index`. feeds: sample number -> Feed, of this rank's samples."""
        self.seconds = {}
        groups = [group for group in self.tower.groups if self.plan.int8_group(self.tower, index, group)]
        probe_in = feeds[0].hidden if 0 in feeds else None
        stats = self.observe(index, groups, feeds)
        if not groups:
            return BlockResult([], {}, [], seconds=self.seconds)
        prefix = self.tower.block(index)
        linears, norms = self._folded(prefix)
        plain = self.round(prefix, groups, linears, stats)
        result = BlockResult(plain, {}, [], seconds=self.seconds)
        result.snr = result.snr_plain = self.measure(index, plain, feeds.get(0), probe_in)
        smoothed = stats
        if self.config.anti_method != "none":
            del plain
            result.linears = []
            smoothed = self.smooth(prefix, groups, linears, norms, stats)
            result.linears = self.round(prefix, groups, linears, smoothed)
            result.floats = self._changed_floats(prefix, linears, norms)
            for name, value in result.floats.items():
                self.skeleton.set(name, value)
            result.snr = self.measure(index, result.linears, feeds.get(0), probe_in)
        result.ranges = [
            GroupRange([prefix + name for name in group.linears], *map(_extent, seen), *map(_channels, seen))
            for group in groups
            for seen in [(stats[group], smoothed[group])]
        ]
        return result

    @timed
    def observe(self, index: int, groups: list[Group], feeds: dict[int, Feed]) -> dict[Group, Stats]:
        """The float pass. A group's input is observed once, at its first linear."""
        prefix, per_sample = self.tower.block(index), -(-ROWS // len(self.seeds))
        firsts = {group: prefix + group.linears[0] for group in groups}
        observers = {
            group: Observer(
                name,
                self.skeleton.linear(name).weight.shape[1],
                per_sample,
                self.skeleton.device,
                ROUNDINGS[self.config.w_method].load().needs_moments,
            )
            for group, name in firsts.items()
        }
        block, this = self.skeleton.block(self.tower, index), threading.local()
        hooks = [
            self.skeleton.linear(observer.name).register_forward_pre_hook(
                lambda _, args, observer=observer: observer.update(args[0], this.sample, self.seeds[this.sample])
            )
            for observer in observers.values()
        ]

        def advance(sample: int, feed: Feed) -> None:
            this.sample = sample
            feed.hidden = feed.calls[index](block, feed.hidden)
            if not torch.isfinite(torch.stack(feed.hidden.aminmax())).all():
                raise SourceError(
                    f"the output of {prefix[:-1]} holds NaN or Inf for sample {sample}; the checkpoint or the compute"
                    f" dtype {self.skeleton.dtype} is at fault"
                )

        try:
            side_by_side(advance, feeds.items(), self.skeleton.device)
        finally:
            for hook in hooks:
                hook.remove()
        self.ranks.join(list(observers.values()))
        return {group: observer.stats() for group, observer in observers.items()}

    def _folded(self, prefix: str) -> tuple[dict[str, FoldedLinear], dict[str, FoldedNorm]]:
        linears = {}
        for name in (prefix + linear for group in self.tower.groups for linear in group.linears):
            module = self.skeleton.linear(name)
            linears[name] = FoldedLinear(
                name, module.weight.data, None if module.bias is None else module.bias.data.float()
            )
        norms = {}
        for name in (prefix + group.source for group in self.tower.groups if group.kind == "norm"):
            module = self.skeleton.linear(name)
            bias = getattr(module, "bias", None)
            norms[name] = FoldedNorm(
                name, module.weight.data.float(), None if bias is None else bias.data.float(), self.dtype
            )
        return linears, norms

    @timed
    def smooth(
        self, prefix: str, groups: list[Group], linears: dict, norms: dict, stats: dict[Group, Stats]
    ) -> dict[Group, Stats]:
        """Solve and fold every group that has a source, in ORDER. Returns the statistics of the smoothed inputs.

        Groups that share no weight do not wait for each other: each chain of groups that do is solved by one rank, and
        folded by all.
        """
        order = sorted((group for group in groups if group.source), key=lambda group: ORDER[group.kind])
        chain, smoothed, solutions = chains(order), dict(stats), {}
        for group in (group for group in order if self.ranks.owns(chain[group])):
            solutions[group] = self._solve(prefix, group, linears, norms, stats[group])
            smoothed[group] = self._fold(prefix, group, linears, norms, stats[group], solutions[group])
        for theirs in self.ranks.gather(
            {group: solution.to("cpu") for group, solution in solutions.items()} if self.ranks.size > 1 else {}
        ):
            for group in (group for group in order if group in theirs and group not in solutions):
                smoothed[group] = self._fold(
                    prefix, group, linears, norms, stats[group], theirs[group].to(stats[group].lo.device)
                )
        return smoothed

    def _solve(self, prefix: str, group: Group, linears: dict, norms: dict, stats: Stats) -> Smoothing:
        heads, kv_heads = self.tower.heads(self.plan.config)
        consumers = [linears[prefix + name] for name in group.linears]
        problem = Problem(
            stats=stats,
            weight=torch.cat(
                [consumer.float(some_outputs(len(consumer.weight), consumer.weight.device)) for consumer in consumers]
            ),
            column_max=torch.stack([consumer.column_max() for consumer in consumers]).amax(0),
            share=(
                (lambda x: spread_heads(share_heads(x, heads, kv_heads), heads, kv_heads))
                if group.kind == "value"
                else (lambda x: x)
            ),
            may_shift=group.kind == "norm"
            and norms[prefix + group.source].bias is not None
            and all(consumer.bias is not None for consumer in consumers),
            act_method=self.config.act_method,
            scheme=SCHEMES[self.plan.words[prefix + group.linears[0]]],
        )
        return METHODS[self.config.anti_method].load()(problem, self.config.alpha)

    def _fold(self, prefix: str, group: Group, linears: dict, norms: dict, stats: Stats, solution: Smoothing) -> Stats:
        """The statistics of the smoothed input."""
        heads, kv_heads = self.tower.heads(self.plan.config)
        scale, shift = solution.scale, solution.shift
        if group.kind == "norm":
            scale, shift = norms[prefix + group.source].absorb(scale, shift)
        else:
            linears[prefix + group.source].divide_rows(
                share_heads(scale, heads, kv_heads) if group.kind == "value" else scale
            )
        for name in group.linears:
            linears[prefix + name].scale_columns(scale, shift)
        return stats.smoothed(scale, shift)

    @timed
    def round(
        self, prefix: str, groups: list[Group], linears: dict[str, FoldedLinear], stats: dict[Group, Stats]
    ) -> list[QuantizedLinear]:
        """One scale and offset per group: q, k, v and gate, up read the same tensor, and servers demand the same."""
        rounded = []
        for number, group in enumerate(groups):
            if not self.ranks.owns(number):
                continue
            members = [linears[prefix + name] for name in group.linears]
            scheme, range_ = SCHEMES[self.plan.words[members[0].name]], None
            if scheme.needs_range:
                sampled = (
                    []
                    if self.config.act_method == 1
                    else [member.float(some_outputs(len(member.weight), member.weight.device)) for member in members]
                )
                range_ = activation_range(stats[group], sampled, self.config.act_method)
            moments = stats[group].moments
            rounding = ROUNDINGS[self.config.w_method].load()(members[0].name, moments and moments.matrix())
            rounded += [
                scheme.quantize(member.name, member.parts(), member.bias, range_, self.dtype, rounding)
                for member in members
            ]
        if self.ranks.size == 1:
            return rounded
        gathered = self.ranks.gather_at_first([linear.to("cpu") for linear in rounded])
        return [linear.to(self.skeleton.device) for theirs in gathered for linear in theirs]

    def _changed_floats(
        self, prefix: str, linears: dict[str, FoldedLinear], norms: dict[str, FoldedNorm]
    ) -> dict[str, Tensor]:
        """What folding changed and int8 does not hold: norms, and the float linears whose rows were divided."""
        floats = {}
        sources = {
            prefix + group.source
            for group in self.tower.groups
            if group.source and self.plan.is_int8(prefix + group.linears[0])
        }
        for part in [norms[name] for name in norms if name in sources] + [
            x for x in linears.values() if x.row is not None and not self.plan.is_int8(x.name)
        ]:
            floats[f"{part.name}.weight"] = part.weight if isinstance(part, FoldedNorm) else part.float()
            if part.bias is not None:
                floats[f"{part.name}.bias"] = part.bias
        return floats

    @timed
    def measure(self, index: int, linears: list[QuantizedLinear], feed: Feed | None, hidden: Tensor | None) -> float:
        """dB: what the block adds to `hidden` in float, which `feed` has done, against the error of adding it with
        `linears` in place.
        """
        if feed is None:
            return float("nan")
        reference = feed.hidden - hidden
        with self.skeleton.replaced(linears):
            error = feed.calls[index](self.skeleton.block(self.tower, index), hidden) - hidden - reference
        return signal_to_noise(reference, error)


def chains(groups: list[Group]) -> dict[Group, int]:
    """Group -> the number of the chain that it is in: groups are in one if they share a module, directly or through
    others.
    """
    found: list[tuple[set[str], list[Group]]] = []
    for group in groups:
        modules, members = {*group.linears, group.source}, [group]
        for chain in [chain for chain in found if chain[0] & modules]:
            found.remove(chain)
            modules, members = modules | chain[0], chain[1] + members
        found.append((modules, members))
    return {group: number for number, (_, members) in enumerate(found) for group in members}


def _extent(stats: Stats) -> tuple[float, float]:
    return stats.lo.min().item(), stats.hi.max().item()


def _channels(stats: Stats) -> tuple[float, float, float]:
    return tuple(torch.maximum(stats.hi, -stats.lo).cpu().quantile(torch.tensor([0.5, 0.99, 1.0])).tolist())
