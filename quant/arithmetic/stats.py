"""What is remembered of an activation that a group of linears reads: per-channel minimum and maximum over all
calibration tokens, a few of its rows, and where a rounding needs them its second moments.

Everything later is derived from these without another pass over the model: the range of a smoothed input (x - z) / s is
exactly min_c (lo_c - z_c) / s_c ... max_c (hi_c - z_c) / s_c, and the output error of a candidate is measured on the
rows. Minima and maxima do not depend on order; rows are drawn per sample by the sample's own seed and joined in the
samples' canonical order; second moments are added as integers. So neither the order of the images nor their
distribution over workers changes a bit.

Left out: histograms, which would have to be taken after smoothing, in a second pass; the rows stand in for them.
"""

import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base.errors import SourceError

ROWS = 512  # rows kept over all samples, rounded up to as many for each
COARSE, FINE = 2.0**8, 2.0**-32  # units of the two whole numbers that a sum of products is kept as
MOST = 2.0**54  # what one sample's sum may reach: 2^16 samples of it fit 63 bits in units of COARSE
SLAB = 1 << 23  # products in float64 at a time: 64 MB


@dataclass(frozen=True)
class Moments:
    """Second moments of (x - shift) / scale, by the sums that Observer keeps of x; made when they are asked for, so
    that trying many scales costs nothing. sums: int64 [2, C + 1, C + 1]; scale, shift: float32 [C] or None.
    """

    sums: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None

    def smoothed(self, scale: Tensor, shift: Tensor | None) -> "Moments":
        """Those of ((x - self.shift) / self.scale - shift) / scale."""
        if shift is not None:
            shift = shift if self.scale is None else shift * self.scale
            shift = shift if self.shift is None else shift + self.shift
        else:
            shift = self.shift
        return Moments(self.sums, scale if self.scale is None else scale * self.scale, shift)

    def matrix(self) -> Tensor:
        """E[x x^T] of what was smoothed, float64 [C, C].

        With a shift, E[(x - z)(x - z)^T] = E[x x^T] - E[x] z^T - z E[x]^T + z z^T.
        """
        sums = self.sums[0].double().mul_(COARSE).add_(self.sums[1].double().mul_(FINE))
        sums /= sums[-1, -1].clone()  # the number of tokens
        second, mean = sums[:-1, :-1], sums[:-1, -1]
        if self.shift is not None:
            shift = self.shift.to(second.device, torch.float64)
            crossed = torch.outer(mean, shift)
            second = second - crossed - crossed.T + torch.outer(shift, shift)
        if self.scale is None:
            return second
        scale = self.scale.to(second.device, torch.float64)
        return second / scale / scale[:, None]


@dataclass
class Stats:
    """lo, hi: float32 [C]; rows: float32 [T, C]; count: tokens seen; moments: None unless a rounding asked for them.

    halves: the same of every other sample, and of the samples between: what is fitted to one half is judged on the
    other. Empty where one half has no sample.
    """

    lo: Tensor
    hi: Tensor
    rows: Tensor
    count: int
    moments: Moments | None = None
    halves: tuple["Stats", ...] = ()

    def smoothed(self, scale: Tensor, shift: Tensor | None = None) -> "Stats":
        """The statistics, without halves, of (x - shift) / scale; scale, shift float32 [C], scale > 0."""
        lo, hi, rows = (x if shift is None else x - shift for x in (self.lo, self.hi, self.rows))
        moments = self.moments and self.moments.smoothed(scale, shift)
        return Stats(lo / scale, hi / scale, rows / scale, self.count, moments)


class Observer:
    """Collects the Stats of one tensor, sample after sample, from any thread.

    moments: None, or int64 [2, C + 1, C + 1], the sum over tokens of (x, 1)(x, 1)^T; ranks add theirs. A sample's sum
    is taken in float64 and split into whole numbers, COARSE * a + FINE * b with 0 <= b <= COARSE / FINE, and those are
    added: in whatever order, the result is the same bit for bit. What is lost is at most FINE / 2 a sample. No
    overflow: a sample's sum is refused from MOST = 2^54 on (65504^2 over 4 million tokens), so |a| <= 2^46 and
    b <= 2^40, and 2^16 samples stay below 2^63. It takes 16 bytes for each pair of channels: 0.2 GB for 3584 channels,
    5.7 GB for 18944.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        rows_per_sample: int,
        device: torch.device | str = "cpu",
        second_moments: bool = False,
    ):
        self.name, self.rows_per_sample = name, rows_per_sample
        self.lo = torch.full((2, channels), torch.inf, device=device)  # of the samples with even and with odd numbers
        self.hi = -self.lo
        self.rows: dict[int, Tensor] = {}
        self.count = 0
        self.moments: Tensor | None = None
        if second_moments:
            place = "cpu" if torch.device(device).type == "npu" else device  # which has no float64
            self.moments = torch.zeros(2, channels + 1, channels + 1, dtype=torch.int64, device=place)
        self._lock = threading.Lock()

    def update(self, x: Tensor, number: int, seed: int, rows: Tensor | None = None) -> None:
        """x [..., C], any float dtype; number, seed: the sample's own; rows: those to keep, int64, None for
        rows_per_sample of them drawn by the seed. Raises SourceError when x holds NaN or Inf.
        """
        x = x.reshape(-1, x.shape[-1])
        lo, hi = x.amin(0).float(), x.amax(0).float()
        if not torch.isfinite(torch.stack([lo.min(), hi.max()])).all():
            channel = int((~torch.isfinite(hi - lo)).nonzero()[0])
            raise SourceError(
                f"the input of {self.name} holds NaN or Inf in channel {channel}; the checkpoint or the compute dtype"
                f" {x.dtype} is at fault"
            )
        if rows is None:
            rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: self.rows_per_sample]
        kept, half = x[rows.to(x.device)].clone(), _sample(number) % 2
        if self.moments is not None:
            self._add_products(x, self.moments)
        with self._lock:
            self.lo[half], self.hi[half] = torch.minimum(self.lo[half], lo), torch.maximum(self.hi[half], hi)
            self.rows[number] = kept
            self.count += len(x)

    def _add_products(self, x: Tensor, moments: Tensor) -> None:
        """(x, 1)^T (x, 1) into `moments`, some channels at a time."""
        exact = x.to(moments.device).double()
        exact = torch.cat([exact, exact.new_ones(len(exact), 1)], 1)
        step = max(1, SLAB // exact.shape[1])
        for start in range(0, exact.shape[1], step):
            sums = exact[:, start : start + step].T @ exact
            if not sums.abs().max() < MOST:
                raise SourceError(
                    f"the input of {self.name}: the sum of its products reaches {sums.abs().max().item():.3g},"
                    f" {MOST:.3g} is the most that can be kept exactly; use --w_method nearest"
                )
            coarse = torch.floor(sums / COARSE)
            fine = torch.round(sums.sub_(coarse * COARSE) / FINE)
            with self._lock:
                moments[0, start : start + step] += coarse.long()
                moments[1, start : start + step] += fine.long()

    def stats(self) -> Stats:
        """Joins the rows in the samples' canonical order, whatever the order that they came in."""
        ordered = sorted(self.rows.items())
        moments = None if self.moments is None else Moments(self.moments)
        halves = []
        for half in (0, 1):
            parts = [rows for number, rows in ordered if _sample(number) % 2 == half]
            if parts:
                joined = torch.cat(parts).float()
                halves.append(Stats(self.lo[half], self.hi[half], joined, len(joined)))
        rows = torch.cat([rows for _, rows in ordered]).float()
        whole = Stats(self.lo.amin(0), self.hi.amax(0), rows, self.count, moments)
        return replace(whole, halves=tuple(halves)) if len(halves) == 2 else whole


def _sample(number) -> int:
    """The sample's number, of a key (sample, pass) as well."""
    return number[0] if isinstance(number, tuple) else number
