"""What is remembered of an activation that a group of linears reads: per-channel minimum and maximum over all
calibration tokens, and a few of its rows.

Everything later is derived from these without another pass over the model: the range of a smoothed input (x - z) / s is
exactly min_c (lo_c - z_c) / s_c ... max_c (hi_c - z_c) / s_c, and the output error of a candidate is measured on the
rows. Minima and maxima do not depend on order; rows are drawn per sample by the sample's own seed and joined in the
samples' canonical order. So neither the order of the images nor their distribution over workers changes a bit.

Left out: histograms and second moments. Both would have to be taken after smoothing, in a second pass; the rows stand
in for them.
"""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.errors import SourceError

ROWS = 512  # rows kept over all samples


@dataclass
class Stats:
    """lo, hi: float32 [C]; rows: float32 [T, C]; count: tokens seen."""

    lo: Tensor
    hi: Tensor
    rows: Tensor
    count: int

    def smoothed(self, scale: Tensor, shift: Tensor | None = None) -> "Stats":
        """The statistics of (x - shift) / scale; scale, shift float32 [C], scale > 0."""
        lo, hi, rows = (x if shift is None else x - shift for x in (self.lo, self.hi, self.rows))
        return Stats(lo / scale, hi / scale, rows / scale, self.count)


class Observer:
    """Collects the Stats of one tensor, sample after sample, from any thread."""

    def __init__(self, name: str, channels: int, rows_per_sample: int, device: torch.device | str = "cpu"):
        self.name, self.rows_per_sample = name, rows_per_sample
        self.lo, self.hi = torch.full((2, channels), torch.inf, device=device) * torch.tensor(
            [[1.0], [-1.0]], device=device
        )
        self.rows: dict[int, Tensor] = {}
        self.count = 0
        self._lock = threading.Lock()

    def update(self, x: Tensor, number: int, seed: int) -> None:
        """x [..., C], any float dtype; number, seed: the sample's own. Raises SourceError when x holds NaN or Inf."""
        x = x.reshape(-1, x.shape[-1])
        lo, hi = x.amin(0).float(), x.amax(0).float()
        if not torch.isfinite(torch.stack([lo.min(), hi.max()])).all():
            channel = int((~torch.isfinite(hi - lo)).nonzero()[0])
            raise SourceError(
                f"the input of {self.name} holds NaN or Inf in channel {channel}; the checkpoint or the compute dtype"
                f" {x.dtype} is at fault"
            )
        picked = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: self.rows_per_sample]
        rows = x[picked.to(x.device)].clone()
        with self._lock:
            self.lo, self.hi = torch.minimum(self.lo, lo), torch.maximum(self.hi, hi)
            self.rows[number] = rows
            self.count += len(x)

    def stats(self) -> Stats:
        """Joins the rows in the samples' canonical order, whatever the order that they came in."""
        return Stats(self.lo, self.hi, torch.cat([rows for _, rows in sorted(self.rows.items())]).float(), self.count)
