"""What an outlier-suppression method is given and what it answers; the methods themselves are m2.py and m4.py, one
`solve` each.

The error by which candidates are judged is the group's own: the rows that were kept of its input, X [T, C], through its
linears in float and through the same linears as they will be exported,
    sum_l || X W_l^T - (q_x((X - z) / s) q_w(W_l s)^T + W_l z) ||^2,
with the quantizers of their scheme (schemes.py), and each weight rounded to the nearest code. Of large linears OUTPUTS
channels, evenly spaced, stand for all; rounding a channel does not depend on the others, so each of them is exact.

Nothing is judged on the samples that it was fitted to: s, z and the range come of one half of the samples, the error of
the rows of the other half, and both ways are summed. Where a group loses no less by what a method found than by being
left as it is, it is left.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .prior import Prior
from .ranges import activation_range
from .schemes import QuantizedLinear, StaticLinear
from .stats import Stats

OUTPUTS = 512  # output channels per linear on which a candidate is tried
CLEAR = 0.95  # of the error without smoothing: what smoothing must stay below to be worth it


@dataclass
class Smoothing:
    """scale: float32 [C], > 0, None where the group is left as it is; shift: float32 [C] or None."""

    scale: Tensor | None = None
    shift: Tensor | None = None

    def to(self, device: torch.device | str) -> "Smoothing":
        """The same on another device."""
        moved = [None if value is None else value.to(device) for value in (self.scale, self.shift)]
        return Smoothing(*moved)


Fit = Callable[[Stats], Smoothing]  # the statistics of some samples -> what a method makes of them


@dataclass
class Problem:
    """One group, as a method sees it.

    stats: of the input; weight: float32 [O, C], the folded weights of its linears one below the other, of each all or
    OUTPUTS of their rows; column_max: float32 [C], the largest |W_oc| over all rows of all linears; share: [C] -> [C],
    the largest over the columns that must have one scale (grouped-query attention), the identity elsewhere; may_shift:
    whether the source has a bias that can carry a shift; act_method: ranges.py's; scheme: what the linears become;
    prior: what to expect of samples that were not seen, None to take the statistics as all there is.
    """

    stats: Stats
    weight: Tensor
    column_max: Tensor
    share: Callable[[Tensor], Tensor]
    may_shift: bool
    act_method: int
    scheme: type[QuantizedLinear] = StaticLinear
    prior: Prior | None = None
    _products: dict[int, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def settled(self, fit: Fit) -> Smoothing:
        """What `fit` makes of all samples; nothing where that is not clearly better than nothing."""
        left = self.error(lambda stats: Smoothing())
        return self._apply(fit, self.stats)[0] if self.error(fit) < CLEAR * left else Smoothing()

    def error(self, fit: Fit) -> Tensor:
        """The formula above, a scalar, over the rows of each half by what `fit` makes of the other half; of one sample,
        which has no halves, by what it makes of it.
        """
        return torch.stack([self._error(number, *fold, fit) for number, fold in enumerate(self._folds)]).sum()

    @cached_property
    def _folds(self) -> list[tuple[Stats, Tensor]]:
        """(statistics to fit to, rows to judge on)"""
        if not self.stats.halves:
            return [(self.stats, self.stats.rows)]
        even, odd = self.stats.halves
        return [(odd, even.rows), (even, odd.rows)]

    def _apply(self, fit: Fit, stats: Stats) -> tuple[Smoothing, Stats]:
        """(what `fit` makes of the statistics, the statistics that the range is then taken from)"""
        if self.prior is None:
            return fit(stats), stats
        widened = self.prior.widened(stats)
        found = fit(widened)
        return (
            (found, stats) if found.scale is None else (Smoothing(self.prior.damped(found.scale), found.shift), widened)
        )

    def _error(self, number: int, stats: Stats, rows: Tensor, fit: Fit) -> Tensor:
        found, reach = self._apply(fit, stats)
        scale, shift = torch.ones_like(stats.lo) if found.scale is None else found.scale, found.shift
        smoothed, weight = reach.smoothed(scale, shift), self.weight * scale
        range_ = activation_range(smoothed, [weight], self.act_method) if self.scheme.needs_range else None
        moved = rows if shift is None else rows - shift
        product = self.scheme.trial(moved / scale, weight, range_)
        return product.sub_(self._exact(number, moved, shift)).square_().sum()

    def _exact(self, number: int, moved: Tensor, shift: Tensor | None) -> Tensor:
        """(X - z) W^T, [T, O]; the last is kept, since the candidates of a method share the shift."""
        known = self._products.get(number)
        if known is None or (
            known[0] is not shift and (known[0] is None or shift is None or not known[0].equal(shift))
        ):
            known = self._products[number] = (shift, moved @ self.weight.T)
        return known[1]


def some_outputs(count: int, device) -> Tensor:
    """At most OUTPUTS evenly spaced indices out of `count`, ascending: int64 [min(OUTPUTS, count)]."""
    return torch.linspace(0, count - 1, min(OUTPUTS, count), device=device).round().long()
