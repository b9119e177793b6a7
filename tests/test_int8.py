"""The arithmetic against exact integer and brute-force computations that share no code with it."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.arithmetic import int8, product
from quant.arithmetic.schemes import StaticLinear
from quant.base.errors import QuantError

FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def half_even(value: Fraction) -> int:
    floor = math.floor(value)
    rest = value - floor
    return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))


@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_weight_codes_are_the_formula(rows):
    weight = torch.tensor(rows)
    scale = int8.weight_scale(weight)
    codes = int8.quantize_weight(weight, scale)
    for o, row in enumerate(weight.numpy()):
        expected = max(np.float32(np.abs(row).max()) / np.float32(127), np.float32(2**-23))
        assert scale[o, 0].item() == expected
        for i, value in enumerate(row):
            quotient = Fraction(float(value / expected))  # the division in float32, its rounding exactly
            assert codes[o, i] == max(-127, min(127, half_even(quotient)))


@given(FLOATS, FLOATS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=300, deadline=None)
def test_input_range_is_covered(a, b, dtype):
    lo, hi = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    scale, offset = int8.input_scale_offset(lo, hi, dtype)
    assert scale.shape == offset.shape == (1,)
    assert scale.dtype == offset.dtype == torch.float32
    assert scale.item() == scale.to(dtype).float().item() > 0
    assert offset.item() == round(offset.item()) and -128 <= offset.item() <= 127
    zero = int8.quantize_input(torch.zeros(1), scale, offset)
    assert (zero - offset).item() == 0, "zero must be represented exactly"
    # Both ends come back within a step, and what the scale's own rounding to dtype loses over 255 steps.
    for end in (min(a, 0), max(b, a, 0)):
        back = int8.fake_quantize_input(torch.tensor([end]), scale, offset).item()
        slack = 255 * scale.item() * torch.finfo(dtype).eps
        assert abs(back - end) <= scale.item() * 1.01 + slack


def test_codes_and_fake_quantization_agree():
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    scale, offset = int8.input_scale_offset(x.min() / 2, x.max() / 2)  # half of the values clip
    codes = int8.quantize_input(x, scale, offset)
    assert codes.min() == -128 and codes.max() == 127
    assert torch.equal((codes.float() - offset) * scale, int8.fake_quantize_input(x.clone(), scale, offset))


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 64])
@pytest.mark.parametrize("seed,extreme", [(0, False), (1, True)])
def test_integer_product_is_exact(rows, seed, extreme):
    generator = np.random.default_rng(seed)
    a = generator.choice([-128, 127], (rows, 4096)) if extreme else generator.integers(-128, 128, (rows, 4096))
    b = generator.choice([-127, 127], (24, 4096)) if extreme else generator.integers(-127, 128, (24, 4096))
    for matmul in (product.int8_matmul, product.float_matmul):
        got = matmul(torch.tensor(a, dtype=torch.int8), torch.tensor(b, dtype=torch.int8))
        assert got.dtype == torch.int32
        assert np.array_equal(got.numpy().astype(np.int64), a.astype(np.int64) @ b.astype(np.int64).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_computes_what_the_server_computes(dtype, with_bias):
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(16, 32, generator=generator), torch.randn(9, 32, generator=generator).to(dtype)
    bias = torch.randn(16, generator=generator) if with_bias else None
    linear = StaticLinear.quantize("l", weight, bias, (x.min(), x.max()), dtype)
    # The server's formula in int64 and float64, from the exported numbers alone.
    scale, offset = linear.input_scale.double(), linear.input_offset.double()
    codes = torch.clamp(torch.round(x.float() / linear.input_scale + linear.input_offset), -128, 127).long()
    exact = (codes @ linear.weight.long().T + linear.quant_bias.long()).double() * linear.deq_scale.double()
    assert torch.equal(linear(x), exact.float().to(dtype)) or torch.allclose(
        linear(x).double(), exact, rtol=2 * torch.finfo(dtype).eps
    )
    # And that is close to the float layer: half a step of each factor, summed in quadrature, with a wide margin.
    float_y = x.float() @ weight.T + (bias if with_bias else 0)
    assert (linear(x).float() - float_y).abs().max() < 0.05 * float_y.abs().max() + torch.finfo(dtype).eps * 8
    # quant_bias takes out the offset: the same in real numbers.
    real = ((codes - offset) * scale) @ (linear.weight.double() * linear.weight_scale.double()).T + (
        bias.double() if with_bias else 0
    )
    assert (exact - real).abs().max() <= 0.51 * linear.deq_scale.max()


def test_bias_over_a_row_of_all_but_zeros_is_refused():
    weight = torch.zeros(2, 4)
    with pytest.raises(
        QuantError, match=r"block\.fc: quant_bias of output channel 1 .* int32 holds 2147483647; keep the layer float"
    ):
        StaticLinear.quantize(
            "block.fc", weight, torch.tensor([0.0, 5.0]), (torch.tensor(-1e-3), torch.tensor(1e-3)), torch.float32
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_named(bad):
    weight, ok = torch.ones(2, 4), torch.tensor(1.0)
    damaged = weight.clone()
    damaged[1, 2] = bad
    with pytest.raises(QuantError, match=r"l\.weight holds NaN or Inf"):
        StaticLinear.quantize("l", damaged, None, (-ok, ok), torch.float32)
    with pytest.raises(QuantError, match=r"l\.bias holds NaN or Inf"):
        StaticLinear.quantize("l", weight, torch.tensor([0.0, bad]), (-ok, ok), torch.float32)
    with pytest.raises(QuantError, match=r"the input of l holds NaN or Inf"):
        StaticLinear.quantize("l", weight, None, (-ok, torch.tensor(bad)), torch.float32)


def test_zero_channel_gets_zero_codes():
    weight = torch.zeros(1, 8)
    scale = int8.weight_scale(weight)
    assert scale.item() == 2**-23 and not int8.quantize_weight(weight, scale).any()
