"""auto: of all that m2 and m4 would do to a group, what loses least on samples that it was not fitted to; or nothing.

m2    its thresholds, with a LayerNorm with and without the shift
m4    its scale at migration strengths from 0.3 to 0.95
"""

from .m2 import search
from .m4 import migrated
from .smoothing import Fit, Problem, Smoothing

STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # alpha


def solve(problem: Problem, alpha: float | None = None) -> Smoothing:
    """The best of the candidates, nothing where none gains clearly. `alpha` is m4's and has no meaning here."""

    def with_strength(strength: float) -> Fit:
        return lambda stats: migrated(problem, stats, strength)

    candidates = [search(problem), *map(with_strength, STRENGTHS)]
    errors = [problem.error(candidate).item() for candidate in candidates]
    return problem.settled(candidates[errors.index(min(errors))])
