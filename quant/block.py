"""One block: observe its inputs, smooth its groups, round its linears, measure what that did. Everything about the order of the work and
the disk is the calibrator's.

    observe   hidden states of all samples -> Stats per group, and the next block's hidden states    (the one float pass)
    smooth    per group: method.solve(Stats, weights) -> scale, shift -> folded into source and linears
    round     folded weights and the group's range -> QLinear
    measure   one sample through the block with its QLinears in place -> signal-to-noise of what the block adds to its input
"""
import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import m2, m4
from .config import QuantConfig
from .errors import SourceError
from .family import Group, Tower
from .fold import FoldedLinear, FoldedNorm, share_heads, spread_heads
from .int8 import QLinear, quantize_linear, signal_to_noise
from .plan import Plan
from .ranges import activation_range
from .skeleton import Feed, Skeleton
from .smoothing import Problem, some_outputs
from .stats import ROWS, Observer, Stats

METHODS = {"m2": m2.solve, "m4": m4.solve}
ORDER = {"up": 0, "value": 1, "norm": 2}  # later groups see the earlier folds


@dataclass
class GroupRange:
    """A group's input before and after smoothing, for the record: its range [lo, hi], and the largest |x| of its median channel, of the
    channel that 1 % exceed, and of its largest. The last two far above the first are outlier channels."""

    linears: list[str]
    before: tuple[float, float]
    after: tuple[float, float]
    channels_before: tuple[float, float, float]
    channels_after: tuple[float, float, float]


@dataclass
class BlockResult:
    """What a block becomes. floats: hub tensor name -> what folding made of it, float32; snr in dB, plain: without smoothing."""

    linears: list[QLinear]
    floats: dict[str, Tensor]
    ranges: list[GroupRange]
    snr: float = field(default=float("nan"))
    snr_plain: float = field(default=float("nan"))


class BlockQuantizer:
    """Quantizes the blocks of a tower, one after the other, each loaded in the skeleton at its time.

    dtype: of what is exported, and of the server's arithmetic. keys: the samples' identities, which seed the choice of rows.
    """

    def __init__(self, skeleton: Skeleton, tower: Tower, plan: Plan, config: QuantConfig, dtype: torch.dtype, keys: list[str]):
        self.skeleton, self.tower, self.plan, self.config, self.dtype = skeleton, tower, plan, config, dtype
        self.seeds = [int.from_bytes(hashlib.sha256(f"{config.seed}:{key}".encode()).digest()[:8], "big") >> 1 for key in keys]

    def __call__(self, index: int, feeds: list[Feed]) -> BlockResult:
        """Advances every feed's hidden state past block `index`."""
        groups = [group for group in self.tower.groups if self.plan.int8_group(self.tower, index, group)]
        probe_in = feeds[0].hidden
        stats = self.observe(index, groups, feeds)
        if not groups:
            return BlockResult([], {}, [])
        reference = feeds[0].hidden - probe_in
        prefix = self.tower.block(index)
        linears, norms = self._folded(prefix)
        plain = self.round(prefix, groups, linears, stats)
        result = BlockResult(plain, {}, [])
        result.snr = result.snr_plain = self.measure(index, plain, feeds[0], probe_in, reference)
        smoothed = stats
        if self.config.anti_method != "none":
            del plain
            result.linears = []
            smoothed = self.smooth(prefix, groups, linears, norms, stats)
            result.linears = self.round(prefix, groups, linears, smoothed)
            result.floats = self._changed_floats(prefix, linears, norms)
            for name, value in result.floats.items():
                self.skeleton.set(name, value)
            result.snr = self.measure(index, result.linears, feeds[0], probe_in, reference)
        result.ranges = [
            GroupRange([prefix + name for name in group.linears], *map(_extent, seen), *map(_channels, seen))
            for group in groups
            for seen in [(stats[group], smoothed[group])]
        ]
        return result

    def observe(self, index: int, groups: list[Group], feeds: list[Feed]) -> dict[Group, Stats]:
        """The float pass. A group's input is observed once, at its first linear."""
        prefix, per_sample = self.tower.block(index), -(-ROWS // len(feeds))
        observers = {group: Observer(prefix + group.linears[0], per_sample) for group in groups}
        block, sample = self.skeleton.block(self.tower, index), 0
        hooks = [
            self.skeleton.linear(observer.name).register_forward_pre_hook(lambda _, args, observer=observer: observer.update(args[0], self.seeds[sample]))
            for observer in observers.values()
        ]
        try:
            for sample, feed in enumerate(feeds):
                feed.hidden = feed.calls[index](block, feed.hidden)
                if not torch.isfinite(torch.stack(feed.hidden.aminmax())).all():
                    raise SourceError(f"the output of {prefix[:-1]} holds NaN or Inf for sample {sample}; the checkpoint or the compute dtype {self.skeleton.dtype} is at fault")
        finally:
            for hook in hooks:
                hook.remove()
        return {group: observer.stats() for group, observer in observers.items()}

    def _folded(self, prefix: str) -> tuple[dict[str, FoldedLinear], dict[str, FoldedNorm]]:
        linears = {}
        for name in (prefix + linear for group in self.tower.groups for linear in group.linears):
            module = self.skeleton.linear(name)
            linears[name] = FoldedLinear(name, module.weight.data, None if module.bias is None else module.bias.data.float())
        norms = {}
        for name in (prefix + group.source for group in self.tower.groups if group.kind == "norm"):
            module = self.skeleton.linear(name)
            bias = getattr(module, "bias", None)
            norms[name] = FoldedNorm(name, module.weight.data.float(), None if bias is None else bias.data.float(), self.dtype)
        return linears, norms

    def smooth(self, prefix: str, groups: list[Group], linears: dict, norms: dict, stats: dict[Group, Stats]) -> dict[Group, Stats]:
        """Solve and fold every group that has a source, in ORDER. Returns the statistics of the smoothed inputs."""
        heads, kv_heads = self.tower.heads(self.plan.config)
        smoothed = dict(stats)
        for group in sorted((group for group in groups if group.source), key=lambda group: ORDER[group.kind]):
            consumers, source = [linears[prefix + name] for name in group.linears], prefix + group.source
            tied = group.kind == "value"
            problem = Problem(
                stats=stats[group],
                weights=[consumer.float(some_outputs(len(consumer.weight), consumer.weight.device)) for consumer in consumers],
                column_max=torch.stack([consumer.column_max() for consumer in consumers]).amax(0),
                share=(lambda x: spread_heads(share_heads(x, heads, kv_heads), heads, kv_heads)) if tied else (lambda x: x),
                may_shift=group.kind == "norm" and norms[source].bias is not None and all(consumer.bias is not None for consumer in consumers),
                act_method=self.config.act_method,
            )
            solved = METHODS[self.config.anti_method](problem, self.config.alpha)
            scale, shift = solved.scale, solved.shift
            if group.kind == "norm":
                scale, shift = norms[source].absorb(scale, shift)
            else:
                linears[source].divide_rows(share_heads(scale, heads, kv_heads) if tied else scale)
            for consumer in consumers:
                consumer.scale_columns(scale, shift)
            smoothed[group] = stats[group].smoothed(scale, shift)
        return smoothed

    def round(self, prefix: str, groups: list[Group], linears: dict[str, FoldedLinear], stats: dict[Group, Stats]) -> list[QLinear]:
        """One scale and offset per group: q, k, v and gate, up read the same tensor, and servers demand the same."""
        rounded = []
        for group in groups:
            members = [linears[prefix + name] for name in group.linears]
            sampled = [] if self.config.act_method == 1 else [member.float(some_outputs(len(member.weight), member.weight.device)) for member in members]
            lo, hi = activation_range(stats[group], sampled, self.config.act_method)
            rounded += [quantize_linear(member.name, member.float(), member.bias, lo, hi, self.dtype) for member in members]
        return rounded

    def _changed_floats(self, prefix: str, linears: dict[str, FoldedLinear], norms: dict[str, FoldedNorm]) -> dict[str, Tensor]:
        """What folding changed and int8 does not hold: norms, and the float linears whose rows were divided."""
        floats = {}
        sources = {prefix + group.source for group in self.tower.groups if group.source and self.plan.is_int8(prefix + group.linears[0])}
        for part in [norms[name] for name in norms if name in sources] + [x for x in linears.values() if x.row is not None and not self.plan.is_int8(x.name)]:
            floats[f"{part.name}.weight"] = part.weight if isinstance(part, FoldedNorm) else part.float()
            if part.bias is not None:
                floats[f"{part.name}.bias"] = part.bias
        return floats

    def measure(self, index: int, linears: list[QLinear], feed: Feed, hidden: Tensor, reference: Tensor) -> float:
        """dB: what the block adds to `hidden` in float, against the error of adding it with `linears` in place."""
        with self.skeleton.replaced(linears):
            error = feed.calls[index](self.skeleton.block(self.tower, index), hidden) - hidden - reference
        return signal_to_noise(reference, error)


def _extent(stats: Stats) -> tuple[float, float]:
    return stats.lo.min().item(), stats.hi.max().item()


def _channels(stats: Stats) -> tuple[float, float, float]:
    return tuple(torch.maximum(stats.hi, -stats.lo).cpu().quantile(torch.tensor([0.5, 0.99, 1.0])).tolist())
