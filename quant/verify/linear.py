"""The scales and biases of one linear of an export: do they fit its weight, the source's bias, and one another?

    weight_scale               so that codes * weight_scale is the folded weight (folding.py finds by what factor a row
                               misses it)
    bias                       row * (source's + S z)
    deq_scale                  input_scale * weight_scale
    quant_bias, input_offset   round(bias / deq_scale - input_offset * sum_i q_oi)

Where two tensors contradict each other, a third decides which is wrong: the source's weight, or the linears that read
the same input. Left out: whether input_scale suits the activations, which only a run of the model can tell (verify.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..arithmetic.int8 import unpack_deq_scale
from .fit import NOISE, half_step
from .tensors import Damage, where

FACTOR = 0.02  # how much a factor may be off: exporters that compute in bfloat16 are off by 0.4 %
PRODUCT = 0.01  # and deq_scale from input_scale * weight_scale
BIAS = 0.01  # and a bias, as a share of its terms
SUMS = 1e-6  # and a sum in float32, as a share of its terms


@dataclass
class Input:
    """What linears read, in place of what they read in the source: that minus `shift`, over `column`.

    float32 [I] each. shift: None where there is none. doubt: how far the norm's stored bias b' and weight w' leave the
    shift open, for they were rounded, and an exporter need not have passed on what that took:

        z = b - s b',  s = w / w'        |error of z| <= s (half_step(b') + |b'| half_step(w') / |w'|)

    None where nothing was rounded.
    """

    column: Tensor
    shift: Tensor | None = None
    doubt: Tensor | None = None


@dataclass
class Relation:
    """How an exported linear relates to the source's, as far as folding goes: its input is the source's minus `shift`,
    over `column`; its output is the source's times `row`.

    column [I], shift [I] or None, row [O], float32. factor, float32 [O]: by what the exported rows miss `row`, 1 where
    all is well; unlike, bool [O]: rows that are not the source's; lost: most rows are not; doubt [I] or None: how far
    the norm leaves the shift open (Input).
    """

    column: Tensor
    shift: Tensor | None
    row: Tensor
    factor: Tensor
    unlike: Tensor
    lost: bool = False
    doubt: Tensor | None = None


@dataclass
class LinearCheck:
    """The check of one linear's scales and biases; run() returns the damage.

    name: of the linear; source, exported: hub tensor name -> tensor of its block; consumer, divided: the linear
    that absorbed what these of its rows were divided by, or None and none of them; mates: the other int8 linears that
    read the same tensor; corrected: whether quant_bias takes up the mean error of rounding the weight, too.
    """

    name: str
    relation: Relation
    source: dict[str, Tensor]
    exported: dict[str, Tensor]
    consumer: str | None
    divided: slice
    mates: list[str]
    corrected: bool = False
    damage: list[Damage] = field(default_factory=list)

    def run(self) -> list[Damage]:
        """Damage to any tensor of the linear, in the order of the checks; a tensor that follows from one that is named
        is not named, too.
        """
        if self.relation.unlike.any():
            self.say("weight", f"differs from the source's by more than rounding in {where(self.relation.unlike)}")
        self._rows()
        if f"{self.name}.weight_offset" in self.exported and self.part("weight_offset").any():
            self.say("weight_offset", "is not zero; servers take weights as symmetric")
        if self.static:
            deq, offset = self._deq_scale(), self._offset()
            if not self._bias() and offset is not None:
                self._quant_bias(deq, offset)
        else:
            self._bias()
        return self.damage

    @property
    def static(self) -> bool:
        """Whether it is a static int8 linear, whose scales repeat one another; those of other linears do not."""
        return f"{self.name}.deq_scale" in self.exported

    @cached_property
    def wrong_rows(self) -> Tensor:
        """bool [O]: rows that are the source's but for a factor that no fold accounts for."""
        return (self.relation.factor - 1).abs() > FACTOR

    def say(self, part: str, problem: str) -> None:
        """Note damage to a tensor of the linear."""
        self.damage.append(Damage(f"{self.name}.{part}", problem))

    def part(self, part: str) -> Tensor:
        """A tensor of the linear as it was exported, such as the weight, int8 [O, I]."""
        return self.exported[f"{self.name}.{part}"]

    def _product(self) -> Tensor:
        """input_scale * weight_scale, [O]."""
        return (self.part("input_scale").float() * self.part("weight_scale").float()).reshape(-1)

    def _shared(self, part: str) -> bool:
        """Whether a linear that reads the same tensor has the same value."""
        return any(torch.equal(self.exported[f"{mate}.{part}"], self.part(part)) for mate in self.mates)

    def _rows(self) -> None:
        """Rows that are off by a factor: weight_scale is wrong, or the codes where no scale can say it."""
        off = self.wrong_rows & ~self.relation.unlike
        if not off.any():
            return
        first = int(off.nonzero()[0])
        factor, column = self.relation.factor[first], first - self.divided.start
        reader = (
            f" or column {column} of {self.consumer}.weight"
            if 0 <= column and first < self.divided.stop and self.consumer
            else ""
        )
        if f"{self.name}.weight_scale" not in self.exported or factor < 0:
            self.say("weight", f"wrong in {where(off)}{reader}: {factor:.4g} times what is expected")
            return
        scale = self.part("weight_scale").float().reshape(-1)[first]
        if self.static:
            deq = unpack_deq_scale(self.part("deq_scale"))[first]
            if not (deq / self._product()[first] - 1).abs() <= PRODUCT:
                reader = ""  # deq_scale contradicts it too
        self.say(
            "weight_scale",
            f"wrong in {where(off)}{reader}: [{first}] is {scale:.4g}, the source's weight makes it"
            f" {scale / factor:.4g}",
        )

    def _deq_scale(self) -> Tensor:
        """deq_scale, or where it is wrong what it should be: float64 [O]."""
        deq, product, input_scale = (
            unpack_deq_scale(self.part("deq_scale")),
            self._product(),
            self.part("input_scale").float(),
        )
        ratio = deq / product
        wrong = ~((ratio - 1).abs() <= PRODUCT) & ~self.wrong_rows
        middle = ratio.median()
        if wrong.float().mean() > 0.5 and ((ratio / middle - 1).abs() <= PRODUCT).float().mean() > 0.5:
            # One of the two is wrong as a whole: input_scale, unless the linears that read the same tensor have the
            # same.
            culprit = "deq_scale" if self._shared("input_scale") else "input_scale"
            self.say(
                culprit,
                f"deq_scale / weight_scale is {(input_scale * middle).item():.5g} in most rows, input_scale"
                f" {input_scale.item():.5g}",
            )
            return torch.where(wrong, product if culprit == "deq_scale" else product * middle, deq).double()
        if wrong.any():
            first = int(wrong.nonzero()[0])
            self.say(
                "deq_scale",
                f"not input_scale * weight_scale in {where(wrong)}: [{first}] is {deq[first]:.4g}, that is"
                f" {product[first]:.4g}",
            )
        return torch.where(wrong, product, deq).double()

    def _offset(self) -> float | None:
        """input_offset, if it is one."""
        offset = float(self.part("input_offset").double().item())
        if offset.is_integer() and -128 <= offset <= 127:
            return offset
        self.say("input_offset", f"is {offset:.6g}, a whole number from -128 to 127 is expected")
        return None

    def _bias(self) -> bool:
        """Whether the float bias is wrong. It is the sum row_o (b_o + sum_i S_oi z_i), rounded; every term may be off
        by BIAS of itself, each z_i by any of +- doubt_i, which makes a standard deviation of doubt_i / sqrt(3), and the
        stored bias by half the least number that its dtype tells from zero.
        """
        if f"{self.name}.bias" not in self.exported:
            return False
        relation, expected = self.relation, self.source[f"{self.name}.bias"].float()
        terms, left_open = expected.abs(), torch.zeros_like(expected)
        if relation.shift is not None:
            weight = self.source[f"{self.name}.weight"].float()
            expected, terms = expected + weight @ relation.shift, terms + weight.abs() @ relation.shift.abs()
        if relation.doubt is not None:
            weight = self.source[f"{self.name}.weight"].float()
            left_open = NOISE * (weight.square() @ relation.doubt.square() / 3).sqrt()
        bias, row = self.part("bias").float(), relation.row.abs()
        expected, terms, left_open = expected * relation.row, terms * row, left_open * row
        bad = ~((bias - expected).abs() <= BIAS * terms + SUMS * terms.max() + left_open + self._least())
        if bad.any():
            first = int(bad.nonzero()[0])
            self.say(
                "bias",
                f"not the source's after folding in {where(bad)}: [{first}] is {bias[first]:.4g}, {expected[first]:.4g}"
                " is expected",
            )
        return bool(bad.any())

    def _least(self) -> float:
        """What rounding to its dtype takes from a bias at most, however small it is: in float16, that has no small
        numbers, 3e-8.
        """
        return float(half_step(self.part("bias")[:0].new_zeros(()))) if f"{self.name}.bias" in self.exported else 0.0

    def _quant_bias(self, deq: Tensor, offset: float) -> None:
        """quant_bias, or input_offset where that is what contradicts it. deq: _deq_scale's, float64 [O]."""
        codes, stored = self.part("weight").sum(1, dtype=torch.int64).double(), self.part("quant_bias").double()
        bias = self.part("bias").double() / deq if f"{self.name}.bias" in self.exported else torch.zeros_like(deq)
        expected = bias - offset * codes
        # The bias was rounded to its dtype; sums in float32.
        tolerance = 2 + BIAS * bias.abs() + self._least() / deq + 1e-5 * (offset * codes).abs()
        if self.corrected:
            tolerance = tolerance + self._most_correction(offset)
        bad = ((stored - expected).abs() > tolerance) & ~(self.wrong_rows | self.relation.unlike)
        if not bad.any():
            return
        telling = codes.abs() > 20
        implied = ((bias - stored) / codes)[telling].median().round().int().item() if telling.any() else offset
        if bad.float().mean() > 0.5 and implied != offset:
            culprit = "quant_bias" if self._shared("input_offset") else "input_offset"
            self.say(culprit, f"input_offset is {offset:.0f}, quant_bias fits {implied}")
            return
        first = int(bad.nonzero()[0])
        self.say(
            "quant_bias",
            f"does not follow from bias, scales and offset in {where(bad)}: [{first}] is {stored[first]:.0f}, they give"
            f" {expected[first]:.0f}",
        )

    def _most_correction(self, offset: float) -> Tensor:
        """What a correction E[(W' - W) x] can be at most, in units of deq_scale, float64 [O]: no input is further from
        zero than its codes reach.
        """
        relation, scale = self.relation, self.part("weight_scale").float()
        exact = self.source[f"{self.name}.weight"].float() * relation.row[:, None] * relation.column / scale
        return (self.part("weight").float() - exact).abs().sum(1).double() * max(127 - offset, 128 + offset)


def check_readers(
    names: list[str], source: dict[str, Tensor], exported: dict[str, Tensor], column: Tensor
) -> Iterator[Damage]:
    """Damage to the weights `names` [..., I] that read a norm's output and stay float: they must be the source's times
    what the norm was divided by, `column` float32 [I], rounded.
    """
    for name in names:
        stored, expected = exported[name].float(), source[name].float() * column
        bad = ((stored - expected).abs() > half_step(exported[name]) + SUMS * expected.abs()).flatten()
        if bad.any():
            first = int(bad.nonzero()[0])
            values = f"[{first}] is {stored.flatten()[first]:.6g}, that is {expected.flatten()[first]:.6g}"
            yield Damage(
                name, f"is not the source's times its norm's scale in {int(bad.sum())} of {len(bad)}: {values}"
            )
