"""The two kinds of int8 linear that Ascend servers load, each with all that is known of it: what is stored, how it is
made, what the server's kernel computes from it.

    StaticLinear   W8A8          scale and offset of the activation are stored, one for all tokens
                   W8A8_MIX      the same tensors under another word; vLLM-Ascend rounds per token in prefill
    DynamicLinear  W8A8_DYNAMIC  each token is rounded by its own largest value, when it comes

They are modules with buffers, so that one can stand in a model in the place of its linear and move to a device with it.
`quantize` makes one from a float weight, `read` from what an export holds; both run the same way.

Left out: what a kernel loses besides (fewer bits of deq_scale than float32 has); nothing of it was seen on an NPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..base.errors import QuantError
from .int8 import (
    INT32_MAX,
    WEIGHT_MAX,
    deq_dtype,
    dtype_name,
    input_scale_offset,
    pack_deq_scale,
    quant_bias,
    quantize_input,
    quantize_tokens,
    quantize_weight,
    refuse_not_finite,
    representable,
    unpack_deq_scale,
    weight_scale,
)
from .product import int8_matmul, row_sums
from .rounding import Nearest, Rounding, round_weight

ROWS = 512  # of an input at a time: what is computed of them stays in the processor's cache
NEAREST = Nearest()
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Range = tuple[Tensor, Tensor]  # lo, hi: float32 scalars


class QuantizedLinear(nn.Module, ABC):
    """An int8 linear [O, I]. name: its hub name; dtype: what the server computes in; word: its type in the description.

    Buffers, whatever the kind: weight int8 [O, I]; weight_scale float32 [O, 1]; bias [O] in `dtype`, or None.
    """

    word: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    """The stored tensors but for the bias, in the order in which they are written."""
    needs_range: ClassVar[bool]
    """Whether quantize() must be told the range of the input."""
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, name: str, dtype: torch.dtype, **buffers: Tensor | None):
        super().__init__()
        self.name, self.dtype = name, dtype
        for buffer, value in buffers.items():
            self.register_buffer(buffer, value)

    # -- what is stored --

    @classmethod
    def stored(
        cls, outputs: int, inputs: int, dtype: torch.dtype
    ) -> dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]:
        """Part -> (dtypes that a server of `dtype` models takes, the first of which is written; shape)."""
        floats = tuple(dict.fromkeys((torch.float32, dtype)))  # msmodelslim writes some in the model's dtype
        every = {
            "weight": ((torch.int8,), (outputs, inputs)),
            "weight_scale": (floats, (outputs, 1)),
            "weight_offset": (floats, (outputs, 1)),
            "input_scale": (floats, (1,)),
            "input_offset": (floats, (1,)),
            "quant_bias": ((torch.int32,), (outputs,)),
            "deq_scale": ((deq_dtype(dtype),), (outputs,)),
        }
        return {part: every[part] for part in cls.parts}

    @classmethod
    def check(cls, name: str, found: Mapping[str, Any], dtype: torch.dtype, where: str = "") -> None:
        """Raises QuantError for the first part that is missing or not of the dtype and shape that a server expects, or
        a bias that is not.

        found: tensor name -> anything with a dtype and a shape, and a file if it has one; where: what lacks a missing
        one.
        """
        weight = found.get(f"{name}.weight")
        outputs, inputs = weight.shape if weight is not None and len(weight.shape) == 2 else (0, 0)
        wanted_parts = cls.stored(outputs, inputs, dtype)
        if f"{name}.bias" in found:
            wanted_parts["bias"] = ((dtype, *FLOATS), (outputs,))
        for part, (dtypes, wanted) in wanted_parts.items():
            tensor = found.get(f"{name}.{part}")
            if tensor is None:
                raise QuantError(f"{where}tensor {name}.{part} is missing")
            place = f"{tensor.file}: {name}.{part}" if hasattr(tensor, "file") else f"{where}{name}.{part}"
            if tensor.dtype not in dtypes:
                raise QuantError(
                    f"{place} is {dtype_name(tensor.dtype)}, a server of {dtype_name(dtype)} models reads"
                    f" {dtype_name(dtypes[0])} there"
                )
            if tuple(tensor.shape) != wanted:
                raise QuantError(f"{place} has shape {list(tensor.shape)}, {list(wanted)} is expected")

    def tensors(self) -> dict[str, Tensor]:
        """Tensor name -> tensor as it is stored, the bias last."""
        stored = {part: self._stored(part) for part in self.parts}
        if self.bias is not None:
            stored["bias"] = self.bias
        return {f"{self.name}.{part}": tensor for part, tensor in stored.items()}

    def _stored(self, part: str) -> Tensor:
        if part == "weight_offset":
            return torch.zeros_like(self.weight_scale)
        value = getattr(self, part)
        return pack_deq_scale(value, self.dtype) if part == "deq_scale" else value

    # -- made and read --

    @classmethod
    @abstractmethod
    def quantize(
        cls,
        name: str,
        weight: Tensor | Iterable[Tensor],
        bias: Tensor | None,
        range_: Range | None,
        dtype: torch.dtype,
        rounding: Rounding = NEAREST,
    ) -> "QuantizedLinear":
        """Round one linear. weight [O, I], whole or as parts [O', I] that follow each other, bias [O] or None, float32;
        range_: of its input, where the kind needs one; dtype: what the server computes in.

        Raises QuantError when the weight, the bias or the range holds NaN or Inf, when a scale does not fit `dtype`,
        and where an input could take a sum over int32.
        """

    @classmethod
    def read(
        cls, name: str, load: Callable[[str], Tensor], dtype: torch.dtype, has_bias: bool = True
    ) -> "QuantizedLinear":
        """What is stored of the linear -> the linear. load: tensor name -> tensor; has_bias: whether there is one.

        Raises QuantError for a part that is not of the dtype and shape that a server expects, and what `load` raises.
        """
        found = {f"{name}.{part}": load(f"{name}.{part}") for part in (*cls.parts, *(["bias"] * has_bias))}
        cls.check(name, found, dtype)
        buffers = {part: _as_run(part, found[f"{name}.{part}"]) for part in cls.parts if part != "weight_offset"}
        return cls(name, dtype, **buffers, bias=found.get(f"{name}.bias"))

    def take_up(self, error: Tensor) -> None:
        """Subtract `error`, float32 [O], from every output; nothing where a server reads no bias that says it."""

    # -- run --

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> y [..., O] in x's dtype, as the server computes: in integers, x and y rounded to its dtype."""
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty(len(rows), len(self.weight), dtype=x.dtype, device=x.device)
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            y[part] = self._run(rows[part].to(self.dtype)).to(self.dtype)
        return y.reshape(*x.shape[:-1], -1)

    @abstractmethod
    def _run(self, x: Tensor) -> Tensor:
        """[T, I] in the server's dtype -> float32 [T, O]."""

    @staticmethod
    @abstractmethod
    def trial(rows: Tensor, weight: Tensor, range_: Range | None) -> Tensor:
        """rows W^T without a bias, through this kind's quantizers: how a search sees a candidate. rows [T, I], weight
        [O, I], float32 -> float32 [T, O].
        """

    def extra_repr(self) -> str:
        """What torch prints of the module: name, sizes, type, dtype."""
        return f"{self.name}, {self.weight.shape[1]} -> {self.weight.shape[0]}, {self.word} in {dtype_name(self.dtype)}"


class StaticLinear(QuantizedLinear):
    """W8A8:  y = (q_x q_w^T + quant_bias) * deq_scale,  q_x = clamp(round(x / input_scale + input_offset), -128, 127).

    Further buffers: input_scale, input_offset float32 [1]; quant_bias int32 [O]; deq_scale float32 [O]. weight_scale
    and the float bias are in no formula of the server: deq_scale and quant_bias hold them.
    """

    word = "W8A8"
    parts = ("weight", "weight_scale", "weight_offset", "input_scale", "input_offset", "quant_bias", "deq_scale")
    needs_range = True
    input_scale: Tensor
    input_offset: Tensor
    quant_bias: Tensor
    deq_scale: Tensor

    @classmethod
    def quantize(cls, name, weight, bias, range_, dtype, rounding=NEAREST):
        """As QuantizedLinear.quantize, which says what it raises; input_scale and input_offset come of range_."""
        lo, hi = range_
        codes, scale = round_weight(name, weight, rounding)
        refuse_not_finite(f"{name}.bias", bias)
        refuse_not_finite(f"the input of {name}", torch.stack([lo, hi]))
        input_scale, input_offset = input_scale_offset(lo, hi, dtype)
        if not torch.isfinite(input_scale).all():
            raise QuantError(
                f"{name}: its input reaches from {lo.item():.3g} to {hi.item():.3g}, for which input_scale leaves"
                f" {dtype_name(dtype)}, that ends at {torch.finfo(dtype).max:.5g}; use --dtype bfloat16"
            )
        deq_scale = (input_scale * scale).reshape(-1)
        return cls(
            name,
            dtype,
            weight=codes,
            weight_scale=scale,
            input_scale=input_scale,
            input_offset=input_offset,
            quant_bias=quant_bias(name, codes, bias, deq_scale, input_offset),
            deq_scale=deq_scale,
            bias=None if bias is None else bias.to(dtype),
        )

    def take_up(self, error: Tensor) -> None:
        """In quant_bias, to half a step."""
        self.quant_bias -= torch.round(error / self.deq_scale).to(torch.int32)

    def _run(self, x: Tensor) -> Tensor:
        sums = int8_matmul(quantize_input(x, self.input_scale, self.input_offset), self.weight)
        return sums.add_(self.quant_bias).float().mul_(self.deq_scale)

    @staticmethod
    def trial(rows, weight, range_):
        """As QuantizedLinear.trial; range_ is needed."""
        step, offset = input_scale_offset(*range_)
        q_x, scale = quantize_input(rows, step, offset), weight_scale(weight)
        q_w = quantize_weight(weight, scale)
        return int8_matmul(q_x, q_w).float().sub_(offset * row_sums(q_w)).mul_(step * scale.T)


class DynamicLinear(QuantizedLinear):
    """W8A8_DYNAMIC:  y_t = (q_t q_w^T) * weight_scale * s_t + bias,  s_t = max |x_t| / 127,  q_t = round(x_t / s_t).

    vLLM-Ascend holds weight_scale in the model's dtype: quantize() rounds it to that before it rounds the weight, and
    read() does to one that was not, as the server will.
    """

    word = "W8A8_DYNAMIC"
    parts = ("weight", "weight_scale", "weight_offset")
    needs_range = False

    @classmethod
    def quantize(cls, name, weight, bias, range_, dtype, rounding=NEAREST):
        """As QuantizedLinear.quantize, which says what it raises; range_ is not looked at."""
        codes, scale = round_weight(name, weight, rounding, lambda scale: representable(name, scale, dtype))
        refuse_not_finite(f"{name}.bias", bias)
        if WEIGHT_MAX**2 * codes.shape[1] > INT32_MAX:
            raise QuantError(
                f"{name}: the products of {codes.shape[1]} inputs sum to {WEIGHT_MAX**2 * codes.shape[1]:.3g}, int32"
                f" holds {INT32_MAX}; keep the layer float (--disable_names {name})"
            )
        bias = None if bias is None else bias.to(dtype)
        return cls(name, dtype, weight=codes, weight_scale=scale, bias=bias)

    def _run(self, x: Tensor) -> Tensor:
        codes, scale = quantize_tokens(x)
        y = int8_matmul(codes, self.weight).float().mul_(self.weight_scale.to(self.dtype).float().T).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)

    @staticmethod
    def trial(rows, weight, range_):
        """As QuantizedLinear.trial; range_ is not looked at."""
        (q_x, step), scale = quantize_tokens(rows), weight_scale(weight)
        return int8_matmul(q_x, quantize_weight(weight, scale)).float().mul_(scale.T).mul_(step)


class MixLinear(StaticLinear):
    """W8A8_MIX: all that static W8A8 has. Run as the decoding phase does it, per tensor."""

    word = "W8A8_MIX"


SCHEMES: dict[str, type[QuantizedLinear]] = {scheme.word: scheme for scheme in (StaticLinear, DynamicLinear, MixLinear)}
"""Type of a linear in the description -> what it is."""


def _as_run(part: str, stored: Tensor) -> Tensor:
    if part == "deq_scale":
        return unpack_deq_scale(stored)
    return stored.float() if stored.is_floating_point() else stored
