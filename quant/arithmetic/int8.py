"""W8A8 arithmetic: scales and offsets, codes, and what Ascend kernels need derived from them. What a linear is made of
is schemes.py's.

Weights, W [O, I]: symmetric per output channel.
    weight_scale_o = max(max_i |W_oi| / 127, eps),              q = round(W / weight_scale)
Activations, x [T, I]: asymmetric per tensor, static,
    input_scale = max((hi - lo) / 255, eps),                    q_x = round(x / input_scale + input_offset)
    input_offset = -128 - round(lo / input_scale)
or symmetric per token, dynamic.
    s_t = max_i |x_ti| / 127,                                   q_t = round(x_t / s_t)
The product, in integers until the last step:
    y = (q_x q_w^T + quant_bias) * deq_scale,                   deq_scale = input_scale * weight_scale
    quant_bias = round(bias / deq_scale - input_offset * sum_i q_oi)
round is half to even; q_w is clamped to [-127, 127], q_x to [-128, 127]. Everything is float32, whatever the
checkpoint's dtype: in bfloat16 7.6 % of the codes come out otherwise. The server applies input_scale in the model's
dtype, so it is rounded to that dtype first and everything else is derived from the rounded value.

Left out: other widths and group-wise scales, which the kernels this is for do not have.
"""

import torch
from torch import Tensor

from ..base.errors import QuantError
from .product import row_sums

EPS = 2.0**-23  # the least scale: a channel of zeros gets codes of zero instead of a division by zero
WEIGHT_MAX = 127
ACT_MIN, ACT_MAX = -128, 127
INT32_MAX = 2**31 - 1


def weight_scale(weight: Tensor) -> Tensor:
    """weight [O, I] -> its scales by the formula above, [O, 1], one per output channel; both float32."""
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


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, I] any float dtype -> (int8 codes [T, I], float32 scales [T, 1]): each row by its own largest value.

    As CANN documents its operator DynamicQuant, which is what vLLM-Ascend rounds with. A row of zeros has scale 0 and
    codes of zero.
    """
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).div_(ACT_MAX)
    codes = x.div(torch.where(scale > 0, scale, 1.0)).round_().clamp_(ACT_MIN, ACT_MAX).to(torch.int8)
    return codes, scale


def quant_bias(name: str, weight: Tensor, bias: Tensor | None, deq_scale: Tensor, input_offset: Tensor) -> Tensor:
    """int8 [O, I], float32 [O] or None, float32 [O], float32 [1] -> int32 [O].

    Raises QuantError where an input could take the sum over int32: a row of W that is all but zero under a bias that is
    not. No input can as long as 128 sum_i |q_oi| + |quant_bias_o| <= 2^31 - 1, since no |q_x| exceeds 128.
    """
    value = -input_offset * row_sums(weight).float()
    if bias is not None:
        value = value + bias / deq_scale
    reach = -ACT_MIN * WEIGHT_MAX * weight.shape[1]  # what the products sum to at most, whatever the codes
    if not value.abs().max().item() + reach < INT32_MAX:  # rarely so, and then it is worth looking at the codes
        products = -ACT_MIN * row_sums(weight.abs()).double()
        worst = torch.where(value.isfinite(), value.abs().double(), torch.inf) + products
        row = int(worst.argmax())
        if not worst[row] < INT32_MAX:
            raise QuantError(
                f"{name}: quant_bias of output channel {row} is {value[row].item():.3g}, with the products at most"
                f" {worst[row].item():.3g}, int32 holds {INT32_MAX}; keep the layer float (--disable_names {name})"
            )
    return torch.round(value).to(torch.int32)


def representable(name: str, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [O, 1] -> the nearest in `dtype` that still holds the largest weight within half a step, as float32.

    Raises QuantError where `dtype` has none.
    """
    rounded = scale.to(dtype)
    if dtype in (torch.float16, torch.bfloat16):
        short = rounded.float() * (WEIGHT_MAX + 0.5) < scale * WEIGHT_MAX  # of a tiny scale, float16 keeps few bits
        rounded = rounded.view(torch.int16).add(short.to(torch.int16)).view(dtype)  # the next one up
    if not torch.isfinite(rounded).all():
        row = int(scale.argmax())
        raise QuantError(
            f"{name}: weight_scale of output channel {row} is {scale[row].item():.3g}, {dtype_name(dtype)} ends at"
            f" {torch.finfo(dtype).max:.5g}; use --dtype bfloat16"
        )
    return rounded.float()


def deq_dtype(dtype: torch.dtype) -> torch.dtype:
    """What deq_scale is stored as for a model of `dtype`."""
    return torch.float32 if dtype == torch.bfloat16 else torch.int64


def pack_deq_scale(deq_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [O] -> itself, or int64 whose low 32 bits are the float32's."""
    if deq_dtype(dtype) == torch.float32:
        return deq_scale
    return deq_scale.contiguous().view(torch.int32).to(torch.int64)  # a scale is positive: its sign bit is 0


def unpack_deq_scale(stored: Tensor) -> Tensor:
    """What pack_deq_scale made -> float32 [O]."""
    return stored if stored.dtype == torch.float32 else stored.to(torch.int32).view(torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """As servers and config.json write it: "bfloat16" and the like."""
    return str(dtype).removeprefix("torch.")


def signal_to_noise(signal: Tensor, noise: Tensor) -> float:
    """10 log10(|signal|^2 / |noise|^2), dB, of two float tensors of one shape, any shape; inf without noise."""
    return 10 * torch.log10(signal.double().square().sum() / noise.double().square().sum()).item()


def refuse_not_finite(what: str, tensor: Tensor | None) -> None:
    """Raises QuantError when a float tensor of any shape holds NaN or Inf. what: its name; None is fine."""
    if tensor is not None and not torch.isfinite(tensor).all():
        raise QuantError(f"{what} holds NaN or Inf; nothing sensible can be rounded from it")
