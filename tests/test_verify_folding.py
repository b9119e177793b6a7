"""check_block on single blocks, folded and rounded here as an export is, of many seeds, widths and dtypes: what a good
export holds is never called damage, and a channel of a norm that is wrong always is.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from quant.arithmetic.fold import FoldedLinear, FoldedNorm, power_of_two, share_heads, spread_heads
from quant.arithmetic.m2 import candidate
from quant.arithmetic.ranges import minmax_range
from quant.arithmetic.schemes import DynamicLinear, StaticLinear
from quant.arithmetic.smoothing import Problem, Smoothing
from quant.arithmetic.stats import Stats
from quant.base.choices import METHODS
from quant.families.family import Group, Tower
from quant.families.qwen2vl import LANGUAGE, VISION
from quant.verify.fit import half_step
from quant.verify.folding import check_block
from quant.verify.tensors import Damage

SEEDS = 100
WIDTHS = (32, 96, 160)
ORDER = {"up": 0, "value": 1, "norm": 2}
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


@dataclass
class Block:
    """A block of a tower: config.json, the source's tensors, its int8 linears, and the dtype that is exported."""

    tower: Tower
    config: dict
    source: dict[str, Tensor]
    int8: set[str]
    dtype: torch.dtype

    def check(self, exported: dict[str, Tensor]) -> list[Damage]:
        return check_block(self.config, self.tower, 0, self.source, exported, self.int8).damage


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator)


def magnitude(generator, low: float, high: float) -> float:
    """10 to a power between low and high: what networks hold differs by more than any one distribution does."""
    return 10 ** (low + (high - low) * torch.rand((), generator=generator).item())


def linear(name: str, outputs: int, inputs: int, generator, biased: bool) -> dict[str, Tensor]:
    tensors = {f"{name}.weight": normal(generator, outputs, inputs) * magnitude(generator, -2, -0.5)}
    if biased:
        # Rows far above the rest, as of k in Qwen2, and often none but zeros, as an initialised layer has.
        kept = torch.rand(outputs, generator=generator) < torch.rand((), generator=generator) * 2 - 0.3
        loud = 1 + 30 * (torch.rand(outputs, generator=generator) < 0.05)
        tensors[f"{name}.bias"] = normal(generator, outputs) * magnitude(generator, -6, 0) * kept * loud
    return tensors


def norm(name: str, width: int, generator, biased: bool) -> dict[str, Tensor]:
    weight = 1 + normal(generator, width) * magnitude(generator, -3, -0.5)
    weight[torch.randperm(width, generator=generator)[: max(1, width // 50)]] *= magnitude(generator, 0, 1.5)
    tensors = {f"{name}.weight": weight * magnitude(generator, -1, 0.5)}
    if biased:
        bias = normal(generator, width) * magnitude(generator, -6, 0)
        bias[torch.randperm(width, generator=generator)[:2]] *= magnitude(generator, 0, 1.5)
        tensors[f"{name}.bias"] = bias * (torch.rand((), generator=generator) < 0.9)
    return tensors


def vision_block(seed: int, width: int, dtype: torch.dtype, stored: torch.dtype) -> Block:
    """With LayerNorms and biases. dtype: of the export, stored: of the source."""
    generator, prefix = torch.Generator().manual_seed(seed), VISION.block(0)
    parts = [
        norm("norm1", width, generator, True),
        linear("attn.qkv", 3 * width, width, generator, True),
        linear("attn.proj", width, width, generator, True),
        norm("norm2", width, generator, True),
        linear("mlp.fc1", 2 * width, width, generator, True),
        linear("mlp.fc2", width, 2 * width, generator, True),
    ]
    source = {f"{prefix}{name}": value.to(stored) for part in parts for name, value in part.items()}
    config = {"vision_config": {"depth": 1, "embed_dim": width, "num_heads": 2, "mlp_ratio": 2}}
    int8 = {f"{prefix}{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1")}
    return Block(VISION, config, source, int8, dtype)


def language_block(seed: int, width: int, dtype: torch.dtype, stored: torch.dtype) -> Block:
    """With RMSNorms, biases of q, k and v alone, and two query heads to each value."""
    generator, prefix = torch.Generator().manual_seed(seed), LANGUAGE.block(0)
    parts = [
        norm("input_layernorm", width, generator, False),
        linear("self_attn.q_proj", width, width, generator, True),
        linear("self_attn.k_proj", width // 2, width, generator, True),
        linear("self_attn.v_proj", width // 2, width, generator, True),
        linear("self_attn.o_proj", width, width, generator, False),
        norm("post_attention_layernorm", width, generator, False),
        linear("mlp.gate_proj", 2 * width, width, generator, False),
        linear("mlp.up_proj", 2 * width, width, generator, False),
        linear("mlp.down_proj", width, 2 * width, generator, False),
    ]
    source = {f"{prefix}{name}": value.to(stored) for part in parts for name, value in part.items()}
    config = {
        "num_hidden_layers": 1,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    float_ = {f"{prefix}mlp.down_proj"} if seed % 2 else set()
    int8 = {name.removesuffix(".weight") for name, value in source.items() if value.dim() == 2} - float_
    return Block(LANGUAGE, config, source, int8, dtype)


def fused_block(first: bool):
    """A block whose q, k and v are one linear and whose gate and up are one; first: up before gate."""

    def made(seed: int, width: int, dtype: torch.dtype, stored: torch.dtype) -> Block:
        generator, tower = torch.Generator().manual_seed(seed), FUSED[first]
        parts = [
            norm("norm1", width, generator, False),
            linear("qkv", 2 * width, width, generator, True),
            linear("out", width, width, generator, False),
            norm("norm2", width, generator, False),
            linear("up", 4 * width, width, generator, False),
            linear("down", width, 2 * width, generator, False),
        ]
        source = {f"{tower.block(0)}{name}": value.to(stored) for part in parts for name, value in part.items()}
        float_ = {f"{tower.block(0)}down"} if seed % 2 else set()
        int8 = {name.removesuffix(".weight") for name, value in source.items() if value.dim() == 2} - float_
        config = {
            "num_hidden_layers": 1,
            "hidden_size": width,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        return Block(tower, config, source, int8, dtype)

    return made


FUSED = {
    first: replace(
        LANGUAGE,
        prefix="blocks.",
        groups=(
            Group(("qkv",), source="norm1", kind="norm"),
            Group(("out",), source="qkv", kind="value"),
            Group(("up",), source="norm2", kind="norm"),
            Group(("down",), source="up", kind="up", first=first),
        ),
    )
    for first in (True, False)
}


def observed(block: Block, group, generator) -> Stats:
    """Of a group's input: what leaves the norm, a few channels of which are outliers, or plain noise."""
    prefix = block.tower.block(0)
    width = block.source[f"{prefix}{group.linears[0]}.weight"].shape[1]
    rows = normal(generator, 24, width)
    rows[:, torch.randperm(width, generator=generator)[:3]] *= magnitude(generator, 0, 1.5)
    if group.kind == "norm":
        rows = rows * block.source[f"{prefix}{group.source}.weight"].float()
        if (bias := block.source.get(f"{prefix}{group.source}.bias")) is not None:
            rows = rows + bias.float()
    return Stats(rows.amin(0), rows.amax(0), rows, len(rows))


def solved(method: str, problem: Problem, generator) -> Smoothing:
    if method == "m2 shifted":  # whether that is the best or not
        return candidate(problem, problem.stats, problem.may_shift, int(torch.randint(0, 32, (), generator=generator)))
    if method == "identity":
        return Smoothing(torch.ones_like(problem.stats.lo))
    found = METHODS[method].load()(problem, None)
    return Smoothing(torch.ones_like(problem.stats.lo)) if found.scale is None else found


def export(block: Block, method: str, seed: int, scheme=StaticLinear) -> dict[str, Tensor]:
    """The block's tensors as an export holds them."""
    generator, prefix = torch.Generator().manual_seed(seed), block.tower.block(0)
    heads = block.tower.heads(block.config)
    linears, norms = {}, {}
    for name, value in block.source.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight":
            bias = block.source.get(f"{owner}.bias")
            bias = None if bias is None else bias.float()
            if value.dim() == 2:
                linears[owner] = FoldedLinear(owner, value, bias)
            else:
                norms[owner] = FoldedNorm(owner, value.float(), bias, block.dtype)
    groups = [group for group in block.tower.groups if prefix + group.linears[0] in block.int8]
    ranges, folded = {}, set()
    for group in sorted(groups, key=lambda group: ORDER.get(group.kind, 3)):
        consumers, stats = [linears[prefix + name] for name in group.linears], observed(block, group, generator)
        share = (lambda x: spread_heads(share_heads(x, *heads), *heads)) if group.kind == "value" else lambda x: x
        if method != "none" and group.source:
            source, shift = prefix + group.source, None
            problem = Problem(
                stats,
                torch.cat([consumer.float() for consumer in consumers]),
                torch.stack([consumer.column_max() for consumer in consumers]).amax(0),
                share,
                group.kind == "norm" and norms[source].bias is not None,
                1,
                scheme,
            )
            smoothing = solved(method, problem, generator)
            scale = share(smoothing.scale)
            if group.kind == "norm":
                scale, shift = norms[source].absorb(scale, smoothing.shift)
                folded.add(source)
            else:
                if source not in block.int8:
                    scale = power_of_two(scale)
                    folded.add(source)
                divisor = share_heads(scale, *heads) if group.kind == "value" else scale
                linears[source].divide_rows(divisor, group.divided(len(linears[source].weight), len(divisor)))
            for consumer in consumers:
                consumer.scale_columns(scale, shift if consumer.bias is not None else None)
            stats = stats.smoothed(scale, shift)
        ranges |= dict.fromkeys((prefix + name for name in group.linears), minmax_range(stats))
    exported = {name: value.to(block.dtype) for name, value in block.source.items()}
    for name in folded:
        part = norms.get(name) or linears[name]
        exported[f"{name}.weight"] = (part.weight if name in norms else part.float()).to(block.dtype)
        if part.bias is not None:
            exported[f"{name}.bias"] = part.bias.to(block.dtype)
    for name in block.int8:
        made = scheme.quantize(name, linears[name].float(), linears[name].bias, ranges[name], block.dtype)
        exported |= made.tensors()
    return exported


BLOCKS = {"LayerNorm": vision_block, "RMSNorm": language_block}
DTYPES = [(BFLOAT16, BFLOAT16), (FLOAT16, FLOAT16), (BFLOAT16, FLOAT32), (FLOAT16, BFLOAT16)]
"""Of the export, and of the source."""
EACH_DTYPE = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("method", ["m2", "m2 shifted", "m4", "identity", "none"])
def test_a_good_export_has_no_damage(kind, method):
    found = {}
    for seed in range(SEEDS):
        width, scheme = WIDTHS[seed % len(WIDTHS)], DynamicLinear if seed % 7 == 0 else StaticLinear
        for dtype, stored in [DTYPES[seed % len(DTYPES)]] if method == "m2" else DTYPES:  # m2's search takes its time
            block = BLOCKS[kind](seed, width, dtype, stored)
            if damage := block.check(export(block, method, seed, scheme)):
                found[seed, dtype, stored] = damage
    assert found == {}


@pytest.mark.parametrize("first", [True, False], ids=["up first", "gate first"])
def test_a_gate_and_an_up_in_one_linear(first):
    """The rows that a scale may have divided are the linear half's; any other row that is off is damage."""
    for seed in range(12):
        block = fused_block(first)(seed, WIDTHS[seed % len(WIDTHS)], *DTYPES[seed % len(DTYPES)])
        exported, name = export(block, "m4", seed), f"{block.tower.block(0)}up"
        assert block.check(exported) == []
        gate = len(exported[f"{name}.weight"]) - 3 if first else 3
        exported[f"{name}.weight_scale"] = exported[f"{name}.weight_scale"].clone()
        exported[f"{name}.weight_scale"][gate] *= 1.5
        assert f"row {gate}" in {entry.tensor: entry.problem for entry in block.check(exported)}[f"{name}.weight_scale"]


@EACH_DTYPE
@pytest.mark.parametrize("method", ["m2 shifted", "m4"])
def test_a_norms_bias_that_is_wrong_in_one_channel_is_named(dtype, method):
    """By eight times what the rounding of its consumers' biases, and its own, can hide."""
    missed = {}
    for seed in range(0, SEEDS, 2):
        block = vision_block(seed, WIDTHS[seed % len(WIDTHS)], dtype, dtype)
        exported, (norm, reader) = (
            export(block, method, seed),
            (f"{VISION.block(0)}{name}" for name in ("norm1", "attn.qkv")),
        )
        weight, biases = block.source[f"{reader}.weight"].float(), exported[f"{reader}.bias"]
        scale = block.source[f"{norm}.weight"].float()[7] / exported[f"{norm}.weight"].float()[7]
        hidden = half_step(biases).max() / weight[:, 7].square().mean().sqrt() / scale
        value = exported[f"{norm}.bias"] = exported[f"{norm}.bias"].clone()
        value[7] += 8 * (hidden + half_step(value[7]))
        problems = {entry.tensor: entry.problem for entry in block.check(exported)}
        if "channel 7" not in problems.get(f"{norm}.bias", ""):
            missed[seed] = problems
    assert missed == {}


@EACH_DTYPE
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_norms_weight_that_is_wrong_in_one_channel_is_damage(kind, dtype):
    """Of the norm, or where int8 left too little of that channel to tell, of the linears that read it."""
    missed = []
    for seed in range(0, SEEDS, 2):
        block = BLOCKS[kind](seed, WIDTHS[seed % len(WIDTHS)], dtype, dtype)
        exported, norm = export(block, "m4", seed), block.tower.block(0) + block.tower.groups[0].source
        value = exported[f"{norm}.weight"] = exported[f"{norm}.weight"].clone()
        value[7] *= 1.5
        missed += [seed] * (not block.check(exported))
    assert missed == []


@EACH_DTYPE
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_bias_that_is_wrong_in_one_row_is_named(kind, dtype):
    missed = {}
    for seed in range(0, SEEDS, 2):
        block = BLOCKS[kind](seed, WIDTHS[seed % len(WIDTHS)], dtype, dtype)
        exported = export(block, "m2 shifted", seed)
        name = f"{block.tower.block(0)}{block.tower.groups[0].linears[0]}.bias"
        value = exported[name] = exported[name].clone()
        value[5] += 0.1 * value.abs().max() + 1e-3
        if "row 5" not in {entry.tensor: entry.problem for entry in block.check(exported)}.get(name, ""):
            missed[seed] = block.check(exported)
    assert missed == {}
