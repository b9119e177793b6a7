"""How an exported weight relates to a source weight, when folding has scaled its rows and columns by factors that
nobody wrote down.

    E ~ diag(row) S diag(column)        E [O, I] exported (int8 codes times weight_scale, or float), S [O, I] the source

Either factor follows from the other by least squares, over the elements of a row or of a column:
    row_o    = sum_i E_oi S_oi column_i / sum_i (S_oi column_i)^2
    column_i = sum_o E_oi S_oi row_o    / sum_o (S_oi row_o)^2
and what is left over is measured in steps, the distance of two neighbouring int8 codes: max_i |row_o S_oi column_i| /
127. Rounding leaves 0.29 steps (root mean square) and at most half a one. Matrices are gone through in chunks of rows,
so that none is held in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic.int8 import WEIGHT_MAX

NOISE = 6.0  # how many standard deviations a sum of rounding errors may be off
LEAST_STEPS = 2.0  # of an element that a column's factor is fitted to
CHUNK = 2**22  # elements held in float32 at a time
TINY = torch.finfo(torch.float32).tiny


@dataclass
class WeightPair:
    """One linear's weight, as exported and in the source, on one device.

    exported: int8 codes or floats [O, I]; scale: float32 [O, 1], None where `exported` holds floats; source: [O, I],
    any float dtype.
    """

    exported: Tensor
    scale: Tensor | None
    source: Tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, E, S) of some rows at a time, float32 [rows, I], both fresh: to be written into at will."""
        height = max(1, CHUNK // self.source.shape[1])
        for start in range(0, len(self.source), height):
            rows = slice(start, start + height)
            exported = self.exported[rows].to(torch.float32, copy=True)
            yield (
                rows,
                exported if self.scale is None else exported.mul_(self.scale[rows]),
                self.source[rows].to(torch.float32, copy=True),
            )

    def row_factors(self, column: Tensor) -> Tensor:
        """The row factors that fit these column factors [I]; float32 [O], 1 where the source's row is zero."""
        factors = []
        for _, exported, source in self.chunks():
            source.mul_(column)
            factors.append(_ratio((exported * source).sum(1), source.square().sum(1)))
        return torch.cat(factors)

    def column_factors(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """By what factor the columns of E miss diag(row) S diag(column), and the standard deviation that rounding gives
        that factor; float32 [I] each, (1, 1) where no element of the column is large enough to say.

        Only elements of at least LEAST_STEPS count: smaller ones are rounded to nothing, all in the same direction.
        """
        product, energy, noise = (torch.zeros_like(column) for _ in range(3))
        for rows, exported, source in self.chunks():
            source.mul_(row[rows, None]).mul_(column)
            step = torch.maximum(source.amax(1, keepdim=True), -source.amin(1, keepdim=True)) / WEIGHT_MAX
            source.mul_(source.abs() >= LEAST_STEPS * step)
            product += exported.mul_(source).sum(0)
            energy += source.square().sum(0)
            noise += source.mul_(step).square_().sum(0) / 12  # the variance of rounding is step^2 / 12
        return _ratio(product, energy), _ratio(noise.sqrt(), energy)

    def residual(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """What diag(row) S diag(column) leaves of each row of E: (root mean square, largest), in steps, float32 [O]."""
        rms, worst = [], []
        for rows, exported, source in self.chunks():
            expected = source.mul_(column).mul_(row[rows, None])
            step = (torch.maximum(expected.amax(1), -expected.amin(1)) / WEIGHT_MAX).clamp(min=TINY)
            error = expected.sub_(exported)
            worst.append(torch.maximum(error.amax(1), -error.amin(1)) / step)
            rms.append(error.square_().mean(1).sqrt() / step)
        return torch.cat(rms), torch.cat(worst)


def half_step(stored: Tensor) -> Tensor:
    """The most that rounding to its dtype can have moved what `stored` holds, any shape -> float32 of that shape:

    |round(v) - v| <= eps / 2 * max(|v|, smallest normal number)        eps: 2^-7 in bfloat16, 2^-10 in float16
    """
    limits = torch.finfo(stored.dtype)
    return stored.float().abs().clamp(min=limits.smallest_normal) * (limits.eps / 2)


def _ratio(product: Tensor, energy: Tensor) -> Tensor:
    return torch.where(energy > 0, product / energy.clamp(min=TINY), 1.0)
