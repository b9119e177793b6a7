"""How many NPUs are to share a model: what is silently wrong on so many is refused, or quantized otherwise."""

import json
from types import SimpleNamespace

import pytest
from exports import Exports

from quant.commands.cli import main
from quant.families import QWEN2_VL
from quant.servers.rules import check
from quant.servers.rules.deployment import largest_even, served_on, uneven


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("world_size"))


def quantize(exports, family: str, out, *flags: str) -> int:
    words = ["--model_path", exports.source(family), "--calib_images", exports.images, "--save_directory", out]
    words += ["--anti_method", "none", "--calib_text", "none", "--device_type", "cpu"]
    return main(["quantize", *map(str, words), *flags])


def test_an_int8_vision_tower_that_mindie_computes_wrongly_is_an_error(exports):
    out = exports("qwen2_vl")
    assert check(out) == []
    found = check(out, world_size=4, servers=["mindie"])
    assert [(finding.rule, finding.level) for finding in found] == [("vision-tensor-parallel", "error")]
    assert main(["check", str(out), "--target", "all", "--world_size", "2"]) == 1
    assert main(["check", str(out), "--target", "vllm-ascend", "--world_size", "2"]) == 0


@pytest.mark.parametrize("target", [(), ("--target", "mindie"), ("--target", "all")])
def test_quantize_keeps_the_vision_tower_float_for_several_npus(exports, tmp_path, capsys, target):
    assert quantize(exports, "qwen2_vl", tmp_path / "out", "--world_size", "2", *target) == 0
    said = capsys.readouterr().out
    assert "vision   float: MindIE on 2 NPUs" in said and "NPUs     MindIE: right on 1, 2, 4 or 8\n" in said
    described = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    assert all(kind == "FLOAT" for name, kind in described.items() if name.startswith("visual."))
    assert json.loads((tmp_path / "out" / "quant_recipe.json").read_text())["config"]["vision"] == "float"


def test_the_default_says_for_how_many_npus_it_is_right(exports, tmp_path, capsys):
    assert quantize(exports, "qwen2_vl", tmp_path / "out") == 0
    mindie = "NPUs     MindIE: right on 1 alone; on more silently wrong (--vision float)\n"
    assert capsys.readouterr().out.endswith(f"{mindie}NPUs     vLLM-Ascend: right on 1 or 2\n")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--world_size", "2", "--vision", "int8"], "--vision int8 --world_size 2: MindIE on 2 NPUs uses attn.proj"),
        (["--world_size", "8"], "vLLM-Ascend cannot divide num_attention_heads 2, vision heads 2 by it; use 2"),
        (["--world_size", "3", "--target", "mindie"], "--world_size 3: MindIE takes 1, 2, 4, 8"),
        (["--world_size", "0"], "--world_size 0: at least 1"),
    ],
)
def test_what_cannot_be_right_is_refused_before_any_work(exports, tmp_path, capsys, flags, message):
    assert quantize(exports, "qwen2_vl", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_vllm_alone_takes_the_int8_vision_tower(exports, tmp_path):
    assert quantize(exports, "qwen2_vl", tmp_path / "out", "--world_size", "2", "--target", "vllm-ascend") == 0
    assert any(name.startswith("visual.") for name in check_int8(tmp_path / "out"))


def check_int8(out) -> list[str]:
    described = json.loads((out / "quant_model_description.json").read_text())
    return [name for name, kind in described.items() if kind == "W8A8"]


QWEN2_VL_7B = {
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "vision_config": {"embed_dim": 1280, "num_heads": 16, "depth": 32, "mlp_ratio": 4},
}


@pytest.mark.parametrize("size, parts", [(1, []), (2, []), (4, []), (8, ["num_attention_heads 28"])])
def test_what_vllm_divides_of_the_7b(size, parts):
    assert uneven(QWEN2_VL, QWEN2_VL_7B, size) == parts
    directory = SimpleNamespace(family=QWEN2_VL, config=QWEN2_VL_7B, vision_int8=["visual.blocks.0.attn.proj"])
    assert (size in served_on(directory, "vllm-ascend")) == (not parts)
    assert served_on(directory, "mindie") == [1]
    assert not parts or largest_even(QWEN2_VL, QWEN2_VL_7B, size) == 4
