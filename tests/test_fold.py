"""Folding leaves the float function as it was; what rounding the norm loses is made up for by the weights."""

import pytest
import torch
from torch import nn

from quant.arithmetic.fold import FoldedLinear, FoldedNorm, share_heads, spread_heads
from quant.families.family import Group

INPUTS, OUTPUTS, TOKENS = 32, 24, 10


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layernorm,shifted", [(True, True), (True, False), (False, False)])
def test_norm_fold_is_exact_in_float64(dtype, layernorm, shifted):
    weight, x = (seeded(INPUTS) * 3).to(dtype).float(), seeded(TOKENS, INPUTS)
    bias = seeded(INPUTS, seed=1).to(dtype).float() if layernorm else None
    consumer = FoldedLinear("l", seeded(OUTPUTS, INPUTS).to(dtype), seeded(OUTPUTS) if layernorm else None)
    before = consumer.float().double(), None if consumer.bias is None else consumer.bias.double()
    normed = nn.functional.layer_norm(x, (INPUTS,)).double()

    def output(norm_weight, norm_bias, linear_weight, linear_bias):
        y = normed * norm_weight.double() + (0 if norm_bias is None else norm_bias.double())
        return y @ linear_weight.T + (0 if linear_bias is None else linear_bias)

    expected = output(weight, bias, *before)
    scale = seeded(INPUTS, seed=2).exp()
    shift = seeded(INPUTS, seed=3) if shifted else None
    norm = FoldedNorm("n", weight, bias, dtype)
    left, moved = norm.absorb(scale, shift)
    consumer.scale_columns(left, moved)
    got = output(
        norm.weight, norm.bias, consumer.float().double(), None if consumer.bias is None else consumer.bias.double()
    )
    # The norm now holds numbers of its dtype alone, whose rounding (2^-9 in bfloat16) must not be seen in the result.
    assert torch.equal(norm.weight, norm.weight.to(dtype).float())
    assert bias is None or torch.equal(norm.bias, norm.bias.to(dtype).float())
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (left - scale).abs().max() / scale.max() < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_norm_that_stores_w_minus_1(dtype):
    """x (1 + w) / s, and what rounding w' = (1 + w) / s - 1 left is in the consumers: nothing is lost."""
    stored, scale = (seeded(INPUTS) / 4).to(dtype).float(), seeded(INPUTS, seed=2).exp()
    norm, consumer = FoldedNorm("n", stored, None, dtype, adds=1.0), FoldedLinear("l", seeded(OUTPUTS, INPUTS), None)
    expected = (1 + stored.double()) * consumer.float().double()
    left, moved = norm.absorb(scale, None)
    consumer.scale_columns(left)
    assert moved is None and torch.equal(norm.weight, norm.weight.to(dtype).float())
    assert not torch.equal(norm.weight, stored)
    got = (1 + norm.weight.double()) * consumer.float().double()
    assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert ((1 + norm.weight) * scale - (1 + stored)).abs().max() < 0.05 * scale.max()


def test_norm_channels_of_zero_and_underflow_survive():
    weight = torch.tensor([0.0, 1e-6, 1.0, 60000.0]).half().float()
    norm = FoldedNorm("n", weight, None, torch.float16)
    left, _ = norm.absorb(torch.tensor([2.0, 1e4, 2.0, 1e-3]), None)
    assert torch.isfinite(left).all() and torch.isfinite(norm.weight).all()
    assert norm.weight.tolist()[2] == 0.5 and left[2] == 2
    # Channel 1 would underflow, channel 3 overflow: both stay unscaled. Channel 0 is zero whatever it is scaled by.
    assert (
        norm.weight[1] == weight[1]
        and left[1] == 1
        and norm.weight[3] == weight[3]
        and left[3] == 1
        and norm.weight[0] == 0
    )


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (4, 1)])
def test_value_fold_with_grouped_query_attention(heads, kv_heads):
    d = 8
    v, o = (
        FoldedLinear("v", seeded(kv_heads * d, INPUTS), seeded(kv_heads * d)),
        FoldedLinear("o", seeded(OUTPUTS, heads * d), None),
    )
    x, mix = seeded(TOKENS, INPUTS), torch.softmax(seeded(heads, TOKENS, TOKENS), -1)

    def attend():
        values = (x @ v.float().T + v.bias).view(TOKENS, kv_heads, d).repeat_interleave(heads // kv_heads, 1)
        return torch.einsum("hts,shd->thd", mix, values).reshape(TOKENS, -1) @ o.float().T

    expected = attend()
    scale = spread_heads(share_heads(seeded(heads * d, seed=4).exp(), heads, kv_heads), heads, kv_heads)
    v.divide_rows(share_heads(scale, heads, kv_heads))
    o.scale_columns(scale)
    assert (attend() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.equal(v.float(), v.weight)


def test_value_rows_are_the_last_of_a_fused_projection():
    qkv = FoldedLinear("qkv", seeded(12, INPUTS), seeded(12))
    weight, bias = qkv.float().clone(), qkv.bias.clone()
    qkv.divide_rows(torch.full((4,), 2.0))
    assert torch.equal(qkv.float()[:8], weight[:8]) and torch.equal(qkv.float()[8:], weight[8:] / 2)
    assert torch.equal(qkv.bias[:8], bias[:8]) and torch.equal(qkv.bias[8:], bias[8:] / 2)


@pytest.mark.parametrize("first", [True, False], ids=["up first", "gate first"])
def test_the_linear_half_of_a_fused_gate_and_up(first):
    """down(silu(gate) * up): the half that no silu stands behind takes the scale, whichever comes first."""
    group, inner = Group(("down",), source="fused", kind="up", first=first), 8
    fused, down = (
        FoldedLinear("fused", seeded(2 * inner, INPUTS), seeded(2 * inner)),
        FoldedLinear("down", seeded(OUTPUTS, inner), None),
    )
    x = seeded(TOKENS, INPUTS)

    def output():
        halves = (x @ fused.float().T + fused.bias).chunk(2, -1)
        up, gate = halves if first else halves[::-1]
        return (nn.functional.silu(gate) * up) @ down.float().T

    expected, scale = output(), seeded(inner, seed=4).exp()
    fused.divide_rows(scale, group.divided(2 * inner, inner))
    down.scale_columns(scale)
    assert (output() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert group.divided(inner, inner) == slice(0, inner)


def test_folds_compose_and_agree_with_column_max():
    linear = FoldedLinear("l", seeded(OUTPUTS, INPUTS), None)
    linear.scale_columns(seeded(INPUTS, seed=5).exp())
    linear.divide_rows(seeded(OUTPUTS, seed=6).exp())
    linear.scale_columns(seeded(INPUTS, seed=7).exp())
    assert torch.allclose(linear.column_max(), linear.float().abs().amax(0))
    some = torch.tensor([3, 1, 20])
    assert torch.equal(linear.float(some), linear.float()[some])
