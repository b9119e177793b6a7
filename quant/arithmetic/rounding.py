"""From a weight and its scale to int8 codes (w_method). A rounding is made for one input, from the second moments
E[x x^T] of what the linear reads if it needs them, and called with rows of the weight, any number at a time.

nearest  q = clamp(round(W / scale), -127, 127)
gptq     Frantar et al., arXiv 2210.17323: the columns are rounded one after the other, in the order that they have; the
         error of each is made up for by those after it, so that the output on such inputs moves least:

             e_i = (w_i - scale q_i) / U_ii,    w_j -= e_i U_ij for all j > i,    U^T U = (H + d I)^-1

         U upper triangular, H = E[x x^T], d = DAMPING times the mean of its diagonal. The scale is the one per output
         channel, fixed before. BLOCK columns are done at a time; what they leave to those behind is one product.

The factor is computed in float64 where the moments are, the weights in float32. Left out: the order by falling diagonal
(the paper's "act-order"), and roundings of the activation in H.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from ..base.errors import QuantError
from .int8 import WEIGHT_MAX, quantize_weight, refuse_not_finite, weight_scale

BLOCK = 128
DAMPING = 0.01


class Rounding(Protocol):
    """weight float32 [O', I], scale float32 [O', 1] -> int8 [O', I]."""

    def __call__(self, weight: Tensor, scale: Tensor) -> Tensor: ...


class Nearest:
    """Each weight to the nearest code."""

    needs_moments = False

    def __init__(self, name: str = "", moments: Tensor | None = None):
        pass

    def __call__(self, weight: Tensor, scale: Tensor) -> Tensor:
        return quantize_weight(weight, scale)


class Gptq:
    """moments: E[x x^T], float64 [I, I]; name: of a linear that reads x, for errors."""

    needs_moments = True

    def __init__(self, name: str, moments: Tensor):
        self.factor = _factor(name, moments)

    def __call__(self, weight: Tensor, scale: Tensor) -> Tensor:
        factor = self.factor.to(weight.device)
        left, codes = weight.clone(), torch.empty_like(weight, dtype=torch.int8)
        for start in range(0, weight.shape[1], BLOCK):
            stop = min(start + BLOCK, weight.shape[1])
            errors = torch.empty_like(left[:, start:stop])
            for column in range(start, stop):
                exact = left[:, column : column + 1]
                rounded = exact.div(scale).round_().clamp_(-WEIGHT_MAX, WEIGHT_MAX)
                codes[:, column : column + 1] = rounded.to(torch.int8)
                error = exact.sub(rounded.mul_(scale)).div_(factor[column, column])
                errors[:, column - start : column - start + 1] = error
                left[:, column + 1 : stop] -= error * factor[column, column + 1 : stop]
            left[:, stop:] -= errors @ factor[start:stop, stop:]
        return codes


def round_weight(
    name: str,
    weight: Tensor | Iterable[Tensor],
    rounding: Rounding,
    fit: Callable[[Tensor], Tensor] = lambda scale: scale,
) -> tuple[Tensor, Tensor]:
    """(codes int8 [O, I], scales float32 [O, 1]) of a weight float32 [O, I], whole or as parts [O', I] that follow each
    other. fit: scales -> the scales to take in their place.

    Raises QuantError, with the linear's name, when the weight holds NaN or Inf.
    """
    scales, codes = [], []
    for part in [weight] if isinstance(weight, Tensor) else weight:
        scale = weight_scale(part)
        refuse_not_finite(f"{name}.weight", scale)
        scales.append(fit(scale))
        codes.append(rounding(part, scales[-1]))
    return torch.cat(codes), torch.cat(scales)


def mean_error(weight: Iterable[Tensor], codes: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    """E[(W' - W) x], float32 [O], what rounding a weight adds to the mean output (Nagel et al., arXiv 1906.04721,
    section 4.2). weight: W as parts [O', I] that follow each other; W' = codes [O, I] * scale [O, 1]; mean: E[x], [I].
    """
    exact = torch.cat([part @ mean for part in weight])
    return codes.float() @ mean * scale.reshape(-1) - exact


def _factor(name: str, moments: Tensor) -> Tensor:
    """U of the formula above, float32 [I, I] on the device of `moments`.

    Raises QuantError where H + d I has no inverse: H is not one of second moments.
    """
    damped, damping = moments.clone(), DAMPING * moments.diagonal().mean()
    damped.diagonal().add_(torch.where(damping > 0, damping, 1.0))  # an input of zeros: no column matters
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise QuantError(
            f"{name}: gptq cannot invert the second moments of its input, at {failed.item()} of {len(damped)} channels;"
            " use --w_method nearest"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
