"""The plan of a run: what every linear becomes, and why."""

from dataclasses import replace

import pytest
import tiny

from quant import QuantConfig
from quant.base.errors import UsageError
from quant.calibrate.summary import decisions_table
from quant.commands.names import patterns
from quant.commands.target import server
from quant.export.plan import make_plan
from quant.families.llava import LLAVA
from quant.families.qwen2vl import QWEN2_VL
from quant.files.checkpoint import Checkpoint


def without(family, tower_name, linear):
    """The family with the group of `linear` left out of its description."""
    towers = [
        replace(tower, groups=tuple(group for group in tower.groups if linear not in group.linears))
        if tower.name == tower_name
        else tower
        for tower in family.towers
    ]
    return replace(family, towers=tuple(towers))


@pytest.mark.parametrize("name,linear", [("qwen2_vl", "self_attn.o_proj"), ("llava", "mlp.gate_proj")])
def test_a_linear_that_no_group_lists_is_said_to_be_one(tmp_path, name, linear):
    family, tower = {"qwen2_vl": QWEN2_VL, "llava": LLAVA}[name], "language"
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", name))
    plan = make_plan(checkpoint, without(family, tower, linear), QuantConfig(anti_method="none"))
    decision = plan.decisions[family.tower(tower).block(1) + linear]
    assert not decision.int8
    assert decision.why == "in a block, but in no group of the family's description"
    table = decisions_table(plan)
    start = table.index(f"{family.tower(tower).prefix}*")
    row = next(line for line in table[start:] if line.startswith(f"  {linear} "))
    note = row.split()[-1]
    assert f"{note} in a block, but in no group of the family's description" in table


def test_a_linear_outside_the_blocks_is_said_to_be_outside(tmp_path):
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", "qwen2_vl"))
    family = replace(QWEN2_VL, must_float={"lm_head": "servers load the head in float"})
    plan = make_plan(checkpoint, family, QuantConfig(anti_method="none"))
    assert plan.decisions["visual.merger.mlp.0"].why == "outside the blocks"


def test_a_block_that_config_does_not_count_is_said_to_be_one(tmp_path):
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", "qwen2_vl"))
    checkpoint.config["num_hidden_layers"] = 1
    plan = make_plan(checkpoint, QWEN2_VL, QuantConfig(anti_method="none"))
    why = plan.decisions["model.layers.1.self_attn.q_proj"].why
    assert why == "in a block beyond the 1 that config.json counts"


DOWN, FC2 = "model.layers.0.mlp.down_proj", "visual.blocks.0.mlp.fc2"


@pytest.mark.parametrize(
    "choices,down,fc2",
    [
        ({}, None, None),
        ({"profile": "mindie"}, None, None),
        ({"profile": "vllm-ascend"}, "W8A8_DYNAMIC", "W8A8_DYNAMIC"),
        ({"profile": "vllm-ascend", "vision": "float"}, "W8A8_DYNAMIC", None),
        ({"profile": "vllm-ascend", "disable_names": ("*.down_proj",)}, None, "W8A8_DYNAMIC"),
        ({"profile": "vllm-ascend", "disable_names_only": ()}, "W8A8", "W8A8_DYNAMIC"),
        ({"dynamic_names": ("*.down_proj",)}, "W8A8_DYNAMIC", None),
        ({"disable_names": ("*.q_proj", "*.k_proj", "*.v_proj")}, None, None),
        ({"disable_names_only": ("*.q_proj", "*.k_proj", "*.v_proj")}, "W8A8", None),
        ({"disable_names_only": ()}, "W8A8", None),
    ],
)
def test_a_profile_says_what_is_float(tmp_path, choices, down, fc2):
    """vLLM-Ascend reads a type per linear: all that it loads in int8 is int8. MindIE's kernels take fc2 in float."""
    plan = make_plan(Checkpoint(tiny.make(tmp_path / "src", "qwen2_vl")), QWEN2_VL, QuantConfig(**choices))
    assert (plan.decisions[DOWN].scheme, plan.decisions[FC2].scheme) == (down, fc2)
    assert plan.decisions["model.layers.0.self_attn.o_proj"].scheme == "W8A8"
    assert {name for name in plan.decisions if not plan.is_int8(name)} >= {"lm_head", "visual.merger.mlp.0"}


def test_names_are_added_to_the_recipe_or_replace_it_not_both():
    with pytest.raises(UsageError, match=r"disable_names=a b adds to the recipe and disable_names_only replaces it"):
        QuantConfig(disable_names=("a", "b"), disable_names_only=("c",))


def test_a_file_of_names(tmp_path):
    (tmp_path / "names").write_text("# the worst\n*.layers.2.mlp.*  # 24 dB\n\nvisual.*\n")
    assert patterns("disable_names", ["a", f"@{tmp_path}/names", "b"]) == ("a", "*.layers.2.mlp.*", "visual.*", "b")
    with pytest.raises(UsageError, match=r"--disable_names @.*/none: No such file or directory"):
        patterns("disable_names", [f"@{tmp_path}/none"])
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"--dynamic_names @.*/bytes: is not text in UTF-8"):
        patterns("dynamic_names", [f"@{tmp_path}/bytes"])


def test_a_profile_is_for_its_server():
    assert [server(profile, None) for profile in (None, "both", "mindie", "vllm-ascend")] == [
        None,
        None,
        "mindie",
        "vllm-ascend",
    ]
    assert server("both", "mindie") == "mindie" and server("vllm-ascend", "vllm-ascend") == "vllm-ascend"
    with pytest.raises(UsageError, match="--profile vllm-ascend --target all: the profile is for vllm-ascend alone"):
        server("vllm-ascend", "all")
