"""One block of an export and the same block of the source: is every tensor what folding and rounding make of the
source's?

Nothing of the run that made the export is used, nor its recipe (but for `corrected`). What folding did is read off the
tensors: a norm -> linears group was scaled by s = norm.weight / norm'.weight and shifted by z = norm.bias - s
norm'.bias; for value -> o and up -> down, s is what the producer's rows were divided by, which a fit shows (fit.py).
Then, with E = codes * weight_scale and S the source's weight:

    weight            E ~ diag(row) S diag(s), row = 1 unless a fold divides it; what is left over is rounding
    source of a group no channel in which all linears that read it miss s by one factor
    norm.bias         no channel along which the biases of all consumers miss what z moved them by, by more than the
                      rounding of these biases and of the norm explains
    scales, biases    linear.py
    other tensors     the source's, rounded to the model's dtype, bit for bit
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arithmetic.fold import share_heads, spread_heads
from ..arithmetic.int8 import unpack_deq_scale
from ..families.family import Group, Tower
from .fit import NOISE, TINY, WeightPair, half_step
from .linear import FACTOR, SUMS, Input, LinearCheck, Relation, check_readers
from .tensors import Damage, difference, where

RMS_STEPS = 1.0  # rounding leaves 0.29, in bfloat16 0.5
WORST_STEPS = 4.0  # rounding leaves 0.5, in bfloat16 1
NOT_DIVIDED = (None, slice(0, 0))
Tensors = dict[str, Tensor]
LOST = 0.25  # share of rows that are not the source's, above which the weight is called another one


def check_block(
    config: dict, tower: Tower, index: int, source: Tensors, exported: Tensors, int8: set[str], corrected: bool = False
) -> "BlockCheck":
    """Block `index` of a tower, checked.

    config: the source's config.json; source, exported: hub tensor name -> tensor of the block, all that it has, such as
    a weight [O, I] and its weight_scale [O, 1], in the shapes and dtypes that tensors.check_format asks for, on one
    device; int8: the linears described as W8A8; corrected: whether quant_bias also takes up the error of rounding.
    """
    of_tower = tower.block(index), tower.groups_of(config, index), tower.heads(config)
    check = BlockCheck(*of_tower, source, exported, int8, corrected)
    check.run()
    return check


@dataclass
class BlockCheck:
    """prefix: of the block's tensors; heads: (query heads, key/value heads); the rest as check_block.

    After run(), damage: what was found; relations: of every int8 linear, by its hub name.
    """

    prefix: str
    groups: tuple[Group, ...]
    heads: tuple[int, int]
    source: Tensors
    exported: Tensors
    int8: set[str]
    corrected: bool = False
    damage: list[Damage] = field(default_factory=list)
    relations: dict[str, Relation] = field(default_factory=dict)
    folds: dict[str, tuple[str, slice]] = field(default_factory=dict)
    """Producer -> (consumer, which of the producer's rows the fold may have divided)."""

    def run(self) -> None:
        """Fill damage and relations."""
        if self._not_finite():
            return
        groups = [group for group in self.groups if self._in_int8(group)]
        for group in (group for group in groups if group.kind in ("value", "up")):
            consumer = self.prefix + group.linears[0]
            width = self.source[f"{consumer}.weight"].shape[1]
            count = width * self.heads[1] // self.heads[0] if group.kind == "value" else width
            producer = f"{self.prefix}{group.source}"
            self.folds[producer] = (consumer, group.divided(len(self.source[f"{producer}.weight"]), count))
        # Norm groups first: they give the columns of value and up, and so their rows, and so the columns of o and down.
        for group in sorted(self.groups, key=lambda group: group.kind != "norm"):
            self._weights(group)
        for name, relation in self.relations.items():
            if not relation.lost:
                consumer_of, rows = self.folds.get(name, NOT_DIVIDED)
                mates = self._mates(name)
                check = LinearCheck(
                    name, relation, self.source, self.exported, consumer_of, rows, mates, self.corrected
                )
                self.damage += check.run()
        folded = {f"{self.prefix}{group.source}" for group in groups if group.kind == "norm"} | set(self.relations)
        folded |= {self.prefix + reader for group in groups if group.source for reader in group.readers}
        for name, tensor in self.source.items():
            if name.rpartition(".")[0] not in folded and (problem := difference(self.exported[name], tensor)):
                self.say(name, problem)

    def _not_finite(self) -> bool:
        """Whether a tensor holds NaN or Inf. It is named; nothing is fitted then, and relations are those of a block
        without folds.
        """
        for name, tensor in self.exported.items():
            values = unpack_deq_scale(tensor) if name.endswith(".deq_scale") else tensor
            if (
                values.is_floating_point()
                and values.numel()
                and not torch.isfinite(torch.stack(values.aminmax())).all()
            ):
                self.say(name, "holds NaN or Inf")
        for name in self.int8 & {tensor.removesuffix(".weight") for tensor in self.source}:
            outputs, inputs = (
                torch.ones(count, device=self.source[f"{name}.weight"].device)
                for count in self.source[f"{name}.weight"].shape
            )
            self.relations[name] = Relation(inputs, None, outputs, outputs, outputs < 0)
        return bool(self.damage)

    def _in_int8(self, group: Group) -> bool:
        return any(self.prefix + name in self.int8 for name in group.linears)

    def _mates(self, name: str) -> list[str]:
        """The other int8 linears that read the same tensor."""
        group = next(group for group in self.groups if name.removeprefix(self.prefix) in group.linears)
        return [
            self.prefix + other
            for other in group.linears
            if self.prefix + other in self.int8 and self.prefix + other != name
        ]

    def say(self, tensor: str, problem: str) -> None:
        """Note damage to a tensor."""
        self.damage.append(Damage(tensor, problem))

    # -- weights

    def _weights(self, group: Group) -> None:
        """The relations of a group's int8 linears, and of a float one whose rows a fold may have divided."""
        names = [self.prefix + name for name in group.linears]
        pairs = {name: self._pair(name) for name in names if name in self.int8 or name in self.folds}
        if not pairs:
            return
        found = len(self.damage)
        for trusted in (True, False):
            read = self._columns(group, pairs, trusted)
            for name, pair in pairs.items():
                self.relations[name] = self._relate(name, pair, read)
            if not any(self.relations[name].lost for name in pairs):
                return
            if trusted:  # a weight that is another one says nothing about what it reads: once more, without trust
                del self.damage[found:]

    def _columns(self, group: Group, pairs: dict[str, WeightPair], trusted: bool) -> Input:
        """What the linears of a group read; corrected, if they can be trusted, where all of them say that their source
        is wrong.
        """
        if group.source and self._in_int8(group):
            if group.kind == "norm":
                read = self._norm(self.prefix + group.source, pairs, trusted, group.adds)
                if trusted:
                    names = [f"{self.prefix}{reader}.weight" for reader in group.readers]
                    self.damage += check_readers(names, self.source, self.exported, read.column)
                return read
            return Input(self._fold(group, self.prefix + group.source, pairs, trusted))
        example = next(iter(pairs.values())).source
        return Input(torch.ones(example.shape[1], device=example.device))

    def _missed(self, pairs: dict[str, WeightPair], column: Tensor) -> tuple[Tensor, Tensor]:
        """(by what factor the exported columns miss `column`, whether all linears agree that they do), [I] each."""
        rows = [pair.row_factors(column) for pair in pairs.values()]
        fits = [
            pair.column_factors(torch.where((row - 1).abs() < FACTOR, 1.0, row), column)
            for pair, row in zip(pairs.values(), rows)
        ]
        factors, sigma = (torch.stack(values) for values in zip(*fits))
        mean, allowed = factors.mean(0), FACTOR + NOISE * sigma
        return mean, ((factors - 1).abs() > allowed).all(0) & ((factors - mean).abs() <= allowed * mean.abs()).all(0)

    def _fold(self, group: Group, source: str, pairs: dict[str, WeightPair], trusted: bool) -> Tensor:
        """The columns of o or down, [I]: what the rows of value or up (`source`) were divided by."""
        ((name, pair),) = pairs.items()
        producer, rows = self.relations[source], self.folds[source][1]
        if producer.lost:  # its rows say nothing, the columns themselves have to
            ones = [torch.ones(size, device=pair.source.device) for size in pair.source.shape]
            return pair.column_factors(*ones)[0]
        share, spread = (share_heads, spread_heads) if group.kind == "value" else (lambda x, *_: x, lambda x, *_: x)
        column, producer.factor[rows] = spread(1 / producer.row[rows], *self.heads), 1.0
        missed, bad = self._missed(pairs, column)
        if not trusted or bad.float().mean() > 0.5:
            return column
        # A row of value is wrong where all query heads that read it say so.
        everywhere = -share(-bad.float(), *self.heads) > 0
        column = torch.where(spread(everywhere.float(), *self.heads) > 0, column * missed, column)
        producer.factor[rows] = torch.where(everywhere, share(missed, *self.heads), 1.0)
        producer.row[rows] = torch.where(everywhere, 1 / share(column, *self.heads), producer.row[rows])
        return column

    def _pair(self, name: str) -> WeightPair:
        scale = self.exported[f"{name}.weight_scale"].float() if name in self.int8 else None
        return WeightPair(self.exported[f"{name}.weight"], scale, self.source[f"{name}.weight"])

    def _norm(self, norm: str, pairs: dict[str, WeightPair], trusted: bool, adds: float = 0.0) -> Input:
        """_columns of a norm's consumers. adds: what the norm adds to its weight."""
        before, after = self.source[f"{norm}.weight"], self.exported[f"{norm}.weight"]
        untouched = torch.equal(before.to(after.dtype), after)
        before, after = before.float() + adds, after.float() + adds
        column = torch.where(after == before, 1.0, before / after)
        bad = ~(torch.isfinite(column) & (column > 0))
        column = torch.ones_like(column) if untouched else torch.where(bad, 1.0, column)
        mean, missed = self._missed(pairs, column)
        bad |= missed
        if trusted and 0 < bad.sum() <= len(bad) / 2:  # where most channels miss, it is not the norm that is wrong
            worst = int(torch.where(bad, (mean - 1).abs(), -1.0).argmax())
            fit = (before / (column * mean))[worst]
            self.say(
                f"{norm}.weight",
                f"not what the linears that read it expect in {where(bad, 'channel')}: [{worst}] is"
                f" {after[worst] - adds:.4g}, {fit - adds:.4g} fits them",
            )
            column = torch.where(bad, column * mean, column)
        if f"{norm}.bias" not in self.source:
            return Input(column)
        bias, moved = self.source[f"{norm}.bias"], self.exported[f"{norm}.bias"]
        unshifted = untouched and torch.equal(bias.to(moved.dtype), moved)
        if unshifted and torch.equal(bias.float(), moved.float()):
            read = Input(column, torch.zeros_like(column))
        else:
            stored = self.exported[f"{norm}.weight"]
            known = half_step(moved) + moved.float().abs() * half_step(stored) / after.abs().clamp(min=TINY)
            shift = torch.zeros_like(column) if unshifted else bias.float() - column * moved.float()
            read = Input(column, shift, known * column)
        found = self._norm_bias(norm, pairs, read) if trusted else read.shift
        return Input(column, found if found is not None and found.any() else None, read.doubt)

    def _norm_bias(self, norm: str, pairs: dict[str, WeightPair], read: Input) -> Tensor:
        """The shift. A wrong channel i of the norm's bias leaves every consumer's bias off by a multiple of the column
        S_i: look for one.

        The consumers' biases were rounded when they had taken up the shift. Of a shift that is smaller than that
        rounding they show nothing, and what is left over lies along S z as if z were wrong: so a leftover counts only
        where it is larger than the rounding of the bias, half_step(bias), in some row, and a channel only where it is
        off by more than `doubt`.
        """
        column, beyond = read.column, False
        shift = torch.zeros_like(column) if read.shift is None else read.shift
        product, energy, total = (torch.zeros_like(shift), torch.zeros_like(shift), torch.zeros_like(shift[0]))
        for name, pair in pairs.items():
            if f"{name}.bias" in self.exported:
                fixed = ~self._folded_rows(name)
                weight = pair.source[fixed].float()
                stored, before = self.exported[f"{name}.bias"][fixed], self.source[f"{name}.bias"][fixed].float()
                error = stored.float() - before - weight @ shift
                rounding = half_step(stored) + SUMS * (before.abs() + weight.abs() @ shift.abs())
                beyond |= bool((error.abs() > rounding).any())
                product, energy, total = (
                    product + weight.T @ error,
                    energy + weight.square().sum(0),
                    total + error.square().sum(),
                )
        explained = product.square() / (energy * total).clamp(min=TINY)
        channel = int(explained.argmax())
        delta = product[channel] / energy[channel].clamp(min=TINY)
        within = read.doubt is not None and delta.abs() <= read.doubt[channel]
        if not beyond or within or explained[channel] < 0.9:  # several roundings leave an error along no single column
            return shift
        stored = self.exported[f"{norm}.bias"][channel].float()
        self.say(
            f"{norm}.bias",
            f"channel {channel} is {stored:.4g}; the biases that took up its shift say"
            f" {stored - delta / column[channel]:.4g}",
        )
        return shift + delta * torch.nn.functional.one_hot(torch.tensor(channel, device=shift.device), len(shift))

    def _relate(self, name: str, pair: WeightPair, read: Input) -> Relation:
        column, row = read.column, pair.row_factors(read.column)
        free = self._folded_rows(name)
        scaled = free | ((row - 1).abs() > FACTOR)
        rms, worst = pair.residual(torch.where(scaled, row, 1.0), column)
        relation = Relation(
            column,
            read.shift,
            torch.where(free, row, 1.0),
            torch.where(free, 1.0, row),
            (rms > RMS_STEPS) | (worst > WORST_STEPS),
            doubt=read.doubt,
        )
        if relation.unlike.float().mean() > LOST:
            rows = f"{int(relation.unlike.sum())} of {len(row)} rows"
            self.say(f"{name}.weight", f"is not the source's: {rows} differ by more than rounding")
            return Relation(column, read.shift, torch.ones_like(row), torch.ones_like(row), relation.unlike, lost=True)
        return relation

    def _folded_rows(self, name: str) -> Tensor:
        """bool [O]: the rows that a fold may have divided."""
        weight = self.source[f"{name}.weight"]
        divided = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        divided[self.folds.get(name, NOT_DIVIDED)[1]] = True
        return divided
