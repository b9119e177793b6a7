"""W8A8 arithmetic: scale and offset, rounding, the quantized linear, and what Ascend kernels need derived from it.

Weights, W [O, I]: symmetric per output channel.      weight_scale_o = max(max_i |W_oi| / 127, eps),  q = round(W / weight_scale)
Activations, x [T, I]: asymmetric per tensor, static. input_scale = max((hi - lo) / 255, eps),  input_offset = -128 - round(lo / input_scale)
                                                      q_x = round(x / input_scale + input_offset)
The product, in integers until the last step:         y = (q_x q_w^T + quant_bias) * deq_scale
                                                      deq_scale = input_scale * weight_scale,  quant_bias = round(bias / deq_scale - input_offset * sum_i q_oi)
round is half to even; q_w is clamped to [-127, 127], q_x to [-128, 127]. Everything is float32, whatever the checkpoint's dtype:
in bfloat16 7.6 % of the codes come out otherwise. The server applies input_scale in the model's dtype, so it is rounded to that dtype
first and everything else is derived from the rounded value.

Left out: other widths, group-wise scales, per-token activations (the kernels this is for have none of them for static
W8A8).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..base.errors import QuantError
from .product import int8_matmul, row_sums

EPS = 2.0**-23  # the least scale: a channel of zeros gets codes of zero instead of a division by zero
WEIGHT_MAX = 127
ACT_MIN, ACT_MAX = -128, 127
INT32_MAX = 2**31 - 1
ROWS = 512  # of an input at a time


def weight_scale(weight: Tensor) -> Tensor:
    """[O, I] float32 -> [O, 1] float32, per output channel."""
    largest = torch.maximum(
        weight.amax(1, keepdim=True), -weight.amin(1, keepdim=True)
    )  # aminmax(dim=1) is ten times slower
    return largest.div_(WEIGHT_MAX).clamp_(min=EPS)


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """[O, I] float32, [O, 1] float32 -> [O, I] int8."""
    return weight.div(scale).round_().clamp_(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)


def input_scale_offset(lo: Tensor, hi: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Scalars lo, hi of an activation -> (input_scale [1], input_offset [1]), float32, the scale representable in
    `dtype`.
    """
    lo, hi = lo.float().clamp(max=0), hi.float().clamp(min=0)
    scale = ((hi - lo) / (ACT_MAX - ACT_MIN)).clamp(min=EPS).to(dtype).float()
    offset = (ACT_MIN - torch.round(lo / scale)).clamp(ACT_MIN, ACT_MAX)
    return scale.reshape(1), offset.reshape(1)


def quantize_input(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """[..., I] any float dtype -> int8 codes of the same shape."""
    return x.float().div(scale).add_(offset).round_().clamp_(ACT_MIN, ACT_MAX).to(torch.int8)


def fake_quantize_input(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """[..., I] float32 -> what the int8 codes of x stand for, float32."""
    return x.div(scale).add_(offset).round_().clamp_(ACT_MIN, ACT_MAX).sub_(offset).mul_(scale)


@dataclass
class QLinear:
    """A linear layer rounded to W8A8, static: what is exported of it."""

    name: str
    weight: Tensor  # int8 [O, I]
    weight_scale: Tensor  # float32 [O, 1]
    input_scale: Tensor  # float32 [1], representable in the server's dtype
    input_offset: Tensor  # float32 [1], a whole number in [-128, 127]
    quant_bias: Tensor  # int32 [O]
    bias: Tensor | None  # [O] in the server's dtype, for servers that add it themselves; quant_bias holds it already

    @property
    def deq_scale(self) -> Tensor:
        """float32 [O]"""
        return (self.input_scale * self.weight_scale).reshape(-1)

    def to(self, device: torch.device | str) -> "QLinear":
        """The same on another device."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return QLinear(
            **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., I] -> y [..., O] in x's dtype, by integer arithmetic."""
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty(len(rows), len(self.weight), dtype=x.dtype, device=x.device)
        for start in range(0, len(rows), ROWS):  # what is computed of some rows stays in the processor's cache
            part = slice(start, start + ROWS)
            acc = int8_matmul(quantize_input(rows[part], self.input_scale, self.input_offset), self.weight)
            y[part] = acc.add_(self.quant_bias).float().mul_(self.deq_scale)
        return y.reshape(*x.shape[:-1], -1)


def quant_bias(name: str, weight: Tensor, bias: Tensor | None, deq_scale: Tensor, input_offset: Tensor) -> Tensor:
    """int8 [O, I], float32 [O] or None, float32 [O], float32 [1] -> int32 [O].

    Raises QuantError where bias / deq_scale leaves int32: a row of W that is all but zero under a bias that is not.
    """
    value = -input_offset * row_sums(weight).float()
    if bias is not None:
        value = value + bias / deq_scale
    worst = value.abs().max().item()
    if not worst < INT32_MAX:
        row = int(value.abs().argmax())
        raise QuantError(
            f"{name}: quant_bias of output channel {row} is {worst:.3g}, int32 holds {INT32_MAX}; keep the layer float"
            f" (--disable_names {name})"
        )
    return torch.round(value).to(torch.int32)


def quantize_linear(
    name: str, weight: Tensor | Iterable[Tensor], bias: Tensor | None, lo: Tensor, hi: Tensor, dtype: torch.dtype
) -> QLinear:
    """Round one linear. weight [O, I], whole or as parts [O', I] that follow each other, bias [O] or None, float32; lo,
    hi scalars of its input; dtype the server computes in.

    Raises QuantError when the weight, the bias or the range holds NaN or Inf.
    """
    scales, rounded = [], []
    for part in [weight] if isinstance(weight, Tensor) else weight:
        scales.append(weight_scale(part))
        rounded.append(quantize_weight(part, scales[-1]))
    scale, codes = torch.cat(scales), torch.cat(rounded)
    for what, tensor in (
        (f"{name}.weight", scale),
        (f"{name}.bias", bias),
        (f"the input of {name}", torch.stack([lo, hi])),
    ):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise QuantError(f"{what} holds NaN or Inf; nothing sensible can be rounded from it")
    input_scale, input_offset = input_scale_offset(lo, hi, dtype)
    corrected = quant_bias(name, codes, bias, (input_scale * scale).reshape(-1), input_offset)
    return QLinear(name, codes, scale, input_scale, input_offset, corrected, None if bias is None else bias.to(dtype))


def signal_to_noise(signal: Tensor, noise: Tensor) -> float:
    """10 log10(|signal|^2 / |noise|^2), dB; inf without noise."""
    return 10 * torch.log10(signal.double().square().sum() / noise.double().square().sum()).item()
