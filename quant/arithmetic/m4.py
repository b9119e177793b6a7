"""m4: iterative smooth, the migration of SmoothQuant (Xiao et al., arXiv 2211.10438, equation 4), group after group.

    s_c = A_c^alpha / w_c^(1 - alpha)        A_c = max |x_c| over all samples, w_c = max over the group's rows of |W_oc|

Groups are taken in the order up -> down, value -> o, norm -> linears, each on the weights that the earlier folds left:
that is the iteration, and the calibrator's loop. A channel that was never active, or that no weight reads, keeps s_c =
1.
"""

import torch

from ..base.config import ALPHA
from .smoothing import Problem, Smoothing
from .stats import Stats


def migrated(problem: Problem, stats: Stats, alpha: float) -> Smoothing:
    """The formula, on these statistics."""
    largest = problem.share(torch.maximum(stats.hi, -stats.lo))
    weight = problem.share(problem.column_max)
    scale = largest**alpha / weight ** (1 - alpha)
    # Shared once more: torch's powers of equal numbers may differ in the last bit, by their place in a vector.
    return Smoothing(problem.share(torch.where((largest > 0) & (weight > 0), scale, 1.0)))


def solve(problem: Problem, alpha: float | None = None) -> Smoothing:
    """alpha: the migration strength in (0, 1); None takes config.ALPHA. Nothing where smoothing gains nothing."""
    strength = ALPHA if alpha is None else alpha
    return problem.settled(lambda stats: migrated(problem, stats, strength))
