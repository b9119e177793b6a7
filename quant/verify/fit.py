"""How an exported weight relates to a source weight, when folding has scaled its rows and columns by factors that
nobody wrote down.

    E ~ diag(row) S diag(column)        E [O, I] exported (int8 codes times weight_scale, or float), S [O, I] of the source

Either factor follows from the other by least squares, over the elements of a row or of a column:
    row_o    = sum_i E_oi S_oi column_i / sum_i (S_oi column_i)^2
    column_i = sum_o E_oi S_oi row_o    / sum_o (S_oi row_o)^2
and what is left over is measured in steps, the distance of two neighbouring int8 codes: max_i |row_o S_oi column_i| / 127. Rounding leaves
0.29 steps (root mean square) and at most half a one. Matrices are gone through in chunks of rows, so that none is held in float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic.int8 import WEIGHT_MAX

TELLING = 2.0  # steps
CHUNK = 2**22  # elements held in float32 at a time
ITERATIONS = 3  # of the alternating fit; rows and columns are nearly independent, so it settles at once
ALIKE = 0.9  # share of E's energy that a fitted S must explain to be called the same matrix
PROBED_ROWS = 64  # on which a permutation is looked for


@dataclass
class Pair:
    """exported: int8 codes or floats [O, I]; scale: float32 [O, 1], or None beside floats; source: [O, I], any float
    dtype.
    """

    exported: Tensor
    scale: Tensor | None
    source: Tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, E, S) in float32, both fresh: to be written into at will."""
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
        """float32 [O]; 1 where the source's row is zero."""
        factors = []
        for _, exported, source in self.chunks():
            source.mul_(column)
            factors.append(_ratio((exported * source).sum(1), source.square().sum(1)))
        return torch.cat(factors)

    def column_sums(self, row: Tensor, column: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(sum_o E S row column, sum_o (S row column)^2, variance of the first from rounding), each float32 [I].

        With a column, over the elements of at least TELLING steps: smaller ones are rounded to nothing, all in the same
        direction.
        """
        width = self.source.shape[1]
        product, energy, noise = (torch.zeros(width, device=self.source.device) for _ in range(3))
        for rows, exported, source in self.chunks():
            source.mul_(row[rows, None])
            if column is not None:
                source.mul_(column)
            step = torch.maximum(source.amax(1, keepdim=True), -source.amin(1, keepdim=True)) / WEIGHT_MAX
            if column is not None:
                source.mul_(source.abs() >= TELLING * step)
            product += exported.mul_(source).sum(0)
            energy += source.square().sum(0)
            noise += source.mul_(step).square_().sum(0) / 12
        return product, energy, noise

    def column_factors(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """(what the columns of E miss diag(row) S diag(column) by, the standard deviation that rounding gives it), [I]
        each; (1, 1) where nothing in the column tells.
        """
        product, energy, noise = self.column_sums(row, column)
        return _ratio(product, energy), _ratio(noise.sqrt(), energy)

    def fit(self) -> tuple[Tensor, Tensor]:
        """(row [O], column [I]), the median of row being 1: whose factor is whose cannot be seen from the product."""
        row = torch.ones(len(self.source), device=self.source.device)
        for _ in range(ITERATIONS):
            product, energy, _ = self.column_sums(row)
            column = _ratio(product, energy)
            row = self.row_factors(column)
            middle = row.median()
            if middle > 0:
                row, column = row / middle, column * middle
        return row, column

    def residual(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, float]:
        """(root mean square per row, largest per row, both in steps, [O]; share of E's energy that is explained)."""
        rms, worst, left, energy = [], [], 0.0, 0.0
        for rows, exported, source in self.chunks():
            expected = source.mul_(column).mul_(row[rows, None])
            step = (torch.maximum(expected.amax(1), -expected.amin(1)) / WEIGHT_MAX).clamp(
                min=torch.finfo(torch.float32).tiny
            )
            error = expected.sub_(exported)
            worst.append(torch.maximum(error.amax(1), -error.amin(1)) / step)
            squares = error.square_().sum(1)
            rms.append((squares / error.shape[1]).sqrt() / step)
            left += squares.double().sum().item()
            energy += exported.square_().sum(1).double().sum().item()
        return torch.cat(rms), torch.cat(worst), 1 - left / energy if energy else 1.0


def _ratio(product: Tensor, energy: Tensor) -> Tensor:
    return torch.where(energy > 0, product / energy.clamp(min=torch.finfo(torch.float32).tiny), 1.0)


def identify(pair: Pair, column: Tensor, others: dict[str, Callable[[], Tensor]]) -> str | None:
    """What an exported weight that is not its source's is instead, in words; None when it resembles nothing.

    column: its expected column factors [I]; others: what it may have been confused with, description -> how to get the
    source's weight.
    """
    if pair.source.shape[0] == pair.source.shape[1] and _alike(Pair(pair.exported, pair.scale, pair.source.T)):
        return "the transpose of the source's"
    if (moved := _moved_rows(pair, column)) is not None:
        return moved
    for what, load in others.items():
        weight = load()
        if weight.shape == pair.source.shape and _alike(Pair(pair.exported, pair.scale, weight.to(pair.source.device))):
            return what
    return None


def _alike(pair: Pair) -> bool:
    return pair.residual(*pair.fit())[2] > ALIKE


def _moved_rows(pair: Pair, column: Tensor) -> str | None:
    """Whether the rows are the source's in another order, from the source row that each of some rows is most parallel
    to.
    """
    count = len(pair.source)
    probed = torch.linspace(0, count - 1, min(PROBED_ROWS, count), device=pair.source.device).round().long()
    rows = torch.nn.functional.normalize(pair.exported[probed].float(), dim=1)
    cosines = [rows @ torch.nn.functional.normalize(source * column, dim=1).T for _, _, source in pair.chunks()]
    cosine, found = torch.cat(cosines, 1).max(1)
    moved = (cosine > ALIKE) & (found != probed)
    if (cosine > ALIKE).float().mean() < ALIKE or not moved.any():
        return None
    first = int(moved.nonzero()[0])
    return (
        f"the source's with its rows in another order (row {int(probed[first])} is the source's row"
        f" {int(found[first])})"
    )
