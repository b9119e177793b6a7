"""What an outlier-suppression method is given and what it answers; the methods themselves are m2.py and m4.py, one
`solve` each.

The error by which candidates are judged is the group's own: the rows that were kept of its input, X [T, C], through its
linears in float and through the same linears as they will be exported,
    sum_l || X W_l^T - (q_x((X - z) / s) q_w(W_l s)^T + W_l z) ||^2,
with the quantizers of their scheme (schemes.py), and each weight rounded to the nearest code. Of large linears OUTPUTS
channels, evenly spaced, stand for all; rounding a channel does not depend on the others, so each of them is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranges import activation_range
from .schemes import QuantizedLinear, StaticLinear
from .stats import Stats

OUTPUTS = 512  # output channels per linear on which a candidate is tried
MANY = 8  # linears of one group that each have so many


@dataclass
class Smoothing:
    """scale: float32 [C], > 0; shift: float32 [C] or None."""

    scale: Tensor
    shift: Tensor | None = None

    def to(self, device: torch.device | str) -> "Smoothing":
        """The same on another device."""
        return Smoothing(self.scale.to(device), None if self.shift is None else self.shift.to(device))


@dataclass
class Problem:
    """One group, as a method sees it.

    stats: of the input; weight: float32 [O, C], the folded weights of its linears one below the other, of each all or
    OUTPUTS of their rows; column_max: float32 [C], the largest |W_oc| over all rows of all linears; share: [C] -> [C],
    the largest over the columns that must have one scale (grouped-query attention), the identity elsewhere; may_shift:
    whether the source has a bias that can carry a shift; act_method: ranges.py's; scheme: what the linears become.
    """

    stats: Stats
    weight: Tensor
    column_max: Tensor
    share: Callable[[Tensor], Tensor]
    may_shift: bool
    act_method: int
    scheme: type[QuantizedLinear] = StaticLinear
    _shift: Tensor | None = None
    _product: Tensor | None = None

    def error(self, smoothing: Smoothing) -> Tensor:
        """The formula above, a scalar."""
        stats, weight = self.stats.smoothed(smoothing.scale, smoothing.shift), self.weight * smoothing.scale
        range_ = activation_range(stats, [weight], self.act_method) if self.scheme.needs_range else None
        product = self.scheme.trial(stats.rows, weight, range_)
        return product.sub_(self._exact(smoothing.shift)).square_().sum()

    def _exact(self, shift: Tensor | None) -> Tensor:
        """(X - z) W^T, [T, O]; kept, since the candidates of a method share the shift."""
        if self._product is None or self._shift is not shift:
            rows = self.stats.rows if shift is None else self.stats.rows - shift
            self._shift, self._product = shift, rows @ self.weight.T
        return self._product


def some_outputs(count: int, device, linears: int = 1) -> Tensor:
    """At most OUTPUTS evenly spaced indices out of `count`, ascending: int64 [min(OUTPUTS, count)]. linears: how many
    are tried together; of MANY or more, the experts of a block, all share what MANY would have.
    """
    most = OUTPUTS if linears <= MANY else max(1, OUTPUTS * MANY // linears)
    return torch.linspace(0, count - 1, min(most, count), device=device).round().long()
