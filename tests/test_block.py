"""One block: what is folded stays exact whatever a method answers, and whatever the block lacks; groups by block."""

from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from quant import QuantConfig
from quant.arithmetic import smoothing
from quant.arithmetic.smoothing import Smoothing
from quant.base import transformers_api
from quant.base.choices import Choice
from quant.calibrate import block
from quant.calibrate.calibrator import (
    Calibrator,
)  # which does not ask the servers' rules: these are no published models
from quant.export import reader
from quant.export.plan import make_plan
from quant.families import family_of
from quant.families.qwen2vl import QWEN2_VL
from quant.files.checkpoint import Checkpoint

LAYER = "model.layers.0."


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), 2)


def quantized(source, images, out, **choices):
    """The export of a run, opened."""
    Calibrator(source, QuantConfig(dev_type="cpu", **choices), images).run(out.parent).save(out)
    return reader.read(out)


def values(export, name):
    """The weight that an exported linear stands for, float32."""
    weight = export.load(f"{name}.weight").float()
    return weight * export.load(f"{name}.weight_scale") if f"{name}.weight_scale" in export.tensors else weight


def through_heads(value, output, heads, kv_heads):
    """The map from a token to itself through value and output projection, attention left out: [I, I] for each head."""
    size = len(value) // kv_heads
    return torch.stack(
        [
            output[:, head * size : (head + 1) * size]
            @ value[(kv := head * kv_heads // heads) * size : (kv + 1) * size]
            for head in range(heads)
        ]
    )


def test_a_method_that_ignores_the_heads_is_folded_exactly(tmp_path, images, monkeypatch):
    """Query heads that read one value head have one scale, whatever a method answers."""

    def each_its_own(problem, alpha):
        channels = len(problem.stats.lo)
        generator = torch.Generator().manual_seed(channels)
        return Smoothing(torch.exp2(torch.randint(-2, 3, (channels,), generator=generator).float()))

    class Method(Choice):
        def load(self):
            return each_its_own

    monkeypatch.setitem(block.METHODS, "m4", Method("of this test"))
    source = tiny.make(tmp_path / "src", "qwen2_vl", dtype="float32", kv_heads=1, outliers=False)
    export = quantized(source, images, tmp_path / "out", anti_method="m4", dtype="float32")
    checkpoint = Checkpoint(source)
    names = [f"{LAYER}self_attn.v_proj", f"{LAYER}self_attn.o_proj"]
    exact = through_heads(*(checkpoint.load(f"{name}.weight").float() for name in names), 2, 1)
    norm = f"{LAYER}input_layernorm.weight"
    columns = checkpoint.load(norm).float() / export.load(norm)  # what v's input was divided by
    got = through_heads(values(export, names[0]) / columns, values(export, names[1]), 2, 1)
    assert (got - exact).norm() / exact.norm() < 0.1, "int8 rounding alone; a scale of the wrong head is off by factors"


def test_rows_that_stay_float_lose_nothing(tmp_path, images, monkeypatch):
    """v stays float, o is int8: v's rows are divided by powers of two, so that their bfloat16 values keep all bits."""
    monkeypatch.setattr(smoothing, "CLEAR", float("inf"))  # random weights gain little by smoothing; it is taken
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    attention = [f"{LAYER}self_attn.{name}_proj" for name in "qkv"]
    export = quantized(source, images, tmp_path / "out", anti_method="m4", disable_names=tuple(attention))
    before = Checkpoint(source).load(f"{LAYER}self_attn.v_proj.weight").float()
    after = export.load(f"{LAYER}self_attn.v_proj.weight").float()
    scales = (before / after).nanmedian(1).values
    assert torch.equal(after * scales[:, None], before), "an exact multiple, row by row"
    assert torch.equal(torch.log2(scales), torch.log2(scales).round()) and (scales != 1).any()


def test_any_other_scale_would_cost_bits():
    """What the docstring of fold.power_of_two says: 0.17 % (rms) of a bfloat16 weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 512, generator=generator).bfloat16().float()
    scale = torch.rand(512, 1, generator=generator) + 1
    lost = ((weight / scale).bfloat16().float() * scale - weight) / weight.abs().clamp(min=1e-9)
    assert lost.square().mean().sqrt().item() == pytest.approx(0.0017, abs=0.0001)


@pytest.fixture
def without_bias(tmp_path, monkeypatch):
    """A Qwen2-VL whose vision tower's qkv has no bias, which transformers' class always has."""
    source = tiny.make(tmp_path / "src", "qwen2_vl", dtype="float32")
    file = source / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if not name.endswith("qkv.bias")}, file)
    build = transformers_api.build_model

    def built(*arguments):
        model = build(*arguments)
        for name, module in model.named_modules():
            if name.endswith("attn.qkv"):
                module.bias = None
        return model

    monkeypatch.setattr(transformers_api, "build_model", built)
    return source


@pytest.mark.parametrize("method", ["m2", "m4"])
def test_a_norm_before_a_linear_without_bias_makes_no_bias(without_bias, images, tmp_path, method):
    """Its LayerNorm is not shifted, and what rounding the norm's bias leaves is not carried into a bias that the layout
    has no place for.
    """
    export = quantized(without_bias, images, tmp_path / "out", anti_method=method)
    assert not [name for name in export.tensors if name.endswith("qkv.bias")]
    norm = Checkpoint(without_bias).load("visual.blocks.0.norm1.bias")
    scale = Checkpoint(without_bias).load("visual.blocks.0.norm1.weight") / export.load("visual.blocks.0.norm1.weight")
    moved = export.load("visual.blocks.0.norm1.bias").float() * scale
    assert torch.allclose(moved, norm, rtol=2**-7, atol=1e-6), "scaled, and not shifted"


def test_groups_of_some_blocks(tmp_path, images):
    """Group.when: what a block does not have is neither planned, observed nor rounded there."""
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    language = QWEN2_VL.tower("language")
    last = replace(language.groups[2], when=lambda config, index: index == 1)
    assert last.linears == ("mlp.gate_proj", "mlp.up_proj")
    family = replace(
        QWEN2_VL,
        towers=(QWEN2_VL.tower("vision"), replace(language, groups=(*language.groups[:2], last, language.groups[3]))),
    )
    checkpoint = Checkpoint(source)
    plan = make_plan(checkpoint, family, QuantConfig())
    gates = {name for name in plan.int8_names if name.endswith("gate_proj")}
    assert gates == {"model.layers.1.mlp.gate_proj"}
    assert plan.decisions["model.layers.0.mlp.gate_proj"].why.startswith("in a block, but in no group")
    assert [len(family.tower("language").groups_of(checkpoint.config, index)) for index in (0, 1)] == [3, 4]
    calibrator = Calibrator(source, QuantConfig(dev_type="cpu"), images)
    assert calibrator.family is family_of(checkpoint.config, source)
    calibrator.family, calibrator.plan = family, plan
    calibrator.run(tmp_path).save(tmp_path / "out")
    assert gates == {name for name in reader.read(tmp_path / "out").linear_names if name.endswith("gate_proj")}
