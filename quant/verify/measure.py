"""One linear beside its float original: rounded afresh, watched while the float model runs, and how far it is off.

Errors of a tensor against the float model's, both averaged over tokens, so that no token with a large norm hides the
others:

    snr     -10 log10( mean_t |y'_t - y_t|^2 / |y_t|^2 ), dB
    cosine  mean_t cos(y'_t, y_t)
"""

import math

import torch
from torch import Tensor

from ..arithmetic.int8 import ACT_MAX, ACT_MIN
from ..arithmetic.schemes import QuantizedLinear, StaticLinear
from ..arithmetic.stats import Observer, Stats
from ..export.reader import Export
from ..model.streamed import StreamedModel
from .linear import Relation

EQUAL = 1e-20  # least error, relative to the energy, that is told from none


def rounded_linear(
    name: str, model: StreamedModel, relation: Relation, stats: Stats, export: Export
) -> "RoundedLinear":
    """The source's linear, rounded as such an export would have to be, on the range that was seen."""
    stored, its_bias = model.weights(name)
    weight, bias = stored.float(), None if its_bias is None else its_bias.float()
    shift = torch.zeros_like(relation.column) if relation.shift is None else relation.shift
    if relation.shift is not None:
        bias = weight @ shift if bias is None else bias + weight @ shift
    smoothed, scheme = stats.smoothed(relation.column, shift), export.scheme(name)
    range_ = (smoothed.lo.min(), smoothed.hi.max()) if scheme.needs_range else None
    linear = scheme.quantize(name, weight * relation.column, bias, range_, export.dtype)
    return RoundedLinear(linear, relation.column, shift)


class RoundedLinear:
    """A QuantizedLinear that folds its input itself, so that it stands in the model that was not folded."""

    def __init__(self, linear: QuantizedLinear, column: Tensor, shift: Tensor):
        self.name, self.linear, self.column, self.shift = linear.name, linear, column, shift

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear((x.float() - self.shift) / self.column).to(x.dtype)


class Watch(Observer):
    """A hook on the first of a group's linears in the float model: Stats of what they read, and the share of it, folded
    as the export folds it, that the export's int8 codes do not reach. Not of the export's own activations: one bad
    linear would clip in all that follow.
    """

    def __init__(
        self, name: str, relations: dict[str, Relation], integer: dict[str, QuantizedLinear], rows_per_sample: int
    ):
        column = relations[name].column
        super().__init__(name, len(column), rows_per_sample, column.device)
        self.relation, self.linear, self.clipped, self.values = relations[name], integer[name], 0, 0
        self.covered: tuple[float, float] | None = None  # of a linear whose server scales every token by itself
        if isinstance(self.linear, StaticLinear):
            scale, offset = self.linear.input_scale.item(), self.linear.input_offset.item()
            self.covered = ((ACT_MIN - offset) * scale, (ACT_MAX - offset) * scale)

    def __call__(self, module, args: tuple[Tensor]) -> None:
        self.update(args[0], number=len(self.rows), seed=self.values)
        self.values += args[0].numel()
        if self.covered is None or not isinstance(self.linear, StaticLinear):
            return
        lo, hi = self.lo.amin(0), self.hi.amax(0)
        so_far = Stats(lo, hi, lo[None], self.count).smoothed(self.relation.column, self.relation.shift)
        if so_far.lo.min() < self.covered[0] or so_far.hi.max() > self.covered[1]:
            x = (args[0].float() - (0 if self.relation.shift is None else self.relation.shift)) / self.relation.column
            codes = torch.round(x / self.linear.input_scale + self.linear.input_offset)
            self.clipped += int(((codes < ACT_MIN) | (codes > ACT_MAX)).sum())

    @property
    def clipped_share(self) -> float:
        """Share of the values seen so far that the codes do not reach, 0 to 1."""
        return self.clipped / self.values


def fidelity(expected: list[Tensor], got: list[Tensor]) -> dict[str, float]:
    """{"snr_db", "cosine"} over the tokens of all samples; tensors [..., width], one shape each pair. Equal tensors
    have 200 dB.
    """
    ratio, cosine, tokens = 0.0, 0.0, 0
    for wanted, other in zip(expected, got):
        wanted, other = (x.reshape(-1, x.shape[-1]).float() for x in (wanted, other))
        energy = wanted.square().sum(1)
        ratio += ((other - wanted).square().sum(1) / energy.clamp(min=1e-6 * energy.mean())).double().sum().item()
        cosine += torch.nn.functional.cosine_similarity(wanted, other, dim=1).double().sum().item()
        tokens += len(wanted)
    return {
        "snr_db": -10 * math.log10(max(ratio / tokens, EQUAL)) if math.isfinite(ratio) else math.nan,
        "cosine": cosine / tokens,
    }
