"""What calibration has not shown: how large a channel may become on text that was not in it.

The largest |x_c| over n tokens grows with n, and on a few tokens most channels have not been seen at work: a scale
fitted to them makes room for what was there and clips the rest of the language. What is known besides is the size p_c
that the weights give a channel, and how far others went beyond theirs. With n different tokens seen,

    d    = DOUBT / (DOUBT + n)                                 doubt: 1 nothing was seen, 0 all
    A_c' = max(A_c, p_c * quantile_d over k of (A_k / p_k))    a channel is trusted to reach what others reached
    s_c' = s_c^(1 - d^2 / 3)                                   and what is folded stays nearer to 1

lo_c and hi_c grow as A_c does, max(hi_c, -lo_c). DOUBT, the quantile and the power were chosen on a real language model
(docs/accuracy.md): with a hundred photographs' prompts they keep smoothing from being worse than none, with a few
thousand words of text they take next to nothing from it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .stats import Stats

DOUBT = 2000.0  # different tokens after which as much is known as is not


@dataclass(frozen=True)
class Prior:
    """size: p, float32 [C], >= 0, in whatever unit; doubt: d, of 0 to 1."""

    size: Tensor
    doubt: float

    def widened(self, stats: Stats) -> Stats:
        """stats with lo and hi as far out as the channels may reach."""
        largest = torch.maximum(stats.hi, -stats.lo)
        tiny = torch.finfo(torch.float32).tiny
        size = self.size.clamp(min=tiny)
        reach = torch.maximum(largest, size * (largest / size).quantile(self.doubt)) / largest.clamp(min=tiny)
        reach = torch.where(largest > 0, reach, 1.0)  # a dead channel stays one
        return replace(stats, lo=stats.lo * reach, hi=stats.hi * reach)

    def damped(self, scale: Tensor) -> Tensor:
        """A scale, float32 [C], > 0, nearer to 1."""
        return scale ** (1 - self.doubt**2 / 3)


def doubt(tokens: int) -> float:
    """d of so many different tokens."""
    return DOUBT / (DOUBT + tokens)
