"""m2: threshold migration, after Outlier Suppression+ (Wei et al., arXiv 2304.09145, section 4).

    s_c(t) = max(1, hi_c / t, lo_c / -t)            what exceeds the threshold t is scaled down to it, the rest is left alone
    z_c    = (hi_c + lo_c) / 2                       optional, where a LayerNorm can carry it

t runs from the largest |x| (s = 1, nothing changes) downward; taken is the (t, with or without z) whose output error is least.
Statistics come from all samples; the paper's loss runs the attention too, ours ends at the group's outputs (smoothing.py).
"""
import torch
from torch import Tensor

from .smoothing import Problem, Smoothing

THRESHOLDS = 32  # tried from the largest channel's |x| down to the median channel's, in equal ratios


def threshold_scale(lo: Tensor, hi: Tensor, threshold: Tensor) -> Tensor:
    """s_c(t): lo, hi [C] and a scalar t > 0 -> [C]."""
    return torch.maximum(hi / threshold, lo / -threshold).clamp(min=1.0)


def solve(problem: Problem, alpha: float | None = None) -> Smoothing:
    """The threshold, and with a LayerNorm the shift, with the least output error. `alpha` is m4's and has no meaning here."""
    lo, hi = problem.stats.lo, problem.stats.hi
    shifts = [None, (hi + lo) / 2] if problem.may_shift else [None]
    best, least = None, None
    for shift in shifts:
        low, high = (lo, hi) if shift is None else (lo - shift, hi - shift)
        low, high = -problem.share(-low), problem.share(high)
        largest = torch.maximum(high, -low)
        top, bottom = largest.max(), largest.median()
        if top <= 0:  # nothing but zeros
            continue
        ratio = (bottom / top).clamp(min=1e-3) ** (1 / (THRESHOLDS - 1))
        for step in range(THRESHOLDS):
            candidate = Smoothing(threshold_scale(low, high, top * ratio**step), shift)
            error = problem.error(candidate)
            if least is None or error < least:
                best, least = candidate, error
    return best or Smoothing(torch.ones_like(lo))
