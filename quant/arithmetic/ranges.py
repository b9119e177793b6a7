"""The range [lo, hi] that a tensor's int8 codes cover (act_method).

1 min-max    what was seen.
2 histogram  the clip lo_r = r lo, hi_r = r hi whose expected output error is least:
                 E(r) = sum_c e_c E[(x_c - q_r(x_c))^2],  e_c = sum_o W_oc^2
             (rounding errors of channels taken as uncorrelated), the expectation over a histogram of x weighted by e_c.
             The extremes of every channel are counted as two further tokens: clipping them must never look free because
             no sampled row happened to hold them.
3 automatic  of the two ranges the one with the smaller output error on the sampled rows, the extremes among them.

Left out: clipping the two sides independently; on the models tried, plain mean-square clipping was worse than min-max,
and a finer search has more ways to be wrong.
"""

import torch
from torch import Tensor

from .int8 import fake_quantize_input, input_scale_offset
from .stats import Stats

BINS = 4096
CLIPS = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3]


def minmax_range(stats: Stats) -> tuple[Tensor, Tensor]:
    """(lo, hi) over all channels, float32 scalars."""
    return stats.lo.min(), stats.hi.max()


def histogram_range(stats: Stats, energy: Tensor) -> tuple[Tensor, Tensor]:
    """(lo, hi), float32 scalars: the clip with the least expected error. energy: e_c of the formula, float32 [C]."""
    lo, hi = minmax_range(stats)
    width = ((hi - lo) / BINS).clamp(min=torch.finfo(torch.float32).tiny)
    mass = torch.zeros(BINS, device=lo.device)
    for x, tokens in ((stats.rows, stats.count / len(stats.rows)), (torch.stack([stats.lo, stats.hi]), 1.0)):
        bins = ((x - lo) / width).long().clamp_(0, BINS - 1)
        mass += torch.bincount(bins.flatten(), weights=(energy * tokens).expand_as(x).flatten(), minlength=BINS).float()
    centers = lo + (torch.arange(BINS, device=lo.device) + 0.5) * width
    errors = []
    for clip in CLIPS:
        scale, offset = input_scale_offset(lo * clip, hi * clip)
        errors.append((mass * (centers - fake_quantize_input(centers, scale, offset)) ** 2).sum())
    best = CLIPS[int(torch.stack(errors).argmin())]
    return lo * best, hi * best


def activation_range(stats: Stats, weights: list[Tensor], method: int) -> tuple[Tensor, Tensor]:
    """stats of the input that `weights`, each float32 [O, C], read -> scalars lo, hi."""
    if method == 1:
        return minmax_range(stats)
    weight = torch.cat(weights)
    clipped = histogram_range(stats, weight.square().sum(0))
    if method == 2:
        return clipped
    x = torch.cat([stats.rows, stats.lo[None], stats.hi[None]])
    errors = []
    for lo, hi in (minmax_range(stats), clipped):
        rounded = fake_quantize_input(x, *input_scale_offset(lo, hi))
        errors.append(((x - rounded) @ weight.T).square().sum())
    return clipped if errors[1] < errors[0] else minmax_range(stats)
