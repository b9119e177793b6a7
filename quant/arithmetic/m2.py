"""m2: threshold migration, after Outlier Suppression+ (Wei et al., arXiv 2304.09145, section 4).

    s_c(t) = max(1, hi_c / t, lo_c / -t)            what exceeds the threshold t is scaled down to it, the rest stays
    z_c    = (hi_c + lo_c) / 2                       optional, where a LayerNorm can carry it

t runs from the largest |x| (s = 1, nothing changes) downward; taken is the (t, with or without z) whose output error is
least. Statistics come from all samples; the paper's loss runs the attention too, ours ends at the group's outputs
(smoothing.py).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .smoothing import Fit, Problem, Smoothing
from .stats import Stats

THRESHOLDS = 32  # from the largest channel's |x| down to the median channel's, in equal ratios
STRIDE = 4  # every fourth is tried, then those between the best of them and its neighbours


def threshold_scale(lo: Tensor, hi: Tensor, threshold: Tensor) -> Tensor:
    """s_c(t): lo, hi [C] and a scalar t > 0 -> [C]."""
    return torch.maximum(hi / threshold, lo / -threshold).clamp(min=1.0)


def candidate(problem: Problem, stats: Stats, shifted: bool, step: int) -> Smoothing:
    """The smoothing of these statistics with the step-th threshold, 0 the largest, and with or without the shift."""
    lo, hi = stats.lo, stats.hi
    shift = (hi + lo) / 2 if shifted else None
    low, high = (lo, hi) if shift is None else (lo - shift, hi - shift)
    low, high = -problem.share(-low), problem.share(high)
    largest = torch.maximum(high, -low)
    top = largest.max().clamp(min=torch.finfo(torch.float32).tiny)
    ratio = (largest.median() / top).clamp(min=1e-3) ** (step / (THRESHOLDS - 1))
    return Smoothing(threshold_scale(low, high, top * ratio), shift)


def search(problem: Problem) -> Fit:
    """The threshold, and with a LayerNorm the shift, with the least output error; of equals the first."""
    errors: dict[tuple[bool, int], float] = {}

    def best(shifted: bool, steps: Iterable[int]) -> tuple[bool, int]:
        """The place with the least error of all so far, with these steps tried, too."""
        for place in ((shifted, step) for step in steps if 0 <= step < THRESHOLDS):
            if place not in errors:
                errors[place] = problem.error(at(*place)).item()
        return min(errors, key=lambda place: (errors[place], place))

    def at(shifted: bool, step: int) -> Fit:
        return lambda stats: candidate(problem, stats, shifted, step)

    for tried in (False, True) if problem.may_shift else (False,):
        shifted, step = best(tried, [*range(0, THRESHOLDS, STRIDE), THRESHOLDS - 1])
    return at(*best(shifted, range(step - STRIDE + 1, step + STRIDE)))


def solve(problem: Problem, alpha: float | None = None) -> Smoothing:
    """The best threshold's, or nothing where that gains nothing. `alpha` is m4's and has no meaning here."""
    return problem.settled(search(problem))
