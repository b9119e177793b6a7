"""The third family: windows and full attention in turn, the published sizes' names and shapes, and what its servers
demand.

That streamed blocks equal the whole model's, bit for bit, is tests/test_paused.py's.
"""

import argparse
import copy
import json
import re
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from PIL import Image
from torch import nn

from bench import hub_config, hub_tensors
from quant import Calibrator, QuantConfig
from quant.arithmetic.schemes import StaticLinear
from quant.base.errors import UsageError
from quant.commands import quantize
from quant.export import reader
from quant.export.plan import make_plan
from quant.families import script_of
from quant.families.qwen2_5vl import QWEN2_5_VL
from quant.families.qwen2vl import QWEN2_VL
from quant.files.checkpoint import Checkpoint
from quant.inputs.samples import prepare
from quant.model.paused import Walk
from quant.model.streamed import StreamedModel

ROOT = Path(__file__).parent.parent
VISION = QWEN2_5_VL.tower("vision")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("source"), "qwen2_5_vl", dtype="float32")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), 3)


@torch.inference_mode()
def test_blocks_see_windows_or_the_whole_image(source, images):
    checkpoint = Checkpoint(source)
    [inputs] = prepare(images, checkpoint, QWEN2_5_VL, QuantConfig(num_samples=1, calib_text="none")).inputs
    model, calls = StreamedModel(checkpoint, QWEN2_5_VL, torch.float32), []
    with Walk(model, VISION, {0: inputs}, {}) as walk:
        for index in range(3):
            model.set_all({name: checkpoint.load(name) for name in model.block_tensors(VISION, index)})
            if index == 0:
                walk.enter()
            calls.append(walk.calls[0, 0].on(walk.calls[0, 0].hidden.clone()))
            walk.advance({(0, 0): walk.calls[0, 0](model.block(VISION, index))})

    patches = int(inputs["image_grid_thw"].prod())
    segments = [call.kwargs["cu_seqlens"].diff().tolist() for call in calls]
    assert all(call.hidden.shape == (patches, 160) for call in calls)
    assert segments[1] == [patches]
    assert (
        segments[0] == segments[2]
        and len(segments[0]) > 1
        and max(segments[0]) <= 4 * 4
        and sum(segments[0]) == patches
    )
    # So it matters whose arguments a block is run with: block 0's, for all of them, would be wrong.
    full = model.block(VISION, 1)
    whole, windowed = calls[1](full), calls[0].on(calls[1].hidden)(full)
    assert (whole - windowed).norm() / whole.norm() > 1e-3


PUBLISHED = {
    "3B": dict(hidden=2048, intermediate=11008, layers=36, heads=16, kv_heads=2, vocab=151936, tied=True),
    "7B": dict(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, vocab=152064),
    "72B": dict(
        hidden=8192, intermediate=29568, layers=80, heads=64, kv_heads=8, vocab=152064, vision_intermediate=3456
    ),
}


def headers_only(directory, config: dict, tensors: list) -> Checkpoint:
    """A checkpoint of any size whose weights are a hole in the file: names, dtypes and shapes are all there."""
    header, end = {}, 0
    for tensor in tensors:
        begin, end = end, end + 2 * tensor.size
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (directory / "config.json").write_text(json.dumps(config))
    return Checkpoint(directory)


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_linear_of_the_published_size_is_decided(tmp_path, size):
    """On the meta device: names are a bijection, shapes agree, and no linear is without a decision and a reason."""
    config = hub_config.qwen2_5_vl(**PUBLISHED[size])
    checkpoint = headers_only(tmp_path, config, hub_tensors.tensors(config))
    model = StreamedModel(checkpoint, QWEN2_5_VL, torch.bfloat16)
    assert model.names.keys() == checkpoint.tensors.keys()
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    assert sorted(model.names.values()) == sorted({name for name, _ in model.model.named_parameters()} - tied)

    plan = make_plan(checkpoint, QWEN2_5_VL, QuantConfig(anti_method="m2"))
    decided = {
        model.names[f"{name}.weight"].removesuffix(".weight"): decision for name, decision in plan.decisions.items()
    }
    linears = {name: module for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    assert linears.keys() - decided.keys() == {name.removesuffix(".weight") for name in tied}
    assert decided.keys() <= linears.keys()
    assert all(decision.shape == tuple(linears[name].weight.shape) for name, decision in decided.items())

    vision, language = config["vision_config"]["depth"], config["num_hidden_layers"]
    expected = {
        "visual.blocks.*.attn.qkv": (vision, True),
        "visual.blocks.*.attn.proj": (vision, True),
        "visual.blocks.*.mlp.gate_proj": (vision, True),
        "visual.blocks.*.mlp.up_proj": (vision, True),
        "visual.blocks.*.mlp.down_proj": (vision, False),
        "visual.merger.mlp.*": (2, False),
        "model.layers.*.self_attn.?_proj": (4 * language, True),
        "model.layers.*.mlp.gate_proj": (language, True),
        "model.layers.*.mlp.up_proj": (language, True),
        "model.layers.*.mlp.down_proj": (language, False),
        "lm_head": (1 - len(tied), False),
    }
    counts = Counter(next(pattern for pattern in expected if fnmatchcase(name, pattern)) for name in plan.decisions)
    assert {pattern: counts[pattern] for pattern in expected} == {
        pattern: count for pattern, (count, _) in expected.items()
    }
    for name, decision in plan.decisions.items():
        assert decision.int8 == next(int8 for pattern, (_, int8) in expected.items() if fnmatchcase(name, pattern)), (
            name
        )
        assert decision.why and (decision.why == "W8A8") == decision.int8
    assert len(plan.smoothed) == 3 * vision + 3 * language  # norm1, value and norm2; down_proj is float


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN2_VL], ids=lambda family: family.name)
def test_config_without_what_equals_the_defaults(tmp_path, family):
    """Fine-tunes saved by transformers 4.4x leave out of vision_config whatever equals the default of its class."""
    if family is QWEN2_5_VL:
        config, kept = (
            hub_config.qwen2_5_vl(**PUBLISHED["7B"]),
            ("hidden_size", "in_chans", "spatial_patch_size", "tokens_per_second"),
        )
    else:
        config, kept = copy.deepcopy(hub_config.SIZES["qwen2vl-7b"].config), ("in_chans", "spatial_patch_size")
    tensors = hub_tensors.tensors(config)
    config["vision_config"] = {key: config["vision_config"][key] for key in kept} | {"model_type": config["model_type"]}
    checkpoint = headers_only(tmp_path, config, tensors)
    plan = make_plan(checkpoint, family, QuantConfig())
    assert len([name for name in plan.int8_names if name.startswith("visual.")]) == 32 * (
        4 if family is QWEN2_5_VL else 3
    )
    assert family.tower("vision").heads(config) == (16, 16)
    assert StreamedModel(checkpoint, family, torch.bfloat16).names.keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize("method", ["m2", "m4"])
@torch.inference_mode()
def test_folding_leaves_the_model_as_it_was(source, images, tmp_path, method, monkeypatch):
    """Put back into transformers' own model, the exported norms and the folded weights, caught before int8 rounding,
    answer as the source does: what was folded into RMSNorms, gated MLPs and fused q/k/v cancels.
    """
    folded = {}

    original = StaticLinear.quantize.__func__

    def catch(cls, name, weight, bias, *rest):
        weight = torch.cat(list(weight))
        folded[f"{name}.weight"], folded[f"{name}.bias"] = weight, bias
        return original(cls, name, weight, bias, *rest)

    monkeypatch.setattr(StaticLinear, "quantize", classmethod(catch))
    Calibrator(source, QuantConfig(anti_method=method, dtype="float32"), images).run(tmp_path).save(tmp_path / "out")
    export, checkpoint = reader.read(tmp_path / "out"), Checkpoint(source)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    inputs = prepare(images, checkpoint, QWEN2_5_VL, QuantConfig()).inputs
    expected = [model(**sample).logits for sample in inputs]

    places, changed = dict(model.named_parameters()), set()
    for name, place in StreamedModel(checkpoint, QWEN2_5_VL, torch.float32).names.items():
        value = folded[name] if name in folded else export.load(name)
        if not torch.allclose(value, checkpoint.load(name), rtol=1e-3):
            changed.add(name.split(".", 3)[-1] if "blocks" in name or "layers" in name else name)
        places[place].copy_(value)
    attention = {"attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "self_attn.o_proj.weight"}
    attention |= {f"self_attn.{name}_proj.weight" for name in "qkv"} | {"self_attn.v_proj.bias"}
    norms = {"norm1.weight", "norm2.weight", "input_layernorm.weight", "post_attention_layernorm.weight"}
    assert changed == attention | norms | {"mlp.gate_proj.weight", "mlp.up_proj.weight"}
    for sample, logits in zip(inputs, expected):
        assert (model(**sample).logits - logits).norm() / logits.norm() < 1e-5


def test_export_is_what_both_servers_demand(source, images, tmp_path):
    config = QuantConfig(anti_method="m2", dtype="bfloat16", min_pixels=56 * 56, max_pixels=84 * 84)
    Calibrator(source, config, images).run(tmp_path).save(tmp_path / "out")
    export = reader.read(tmp_path / "out")
    kinds = {
        name.split(".", 3)[3]: kind for name, kind in export.description.items() if name.startswith("visual.blocks.1.")
    }
    for linear in ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj"):
        assert (
            kinds[f"{linear}.weight"] == kinds[f"{linear}.deq_scale"] == "W8A8" and kinds[f"{linear}.bias"] == "FLOAT"
        )
    assert {kinds[name] for name in ("mlp.down_proj.weight", "mlp.down_proj.bias", "norm1.weight", "norm2.weight")} == {
        "FLOAT"
    }
    assert "norm1.bias" not in kinds  # an RMSNorm is not given a shift
    for index in range(3):
        gate, up = (f"visual.blocks.{index}.mlp.{name}_proj" for name in ("gate", "up"))
        assert torch.equal(export.load(f"{gate}.input_scale"), export.load(f"{up}.input_scale"))
        assert torch.equal(export.load(f"{gate}.input_offset"), export.load(f"{up}.input_offset"))
    assert export.config["quantize"] == export.config["vision_config"]["quantize"] == "w8a8"
    assert "quantization_config" not in export.config
    recipe = json.loads((tmp_path / "out" / "quant_recipe.json").read_text())
    assert recipe["encoder"]["min_pixels"] == recipe["config"]["min_pixels"] == 56 * 56
    assert recipe["encoder"]["max_pixels"] == recipe["config"]["max_pixels"] == 84 * 84


def test_preset_ocr_asks_for_text_and_keeps_pages_legible(source, tmp_path):
    def chosen(*flags):
        parser = argparse.ArgumentParser()
        quantize.add_arguments(parser)
        return quantize.quant_config(parser.parse_args(["--model_path", str(source), *flags]))

    preset = chosen("--preset", "ocr", "--calib_text", "none")
    assert len(preset.prompt) > 1 and preset.min_pixels == 256 * 28 * 28 and preset.max_pixels == 1280 * 28 * 28
    assert chosen().prompt is chosen().min_pixels is chosen().max_pixels is None
    own = chosen("--preset", "ocr", "--prompt", "Read this.", "--max_pixels", "921600", "--anti_method", "m4")
    assert (own.prompt, own.min_pixels, own.max_pixels, own.anti_method) == (
        "Read this.",
        preset.min_pixels,
        921600,
        "m4",
    )
    assert len({config.fingerprint() for config in (preset, chosen(), own)}) == 3

    Image.new("RGB", (1280, 720), "white").save(tmp_path / "page.png")
    [inputs] = prepare(tmp_path, Checkpoint(source), QWEN2_5_VL, preset).inputs
    assert inputs["image_grid_thw"].tolist() == [[1, 728 // 14, 1288 // 14]]
    Image.new("RGB", (120, 80), "white").save(tmp_path / "page.png")
    [inputs] = prepare(tmp_path, Checkpoint(source), QWEN2_5_VL, preset).inputs
    assert inputs["image_grid_thw"].prod() >= 4 * 256


def plan_of(source, **choices):
    return make_plan(Checkpoint(source), QWEN2_5_VL, QuantConfig(**choices))


def test_mindies_rules_for_the_vision_tower(source):
    with pytest.raises(
        UsageError,
        match=r"keeps visual\.blocks\.1\.attn\.qkv float .* attn\.qkv in int8 in every vision block.*--vision float",
    ):
        plan_of(source, disable_names=["visual.blocks.1.attn.qkv"])
    with pytest.raises(UsageError, match=r"add visual\.blocks\.1\.mlp\.up_proj"):
        plan_of(source, disable_names=["visual.blocks.1.mlp.gate_proj"])
    # attn.proj and gate/up may be either; down_proj stays float though the user's patterns no longer name it.
    plan = plan_of(
        source,
        disable_names=["visual.blocks.1.attn.proj", "visual.blocks.2.mlp.gate_proj", "visual.blocks.2.mlp.up_proj"],
    )
    floats = {
        name for name, decision in plan.decisions.items() if name.startswith("visual.blocks.") and not decision.int8
    }
    assert floats == {"visual.blocks.1.attn.proj", "visual.blocks.2.mlp.gate_proj", "visual.blocks.2.mlp.up_proj"} | {
        f"visual.blocks.{index}.mlp.down_proj" for index in range(3)
    }
    assert not any(name.startswith("visual.") for name in plan_of(source, vision="float").int8_names)
    assert not any(name.startswith("visual.") for name in plan_of(source, disable_names=["visual.*"]).int8_names)


def test_the_page_on_families_quotes_the_description():
    """docs/add_a_family.md walks through the description line by line: what it quotes is what is there."""
    text = (ROOT / "docs" / "add_a_family.md").read_text()
    quoted = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    source = (ROOT / "quant" / "families" / "qwen2_5vl.py").read_text()
    # Every line of the description from the first tower on, in its order; nothing else.
    description = source[source.index("VISION =") :].splitlines()
    assert "".join(quoted).splitlines() == [line for line in description if line not in ("", ")")]
    script = (ROOT / script_of(QWEN2_5_VL)).read_text()
    counts = f"{len(source.splitlines())} lines of description, and {len(script.splitlines())} of script"
    assert counts in " ".join(text.split()) and len(source.splitlines()) < 80
    for file, name in re.findall(r"`(test_\w+\.py): (test_\w+)`", text):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name
