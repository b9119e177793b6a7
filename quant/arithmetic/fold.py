"""Folding a scale s (and a shift z) exactly: the product of two linear maps stays what it was.

  norm -> linears  norm.weight /= s, norm.bias = (norm.bias - z) / s;  consumers: bias += W z, W *= s (column c by s_c)
  value -> o       value rows and their bias /= s;                     columns of o *= s
  up -> down       rows of up and their bias /= s;                     columns of down *= s
                   (up fused with the gate: its half of the rows)

The float side of a fold is stored in the checkpoint's dtype and would lose bits. A norm's weight is rounded first, and
the scale the consumers absorb is what the rounding left, s := w / w'; likewise z := b - s b'. So nothing is lost but
the rounding of int8 itself. Consumers are rounded once, from float32; their scales are kept beside the stored weight
until then, and the folded weight is made a few rows at a time: so no linear is ever held in float32, and what is
computed of it stays in the processor's cache.

A norm that stores w - 1 (Qwen3.5) gets w / s - 1. What always stays float and reads the same tensor, such as a router,
takes its scale by powers of two; behind a norm that stores w itself nothing at all is lost by that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.errors import QuantError
from .int8 import dtype_name

PART = 1 << 20  # numbers of a weight that are in float32 at a time: 4 MB, what a processor's cache holds


@dataclass
class FoldedLinear:
    """A linear whose weight is (weight * column / row), computed when asked for.

    weight: [O, I] in the checkpoint's dtype; bias: float32 [O] or None; column: float32 [I]; row: float32 [O].
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    column: Tensor | None = None
    row: Tensor | None = None

    def float(self, outputs: Tensor | slice = slice(None)) -> Tensor:
        """The folded weight in float32, all rows or the `outputs` asked for: [O', I]."""
        weight = self.weight[outputs].float()
        if self.column is not None:
            weight = weight * self.column
        return weight if self.row is None else weight / self.row[outputs, None]

    def parts(self) -> Iterator[Tensor]:
        """The folded weight in float32, rows by rows: [O', I] of at most PART numbers, but at least one row."""
        outputs, inputs = self.weight.shape
        step = max(1, PART // inputs)
        return (self.float(slice(start, start + step)) for start in range(0, outputs, step))

    def scale_columns(self, scale: Tensor, shift: Tensor | None = None) -> None:
        """Absorb what the input was divided by. scale [I], float32; shift [I] or None: what was subtracted from it
        before.
        """
        if shift is not None:
            moved = torch.cat([part @ shift for part in self.parts()])
            self.bias = moved if self.bias is None else self.bias + moved
        self.column = scale if self.column is None else self.column * scale

    def column_max(self) -> Tensor:
        """max over the outputs of |W_oc|, float32 [I]."""
        if self.row is None:
            largest = torch.maximum(self.weight.amax(0), -self.weight.amin(0)).float()
            return largest if self.column is None else largest * self.column
        return torch.stack([part.abs().amax(0) for part in self.parts()]).amax(0)

    def divide_rows(self, scale: Tensor, rows: slice | None = None) -> None:
        """Divide the outputs `rows` by `scale`, float32 [O']; None: the last ones, which are all of them, or the value
        rows of a fused q/k/v.
        """
        whole = torch.ones(len(self.weight), device=self.weight.device)
        whole[slice(-len(scale), None) if rows is None else rows] = scale
        self.row = whole if self.row is None else self.row * whole
        if self.bias is not None:
            self.bias = self.bias / whole


@dataclass
class FoldedNorm:
    """A norm's stored weight [C] and bias [C] (None for an RMSNorm), float32; dtype: what they are exported in; adds:
    what the norm adds to its weight before it multiplies by it.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    adds: float = 0.0

    def absorb(self, scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Divide the output by `scale` after subtracting `shift`; float32 [C]. Returns the scale and shift that the
        rounding left, which the consumers must take. A shift needs a bias: never call with one on an RMSNorm.

        Raises QuantError where the new bias does not fit the dtype.
        """
        before = self.weight + self.adds
        stored = (before / scale - self.adds).to(self.dtype).float()
        after = stored + self.adds
        # float16 can underflow or overflow: such a channel stays as it was.
        lost = (after == 0) & (before != 0) | ~torch.isfinite(after)
        stored = torch.where(lost, self.weight.to(self.dtype).float(), stored)
        after = stored + self.adds
        left = torch.where(after == 0, torch.where(lost, 1.0, scale), before / after)
        self.weight = stored
        if self.bias is None:
            return left, None
        bias = self.bias
        exact = (bias - (0 if shift is None else shift)) / left
        self.bias = exact.to(self.dtype).float()
        if torch.isfinite(exact).all() and not torch.isfinite(self.bias).all():
            raise QuantError(
                f"{self.name}.bias reaches {exact.abs().max().item():.3g} by smoothing,"
                f" {dtype_name(self.dtype)} ends at {torch.finfo(self.dtype).max:.5g};"
                " use --dtype bfloat16"
            )
        return left, bias - left * self.bias


def share_heads(per_column: Tensor, heads: int, kv_heads: int) -> Tensor:
    """[heads * d] -> [kv_heads * d]: the largest over the query heads that read one value head (grouped-query
    attention).
    """
    return per_column.view(kv_heads, heads // kv_heads, -1).amax(1).reshape(-1)


def spread_heads(per_value: Tensor, heads: int, kv_heads: int) -> Tensor:
    """[kv_heads * d] -> [heads * d]: each value head's entries for every query head that reads it."""
    return per_value.view(kv_heads, 1, -1).expand(-1, heads // kv_heads, -1).reshape(-1)


def power_of_two(scale: Tensor) -> Tensor:
    """The nearest power of two, scale > 0, float32 of any shape: dividing a float by it loses nothing. With any other
    scale a bfloat16 weight that is divided and stored again is off by 0.17 % (rms), tests/test_fold.py.
    """
    return torch.exp2(torch.round(torch.log2(scale)))
