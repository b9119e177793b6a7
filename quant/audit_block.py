"""One block of an export beside the same block of the source: is every tensor what folding and rounding make of the source's?

Nothing of the run that made the export is used, nor its recipe. What folding did is read off the tensors: a norm -> linears group was scaled
by s = norm.weight / norm'.weight and shifted by z = norm.bias - s norm'.bias; for value -> o and up -> down the columns' factors are fitted
(resemble.py), and the producer's rows must have been divided by the same. Then, with E = codes * weight_scale:

    weight, weight_scale       E ~ diag(row) S diag(s), row = 1 unless a fold divides it; what is left over is rounding
    norm.weight                no channel in which all consumers miss s by one factor
    norm.bias, bias            row * (source's + S z)
    deq_scale                  input_scale * weight_scale
    quant_bias, input_offset   round(bias / deq_scale - input_offset * sum_i q_oi)
    all other tensors          the source's, rounded to the model's dtype, bit for bit

Left out: whether input_scale suits the activations, which only a run of the model can tell (verify.py).
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .ascend import INT8_PARTS
from .audit import Finding, difference, where
from .family import Group, Tower
from .fold import share_heads, spread_heads
from .resemble import Pair, identify
from .runtime import unpack_deq_scale

FACTOR = 0.02  # how much a factor may be off: exporters that compute in bfloat16 are off by 0.4 %
NOISE = 6.0  # and how many standard deviations of its fit
RMS_STEPS = 1.0  # rounding leaves 0.29, in bfloat16 0.5
WORST_STEPS = 4.0  # rounding leaves 0.5, in bfloat16 1
PRODUCT = 0.01  # deq_scale against input_scale * weight_scale
BIAS = 0.01  # share of the terms of a bias
TINY = torch.finfo(torch.float32).tiny


@dataclass
class Relation:
    """How an exported linear relates to the source's: its input is (x - shift) / column, its output row times the source's.

    column [I], shift [I] or None, row [O], float32. factor [O]: what the fitted row misses `row` by, 1 where all is well;
    unlike [O]: rows that are not the source's; lost: the weight is another one altogether.
    """

    column: Tensor
    shift: Tensor | None
    row: Tensor
    factor: Tensor
    unlike: Tensor
    lost: bool = False


@dataclass
class BlockAudit:
    """source, exported: hub tensor name -> tensor, both whole (audit.check_format); int8: names of the linears described as W8A8;
    heads: (query heads, key/value heads) of the tower; nearby: name of a linear -> {description: how to load} of source weights in other
    blocks that it may have been confused with. After run(): findings, and the relations of the int8 linears.
    """

    tower: Tower
    prefix: str
    source: dict[str, Tensor]
    exported: dict[str, Tensor]
    int8: set[str]
    heads: tuple[int, int]
    nearby: Callable[[str], dict[str, Callable[[], Tensor]]]
    findings: list[Finding] = field(default_factory=list)
    relations: dict[str, Relation] = field(default_factory=dict)

    def run(self) -> "BlockAudit":
        groups = [group for group in self.tower.groups if self._in_int8(group)]
        # producer -> (consumer, how many of the producer's last rows the fold may have divided)
        self.folds: dict[str, tuple[str, int]] = {}
        for group in (group for group in groups if group.kind in ("value", "up")):
            consumer = self.prefix + group.linears[0]
            width = self.source[f"{consumer}.weight"].shape[1]
            self.folds[self.prefix + group.source] = consumer, width * self.heads[1] // self.heads[0] if group.kind == "value" else width
        # Norm groups first: they tell the columns of value and up, whose rows are then compared with the columns of o and down.
        for group in sorted(self.tower.groups, key=lambda group: group.kind != "norm"):
            self._weights(group)
        for producer, (consumer, count) in self.folds.items():
            self._cancel(producer, consumer, count)
        for name, relation in self.relations.items():
            if not relation.lost:
                self._report_weight(name, relation)
                self._derived(name, relation)
        folded = {self.prefix + group.source for group in groups if group.kind == "norm"} | set(self.relations)
        for name, tensor in self.source.items():
            if name.rpartition(".")[0] not in folded and (problem := difference(self.exported[name], tensor)):
                self.say(name, problem)
        return self

    def _in_int8(self, group: Group) -> bool:
        return any(self.prefix + name in self.int8 for name in group.linears)

    def say(self, tensor: str, problem: str) -> None:
        self.findings.append(Finding(tensor, problem))

    # -- weights -----------------------------------------------------------------------------------------------------------------------

    def _weights(self, group: Group) -> None:
        """The relations of a group's int8 linears, and of a float one whose rows a fold may have divided."""
        names = [self.prefix + name for name in group.linears]
        pairs = {name: self._pair(name) for name in names if name in self.int8 or name in self.folds}
        if not pairs:
            return
        folded = group.kind == "norm" and self._in_int8(group)
        found = len(self.findings)
        for trusted in (True, False):
            column, shift = self._norm(self.prefix + group.source, pairs, trusted) if folded else (None, None)
            for name, pair in pairs.items():
                self.relations[name] = self._relate(name, pair, self._columns(group, name, pair) if column is None else column, shift)
            if not (folded and trusted and any(self.relations[name].lost for name in pairs)):
                return
            del self.findings[found:]  # linears that are not theirs say nothing about the norm: once more, without them as witnesses

    def _columns(self, group: Group, name: str, pair: Pair) -> Tensor:
        """Of a linear that no norm feeds."""
        fitted = group.kind in ("value", "up") and name in self.int8
        return pair.fit()[1] if fitted else torch.ones(pair.source.shape[1], device=pair.source.device)

    def _pair(self, name: str) -> Pair:
        scale = self.exported[f"{name}.weight_scale"].float() if name in self.int8 else None
        return Pair(self.exported[f"{name}.weight"], scale, self.source[f"{name}.weight"])

    def _norm(self, norm: str, pairs: dict[str, Pair], trusted: bool) -> tuple[Tensor, Tensor | None]:
        """(column, shift) of a norm's consumers; corrected, if these can be trusted, where they agree that the norm is wrong."""
        before, after = self.source[f"{norm}.weight"], self.exported[f"{norm}.weight"]
        untouched = torch.equal(before.to(after.dtype), after)
        before, after = before.float(), after.float()
        column = torch.where(after == before, 1.0, before / after)
        bad = ~(torch.isfinite(column) & (column > 0))
        column = torch.ones_like(column) if untouched else torch.where(bad, 1.0, column)
        rows = [pair.row_factors(column) for pair in pairs.values()]
        fits = [pair.column_factors(torch.where((row - 1).abs() < FACTOR, 1.0, row), column) for pair, row in zip(pairs.values(), rows)]
        factors, sigma = (torch.stack(values) for values in zip(*fits))
        mean, allowed = factors.mean(0), FACTOR + NOISE * sigma
        bad |= ((factors - 1).abs() > allowed).all(0) & ((factors - mean).abs() <= allowed * mean.abs()).all(0)
        if trusted and 0 < bad.sum() <= len(bad) / 2:  # where most channels miss, it is not the norm that is wrong
            worst = int(torch.where(bad, (mean - 1).abs(), -1.0).argmax())
            fit = (before / (column * mean))[worst]
            self.say(f"{norm}.weight", f"not what the linears that read it expect in {where(bad, 'channel')}: [{worst}] is {after[worst]:.4g}, {fit:.4g} fits them")
            column = torch.where(bad, column * mean, column)
        if f"{norm}.bias" not in self.source:
            return column, None
        bias, moved = self.source[f"{norm}.bias"], self.exported[f"{norm}.bias"]
        unshifted = untouched and torch.equal(bias.to(moved.dtype), moved)
        shift = torch.zeros_like(column) if unshifted else bias.float() - column * moved.float()
        if trusted:
            shift = self._norm_bias(norm, pairs, column, shift)
        return column, shift if shift.any() else None

    def _norm_bias(self, norm: str, pairs: dict[str, Pair], column: Tensor, shift: Tensor) -> Tensor:
        """A wrong channel i of the norm's bias leaves every consumer's bias off by a multiple of the column S_i: look for one."""
        product, energy, total = (torch.zeros_like(shift), torch.zeros_like(shift), torch.zeros_like(shift[0]))
        for name, pair in pairs.items():
            if f"{name}.bias" in self.exported:
                fixed = slice(None, len(pair.source) - self.folds.get(name, (None, 0))[1])
                weight = pair.source[fixed].float()
                error = self.exported[f"{name}.bias"][fixed].float() - self.source[f"{name}.bias"][fixed].float() - weight @ shift
                product, energy, total = product + weight.T @ error, energy + weight.square().sum(0), total + error.square().sum()
        explained = product.square() / (energy * total).clamp(min=TINY)
        channel = int(explained.argmax())
        delta = product[channel] / energy[channel].clamp(min=TINY)
        if explained[channel] < 0.9:  # rounding of the biases leaves an error along no single column
            return shift
        stored = self.exported[f"{norm}.bias"][channel].float()
        self.say(f"{norm}.bias", f"channel {channel} is {stored:.4g}; the biases that took up its shift say {stored - delta / column[channel]:.4g}")
        return shift + delta * torch.nn.functional.one_hot(torch.tensor(channel, device=shift.device), len(shift))

    def _relate(self, name: str, pair: Pair, column: Tensor, shift: Tensor | None) -> Relation:
        row = pair.row_factors(column)
        free = self._folded_rows(name)
        scaled = free | ((row - 1).abs() > FACTOR)
        rms, worst, _ = pair.residual(torch.where(scaled, row, 1.0), column)
        relation = Relation(column, shift, torch.where(free, row, 1.0), torch.where(free, 1.0, row), (rms > RMS_STEPS) | (worst > WORST_STEPS))
        if relation.unlike.float().mean() > 0.25:
            what = identify(pair, column, self._confusable(name))
            self.say(f"{name}.weight", f"is {what}" if what else f"does not resemble the source's: {int(relation.unlike.sum())} of {len(row)} rows differ by more than rounding")
            fitted = any(consumer == name for consumer, _ in self.folds.values())  # to something else: it means nothing
            ones = torch.ones_like(row)
            return Relation(torch.ones_like(column) if fitted else column, shift, ones, ones, relation.unlike, lost=True)
        return relation

    def _folded_rows(self, name: str) -> Tensor:
        """bool [O]: the rows that a fold may have divided."""
        weight = self.source[f"{name}.weight"]
        return torch.arange(len(weight), device=weight.device) >= len(weight) - self.folds.get(name, (None, 0))[1]

    def _confusable(self, name: str) -> dict[str, Callable[[], Tensor]]:
        own = self.source[f"{name}.weight"]
        others = {tensor: value for tensor, value in self.source.items() if value.shape == own.shape and value is not own}
        return {f"{tensor} of the source": (lambda value=value: value) for tensor, value in others.items()} | self.nearby(name)

    def _cancel(self, producer: str, consumer: str, count: int) -> None:
        """The last `count` rows of the producer must have been divided by what the consumer's columns were multiplied with."""
        source, reader = self.relations[producer], self.relations[consumer]
        if source.lost or reader.lost:
            return
        column, (_, sigma) = reader.column, self._pair(consumer).column_factors(reader.row, reader.column)
        if len(column) != count:  # grouped-query attention: the heads that read a value share its scale
            spread = spread_heads(share_heads(column, *self.heads), *self.heads)
            unequal = (column / spread - 1).abs() > 2 * FACTOR + 2 * NOISE * sigma
            if unequal.any():
                self.say(f"{consumer}.weight", f"not scaled like the other heads' that read the same value in {where(unequal, 'column')}")
            column, sigma = share_heads(column, *self.heads), share_heads(sigma, *self.heads)
        factor = source.row[-count:] * column
        exact = (factor - 1).abs() <= FACTOR + NOISE * sigma
        source.factor[-count:] = torch.where(exact, 1.0, factor)
        source.row[-count:] = torch.where(exact, source.row[-count:], 1 / column)

    # -- what is reported of a linear, and what is derived of it -----------------------------------------------------------------------

    def _report_weight(self, name: str, relation: Relation) -> None:
        off, unlike = (relation.factor - 1).abs() > FACTOR, relation.unlike
        if unlike.any():
            self.say(f"{name}.weight", f"differs from the source's by more than rounding in {where(unlike)}")
        off &= ~unlike
        if not off.any():
            return
        first = int(off.nonzero()[0])
        folded = self._folded_rows(name)[first]
        reader = f" or column {first - len(off) + self.folds[name][1]} of {self.folds[name][0]}.weight" if folded else ""
        if name not in self.int8 or relation.factor[first] < 0:
            self.say(f"{name}.weight", f"wrong in {where(off)}{reader}: {relation.factor[first]:.4g} times what is expected")
            return
        scale = self.exported[f"{name}.weight_scale"].float().reshape(-1)[first]
        reader = reader if (self._ratio(name)[first] - 1).abs() <= PRODUCT else ""  # else it does not fit deq_scale either
        self.say(f"{name}.weight_scale", f"wrong in {where(off)}{reader}: [{first}] is {scale:.4g}, the source's weight makes it {scale / relation.factor[first]:.4g}")

    def _derived(self, name: str, relation: Relation) -> None:
        if name not in self.int8:
            self._bias(name, relation)
            return
        part = {key: self.exported[f"{name}.{key}"] for key in INT8_PARTS}
        deq, input_scale = unpack_deq_scale(part["deq_scale"]), part["input_scale"].float()
        off = (relation.factor - 1).abs() > FACTOR
        ratio = self._ratio(name)
        product = deq / ratio
        wrong = ~((ratio - 1).abs() <= PRODUCT) & ~off
        middle = ratio.median()
        if wrong.float().mean() > 0.5 and ((ratio / middle - 1).abs() <= PRODUCT).float().mean() > 0.5:
            # One of the two is wrong as a whole: input_scale, unless the linears that read the same tensor have the same.
            culprit = "deq_scale" if self._shared(name, "input_scale") else "input_scale"
            self.say(f"{name}.{culprit}", f"deq_scale / weight_scale is {(input_scale * middle).item():.5g} in most rows, input_scale {input_scale.item():.5g}")
            product = product if culprit == "deq_scale" else product * middle
        elif wrong.any():
            first = int(wrong.nonzero()[0])
            self.say(f"{name}.deq_scale", f"not input_scale * weight_scale in {where(wrong)}: [{first}] is {deq[first]:.4g}, that is {product[first]:.4g}")
        if part["weight_offset"].any():
            self.say(f"{name}.weight_offset", "is not zero; servers take weights as symmetric")
        offset = part["input_offset"].double()
        if offset.item() != round(offset.item()) or not -128 <= offset.item() <= 127:
            self.say(f"{name}.input_offset", f"is {offset.item():.6g}, a whole number from -128 to 127 is expected")
        elif not self._bias(name, relation):
            self._quant_bias(name, part, torch.where(wrong, product, deq).double(), ~(off | relation.unlike))

    def _ratio(self, name: str) -> Tensor:
        """deq_scale / (input_scale * weight_scale), [O]."""
        scale, input_scale = (self.exported[f"{name}.{part}"].float() for part in ("weight_scale", "input_scale"))
        return unpack_deq_scale(self.exported[f"{name}.deq_scale"]) / (input_scale * scale).reshape(-1)

    def _shared(self, name: str, part: str) -> bool:
        """Whether a linear that reads the same tensor has the same value."""
        group = next(group for group in self.tower.groups if name.removeprefix(self.prefix) in group.linears)
        others = [self.prefix + other for other in group.linears if self.prefix + other != name]
        return any(torch.equal(self.exported[f"{other}.{part}"], self.exported[f"{name}.{part}"]) for other in others if other in self.int8)

    def _bias(self, name: str, relation: Relation) -> bool:
        """Whether the float bias is wrong."""
        tensor = f"{name}.bias"
        if tensor not in self.exported:
            return False
        expected = self.source[tensor].float()
        terms = expected.abs()
        if relation.shift is not None:
            weight = self.source[f"{name}.weight"].float()
            expected, terms = expected + weight @ relation.shift, terms + weight.abs() @ relation.shift.abs()
        bias, expected, terms = self.exported[tensor].float(), expected * relation.row, terms * relation.row.abs()
        bad = (bias - expected).abs() > BIAS * terms + 1e-6 * terms.max()
        if bad.any():
            first = int(bad.nonzero()[0])
            self.say(tensor, f"not the source's after folding in {where(bad)}: [{first}] is {bias[first]:.4g}, {expected[first]:.4g} is expected")
        return bool(bad.any())

    def _quant_bias(self, name: str, part: dict[str, Tensor], deq: Tensor, checked: Tensor) -> None:
        offset, codes, stored = part["input_offset"].double(), part["weight"].sum(1, dtype=torch.int64).double(), part["quant_bias"].double()
        bias = self.exported[f"{name}.bias"].double() / deq if f"{name}.bias" in self.exported else torch.zeros_like(deq)
        bad = ((stored - (bias - offset * codes)).abs() > 2 + BIAS * bias.abs() + 1e-5 * (offset * codes).abs()) & checked
        if not bad.any():
            return
        telling = codes.abs() > 20
        implied = torch.round(((bias - stored) / codes)[telling].median()) if telling.any() else offset
        if bad.float().mean() > 0.5 and implied != offset:
            culprit = "quant_bias" if self._shared(name, "input_offset") else "input_offset"
            self.say(f"{name}.{culprit}", f"input_offset is {offset.item():.0f}, quant_bias fits {implied.abs().item() and implied.item():.0f}")
            return
        first = int(bad.nonzero()[0])
        self.say(f"{name}.quant_bias", f"does not follow from bias, scales and offset in {where(bad)}: [{first}] is {stored[first]:.0f}, they give {(bias - offset * codes)[first]:.0f}")
